"""A comparison on one page of HTML that needs nothing else: no server, no scripts, no other file."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lab.environment import versions
from lab.rundir import RunDir
from scripts.comparison import curves, pictures
from scripts.comparison.answers import Answer
from scripts.comparison.curves import Curve
from scripts.comparison.evaluations import Evaluation

SHOWN = ("train/loss", "accuracy/pair/right", "accuracy/single/right")  # of metrics.jsonl
STYLE = """
:root { color-scheme: light dark; --ink: #1c1d1f; --quiet: #62666d; --ground: #fcfcfb; --rule: #dcdcd8; --a: #3465a4;
  --b: #b35c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e0; --quiet: #9a9ea6; --ground: #17181a; --rule: #34363a;
  --a: #7aa7e0; --b: #e79a4a; } }
body { margin: 2.5rem auto; padding: 0 1.25rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .25rem; font-weight: 600; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule);
  font-weight: 600; }
p { margin: .4rem 0; max-width: 46rem; } .verdict p:first-child { font-size: 1.15rem; font-weight: 600; }
p { overflow-wrap: anywhere; } .quiet, footer { color: var(--quiet); font-size: .875rem; } footer { margin-top: 3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
td.key { font-family: ui-monospace, monospace; font-size: .82rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.5rem;
  margin-top: 1rem; } .charts figure { max-width: 35rem; }
figure { margin: 0; } figcaption { font-size: .875rem; color: var(--quiet); margin-bottom: .3rem; }
svg { width: 100%; height: auto; display: block; } .tick { fill: var(--quiet); font-size: 12px; }
.name { fill: var(--ink); font-size: 13px; } .grid { stroke: var(--rule); } .zero { stroke: var(--quiet); }
.bar { stroke: var(--ink); stroke-width: 2; } .dot { fill: var(--ink); }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; } .line:hover { stroke-width: 3; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .of-a { color: var(--a); } .of-b { color: var(--b); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr)); gap: 1.25rem;
  grid-auto-flow: dense; align-items: end; }
.pair label { display: grid; grid-template-columns: 1fr 1fr; gap: .35rem; position: relative; cursor: zoom-in; }
.pair input { position: absolute; opacity: 0; } .pair span { font-size: .8rem; color: var(--quiet); }
.pair img { width: 100%; image-rendering: pixelated; border-radius: 3px; display: block; }
.pair input:focus-visible ~ span img { outline: 2px solid var(--a); }
.pair:has(input:checked) { grid-column: 1 / -1; } .pair input:checked ~ span { cursor: zoom-out; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding-right: .55rem; }
  td.key { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; font-size: .75rem; }
  .pair label:has(input:checked) { grid-template-columns: 1fr; } }
"""


def page(answer: Answer, a: Sequence[Evaluation], b: Sequence[Evaluation]) -> str:
    """Lay out an answer, the configurations, the curves of training, and pictures from the same noise.

    Args:
        answer: to one of the two questions.
        a, b: the evaluations on which it stands.
    """
    settings = [fact.removeprefix("differs: ").partition(": ") for fact in answer.facts if fact.startswith("differs")]
    facts = [fact for fact in answer.facts if not fact.startswith("differs")]
    changes = [[key, *change.split(" -> ", 1)] for key, _, change in settings]
    sections = [
        f"<h1>{escape(answer.question)}</h1>",
        _section("verdict", "", [f"<p>{escape(line)}</p>" for line in answer.verdict]),
        _section("", "Figures", _figures(answer)),
        _section("", "What was compared", [f'<p class="quiet">{escape(fact)}</p>' for fact in facts]),
        _section("", "What differs in the configuration", [_table(["key", "A", "B"], changes)] if changes else []),
        _section("", "Training", _charts(a, b)),
        _section("", "The same prompts from the same noise", _pictures(a, b, answer.kind)),
        f"<footer>wordbrush {escape(str(versions()['wordbrush']))} · scripts/compare.py</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(answer.question)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(name: str, title: str, parts: Iterable[str]) -> str:
    inside = "\n".join(parts)
    heading = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f'<section class="{name}">\n{heading}{inside}\n</section>' if inside else ""


def _figures(answer: Answer) -> list[str]:
    if not answer.rows:
        return []
    return [
        _table(answer.header, answer.rows),
        '<div class="charts">' + curves.forest("B - A, with 95 % intervals", answer.intervals) + "</div>",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{' class=key' if k == 0 else ''}>{escape(cell)}</td>" for k, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _charts(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> list[str]:
    lines = {each.run: list(RunDir.view(each.run).metrics()) for each in (*a, *b)}
    found = []
    for name in SHOWN:
        drawn = [
            Curve(side, f"{side.upper()}  {each.run}", _points(lines[each.run], name))
            for side, runs in (("a", a), ("b", b))
            for each in runs
        ]
        if any(curve.points for curve in drawn):
            found.append(curves.plot(name, drawn))
    legend = '<p class="quiet"><span class="of-a">&#9644; A</span> &nbsp; <span class="of-b">&#9644; B</span></p>'
    return [legend, '<div class="charts">', *found, "</div>"] if found else []


def _points(lines: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[float, float]]:
    return [
        (seen, value) for line in lines if (value := line.get(name)) is not None and (seen := line["seen"]) is not None
    ]


def _pictures(a: Sequence[Evaluation], b: Sequence[Evaluation], kind: str) -> list[str]:
    blocks = []
    for pair in pictures.pairs(a, b, kind):
        images = "".join(
            f'<span><img alt="{side}: {escape(pair.caption)}" src="{pictures.embedded(file)}">'
            f"{side} {'right' if is_right else 'wrong'}</span>"
            for side, file, is_right in zip("AB", pair.files, pair.right, strict=True)
        )
        blocks.append(
            f'<figure class="pair"><figcaption>{escape(pair.caption)}</figcaption>'
            f'<label><input type="checkbox" aria-label="enlarge">{images}</label></figure>'
        )
    told = f'<p class="quiet">The first prompts of {escape(kind)}, none selected. A click enlarges a pair.</p>'
    return [told, '<div class="pairs">', *blocks, "</div>"] if blocks else []
