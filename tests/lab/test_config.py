import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from lab.config import Config, diff, dump, json_schema, load, merge, parse
from lab.errors import Refused
from lab.yaml12 import Dumper, read

ROOT = Path(__file__).resolve().parents[2]


class Cosine(Config):
    kind: Literal["cosine"] = "cosine"
    shift: float = 0.008


class Linear(Config):
    kind: Literal["linear"] = "linear"
    start: float = 1e-4
    end: Annotated[float, Field(gt=0, lt=1)] = 0.02


Schedule = Annotated[Cosine | Linear, Field(discriminator="kind")]


class Train(Config):
    """How long and how.

    Attributes:
        steps: optimizer steps.
        limit, every: how often at most, and
            how often.
    """

    steps: int
    lr: float = 1e-3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limit: int | None = None
    every: int | Literal["auto"] = "auto"
    ema: bool = True

    @model_validator(mode="after")
    def _agree(self) -> "Train":
        if self.limit is not None and self.limit > self.steps:
            raise ValueError("limit is more than steps, lower it")
        return self


class Whole(Config):
    name: str
    train: Train
    schedule: Schedule = Cosine()
    sizes: tuple[float, ...] = (7, 14)
    corner: tuple[float, float] = (0, 1)
    mixture: dict[str, float] = {"single": 1.0}
    stack: tuple[Schedule, ...] = ()


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("name: base\nschedule: {kind: cosine, shift: 1e-2}\ntrain: {steps: 10}\n")
    (tmp_path / "preset.yaml").write_text("base: base.yaml\nname: no\ntrain: {lr: 2}\n")
    return tmp_path / "preset.yaml"


def refusal(preset: Path, *overrides: str) -> str:
    with pytest.raises(Refused) as caught:
        load(preset, overrides, Whole)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{preset}: ")


def test_presets_inherit_and_overrides_win(preset: Path) -> None:
    config = load(preset, ["train.steps=20", "sizes=[1, 2, 3]"], Whole)
    assert config.train == Train(steps=20, lr=2.0)
    assert config.schedule == Cosine(shift=0.01)
    assert config.sizes == (1.0, 2.0, 3.0)
    assert isinstance(config.train.lr, float)


def test_scalars_are_read_as_yaml_12(preset: Path) -> None:
    assert load(preset, [], Whole).name == "no"
    assert [load(preset, [f"name={word}"], Whole).name for word in ("on", "yes", "12:30", "1_000")] == [
        "on",
        "yes",
        "12:30",
        "1_000",
    ]
    assert load(preset, ["train.lr=1e-4"], Whole).train.lr == 1e-4
    assert load(preset, ["train.steps=010"], Whole).train.steps == 10
    assert load(preset, ["train.steps=0x1F"], Whole).train.steps == 31
    assert load(preset, ["train.steps=0o17"], Whole).train.steps == 15
    assert load(preset, ["train.lr=-.inf"], Whole).train.lr == float("-inf")
    assert load(preset, ["train.limit=~"], Whole).train.limit is None
    assert load(preset, ["train.ema=False"], Whole).train.ema is False


@pytest.mark.parametrize("text", ["${a", "${train.steps}", "???", "a=b", "\\${x}"])
def test_what_omegaconf_would_interpret_is_literal(preset: Path, text: str) -> None:
    assert load(preset, [f"name={text}"], Whole).name == text


@pytest.mark.parametrize("order", [1, -1])
def test_another_kind_replaces_the_whole_node_in_any_order(preset: Path, order: int) -> None:
    config = load(preset, ["schedule.kind=linear", "schedule.end=0.5"][::order], Whole)
    assert config.schedule == Linear(end=0.5)


def test_the_same_kind_keeps_its_node(preset: Path) -> None:
    assert load(preset, ["schedule.kind=cosine"], Whole).schedule == Cosine(shift=0.01)


def test_merging() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "k": {"kind": "x", "p": 1}, "n": None}
    over = {"a": {"c": [3]}, "k": {"kind": "y", "q": {"kind": "z"}}, "n": {"m": 1}}
    assert merge(base, over) == {"a": {"b": 1, "c": [3]}, "k": {"kind": "y", "q": {"kind": "z"}}, "n": {"m": 1}}
    assert base["k"] == {"kind": "x", "p": 1}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.stpes=3", "train.stpes: unknown key (given 3); did you mean train.steps?"),
        ("trian.steps=3", 'trian: unknown key (given {"steps": 3}); did you mean train?'),
        ("steps=3", "steps: unknown key (given 3); did you mean train.steps?"),
        ("start=1", "start: unknown key (given 1); did you mean schedule.start?"),
        ("stpes=3", "stpes: unknown key (given 3); did you mean train.steps?"),
        ("train.zzz=3", "train.zzz: unknown key (given 3); known here: steps, lr, device, limit, every, ema"),
        ("mixture.a.b=3", 'mixture.a: must be a valid number, got {"b": 3}'),
        ("schedule.end=0.5", "schedule.end: unknown key (given 0.5); this kind knows kind, shift"),
        ("stack=[{kind: linear, strat: 1}]", "stack.0.strat: unknown key (given 1); did you mean stack.0.start?"),
        ("train.steps=abc", 'train.steps: must be a valid integer, got "abc"'),
        ("train.steps=1e4", "train.steps: must be a valid integer, got 10000.0; write 10000"),
        ("train.steps=true", "train.steps: must be a valid integer, got true"),
        ("train.lr='1'", 'train.lr: must be a valid number, got "1"'),
        ("train.ema=yes", 'train.ema: must be a valid boolean, got "yes"; write true or false'),
        ("train.every=x", "train.every: must be a valid integer or must be 'auto', got \"x\""),
        ("train.device=cud", "train.device: must be 'auto', 'cpu' or 'cuda', got \"cud\"; did you mean cuda?"),
        ("train.limit=11", 'train: limit is more than steps, lower it (given {"steps": 10, "lr": 2, "limit": 11})'),
        ("train=3", "train: must be a mapping, got 3"),
        ("name=3", "name: must be a valid string, got 3; put it in quotes"),
        ("sizes=3", "sizes: must be a list, got 3"),
        ("sizes=[a, b]", 'sizes.0: must be a valid number, got "a" (and 1 more mistake)'),
        ("corner=[1]", "corner.1: is missing; give it a value"),
        ("schedule.kind=cosin", "schedule: unknown kind 'cosin'; choose one of cosine, linear; did you mean cosine?"),
        ("stack=[{}]", "stack.0: has no 'kind'; name one of cosine, linear (given {})"),
        ("stack=[{kind: linear, end: 2}]", "stack.0.end: must be less than 1, got 2"),
    ],
)
def test_a_mistake_is_one_line_with_path_value_and_remedy(preset: Path, override: str, line: str) -> None:
    assert refusal(preset, override) == line


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=3", "a[0]=3", ".a=3"])
def test_a_malformed_override_shows_the_form(preset: Path, override: str) -> None:
    assert refusal(preset, override) == (
        f"override {override!r}: must read dotted.key=value, for instance train.steps=20"
    )


def test_an_override_that_is_not_yaml(preset: Path) -> None:
    assert refusal(preset, "sizes=[1").startswith("override 'sizes=[1': the value is not YAML (line 1: ")


def test_a_missing_value(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {}\nname: a\n")
    with pytest.raises(Refused, match=r"train\.steps: is missing; give it a value$"):
        load(path, [], Whole)


def test_the_unknown_key_is_told_before_the_key_it_leaves_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {stpes: 3}\nname: a\n")
    with pytest.raises(Refused, match=r"train\.stpes: unknown key .*\(and 1 more mistake\)$"):
        load(path, [], Whole)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1", "is not YAML: line 1: "),
        ("a: 1\na: 2", "is not YAML: line 2: key 'a' is written twice"),
        ("[1]: 2", "is not YAML: line 1: a key must be a plain word"),
        ("- 1", "must hold a mapping of keys to values, holds a list"),
        ("base: [a]", "base: must be the name of one YAML file, got ['a']"),
        ("base: self.yaml", "inherits from itself"),
    ],
)
def test_a_broken_file(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(Refused) as caught:
        load(path, [], Whole)
    assert line in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(preset: Path) -> None:
    with pytest.raises(Refused, match=r"no such configuration file; did you mean .*preset\.yaml\?"):
        load(preset.with_name("presets.yaml"), [], Whole)


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(tmp_path / "empty.yaml", [], Cosine) == Cosine()


def test_configurations_are_frozen_and_strict_in_python_too() -> None:
    with pytest.raises(ValidationError):
        Cosine(shift="0.1")
    with pytest.raises(ValidationError):
        Cosine().shift = 1.0


@given(
    name=st.text(st.characters(exclude_categories=["Cs"])),
    lr=st.floats(allow_nan=False),
    mixture=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False)),
)
def test_dump_is_read_back_unchanged(name: str, lr: float, mixture: dict[str, float]) -> None:
    config = Whole(name=name, train=Train(steps=1, lr=lr), schedule=Linear(), mixture=mixture, stack=(Cosine(),))
    assert parse(read(dump(config)), Whole) == config


@given(st.text(st.sampled_from("0123456789.eE+-xo_:~nulyesoffTRUEinfa ")))
def test_text_stays_text_also_for_readers_of_yaml_11(text: str) -> None:
    written = yaml.dump({"a": text}, Dumper=Dumper)
    assert read(written) == {"a": text}
    assert yaml.safe_load(written) == {"a": text}


@pytest.mark.parametrize("name", ["1e-4", "no", "010", "0o17", "~", "null", "", "12:30"])
def test_dump_quotes_text_that_looks_like_something_else(name: str) -> None:
    text = dump(Whole(name=name, train=Train(steps=1)))
    assert read(text)["name"] == yaml.safe_load(text)["name"] == name


def test_dump_resolves_every_value(preset: Path, tmp_path: Path) -> None:
    config = load(preset, ["schedule.kind=linear"], Whole)
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load(tmp_path / "resolved.yaml", [], Whole) == config
    assert yaml.safe_load(dump(config))["schedule"] == {"kind": "linear", "start": 1e-4, "end": 0.02}


def test_diff_names_what_changed(preset: Path) -> None:
    old = load(preset, [], Whole)
    assert diff(old, old) == []
    assert diff(old, load(preset, ["train.steps=20", "schedule.kind=linear", "sizes=[1]"], Whole)) == [
        "train.steps: 10 -> 20",
        'schedule.kind: "cosine" -> "linear"',
        "schedule.shift: 0.01 -> (absent)",
        "sizes: [7.0, 14.0] -> [1.0]",
        "schedule.start: (absent) -> 0.0001",
        "schedule.end: (absent) -> 0.02",
    ]


def test_what_is_made_of_a_text_does_not_change_what_it_says() -> None:
    first = read("a: {b: [1]}")
    first["a"]["b"].append(2)
    assert read("a: {b: [1]}") == {"a": {"b": [1]}}


def test_the_json_schema_carries_the_documentation() -> None:
    described = json_schema(Whole)["$defs"]["Train"]
    assert described["properties"]["steps"]["description"] == "optimizer steps."
    assert described["properties"]["every"]["description"] == "how often at most, and how often."
    assert "description" not in described["properties"]["ema"]
    assert described["additionalProperties"] is False


class Longer(Train):
    """Longer.

    Attributes:
        rate: peak of the learning rate.

    Source: nowhere.
    """

    rate: float = 1.0


def test_documentation_is_inherited() -> None:
    described = json_schema(Longer)["properties"]
    assert described["steps"]["description"] == "optimizer steps."
    assert described["rate"]["description"] == "peak of the learning rate."


def test_a_misspelt_key_is_reported_without_torch() -> None:
    code = (
        "import sys\nfrom lab.config import Config, parse\nfrom lab.errors import Refused\n"
        "class A(Config):\n    steps: int = 1\n"
        "try: parse({'stpes': 1}, A)\nexcept Refused as error: print(error)\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    message, loaded = done.stdout.splitlines()
    assert message == "configuration: stpes: unknown key (given 1); did you mean steps?"
    assert loaded == "False False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4  # seconds of work, however busy
