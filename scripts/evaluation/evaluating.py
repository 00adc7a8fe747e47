"""What scripts/evaluate.py measures of which run, and how its figures are kept: once, and gone on with after a kill."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.pipeline import SamplingConfig, within_memory
from diffusion.stage import TextToImageConfig
from lab.data.shapes import ShapesConfig, prompts
from lab.errors import Refused
from lab.evaluation import outcomes
from lab.images import save_png
from lab.rundir import RunDir
from lab.storage import write_whole
from lab.training.signals import Stopper
from scripts.assembly import drawing, enlarging, experiments, saved
from scripts.assembly.drawing import Trained
from scripts.evaluation import guidance_curve, heldout, measure, panel, pictures_lab, scorer_lab, upscaling_lab, vae_lab
from scripts.evaluation.panel import Panel
from scripts.interface import gallery, plotting, settings
from scripts.selection import judges, selecting, selection_curve

LABS = {"vae": vae_lab, "fast": upscaling_lab, "cascade": upscaling_lab, "scorer": scorer_lab}  # by the kind of stage
Kept = tuple[Path, str]
"""The file of figures, and what they tell in words."""
Make = Callable[[SamplingConfig, Path, Path, Stopper], None]
"""Measure with these settings, write the file of figures; what is drawn on the way is kept in the folder."""


def evaluate(options: Namespace) -> Kept:
    """Measure what there is to measure of a run, unless it was measured before.

    Raises:
        Refused: too few pictures, settings that do not go with the run, or something that is not installed.
    """
    experiment = experiments.load(RunDir.view(options.run).config_path, [])
    if not isinstance(experiment.stage, TextToImageConfig):
        if options.best_of:
            raise Refused("--best-of is for runs that draw from prompts: leave it out")
        return _of_pictures(options, LABS[experiment.stage.kind])
    is_shapes = isinstance(experiment.data, ShapesConfig)
    if isinstance(options.guidance, tuple) and (options.best_of or options.variance == "optimal"):
        raise Refused("--guidance with several scales goes with neither --best-of nor --variance optimal")
    if options.best_of:
        return _of_selection(options, *_drawing(options))
    for flag in ("judge", "reject"):
        if getattr(options, flag):
            raise Refused(f"--{flag} goes with --best-of N,N: name the numbers of candidates, or leave it out")
    asked = panel.choose(options, is_shapes=is_shapes)
    what, least = ("prompts per kind", 10) if is_shapes else ("captions", 20)
    _check_num(options, what, least, with_networks=bool(asked.extractors))
    if isinstance(options.guidance, tuple):
        return _of_guidance(options, asked)
    return (_of_prompts if is_shapes else _of_captions)(options, *_drawing(options), asked)


def _drawing(options: Namespace) -> tuple[Trained, SamplingConfig]:
    """The model, and how it draws."""
    trained = drawing.trained(options.run, options.checkpoint, options.weights)
    sampling = drawing.sampling(trained.experiment, settings.asked(options))
    return drawing.with_variance(trained, sampling), sampling


def _of_prompts(options: Namespace, trained: Trained, sampling: SamplingConfig, asked: Panel) -> Kept:
    """Whether the prompts of the Shapes are obeyed."""

    def make(sampling: SamplingConfig, path: Path, kept: Path, stopper: Stopper) -> None:
        found = measure.everything(trained, sampling, options.num, kept, stopper.check, asked)
        for kind, images in found.images.items():
            for index, image in enumerate(images):
                save_png(outcomes.picture_of(path, kind, index), image)
        if found.verdicts:
            outcomes.write(outcomes.path_of(path), found.prompts, found.verdicts)
        _write(path, found.figures)

    what = {"num": options.num, **asked.identity}
    path = _once(options, "evaluation", [trained.origin, what], sampling, make)
    return path, measure.table(json.loads(path.read_text()))


def _of_captions(options: Namespace, trained: Trained, sampling: SamplingConfig, asked: Panel) -> Kept:
    """How pictures of captions are like those of the data."""

    def make(sampling: SamplingConfig, path: Path, kept: Path, stopper: Stopper) -> None:
        draw = partial(measure.draw, trained, sampling, kept, stopper.check)
        data, poll = trained.experiment.data, stopper.check
        figures, sheets = pictures_lab.everything(data, options.num, draw, asked, kept, poll)
        _save_sheets(path, sheets)
        _write(path, {"origin": dict(trained.origin), "sampling": sampling.model_dump(mode="json"), **figures})

    what = {"num": options.num, **asked.identity}
    path = _once(options, "evaluation", [trained.origin, what], sampling, make)
    return path, pictures_lab.table(json.loads(path.read_text()))


def _of_selection(options: Namespace, trained: Trained, sampling: SamplingConfig) -> Kept:
    """What the best of several candidates gives."""
    data, sizes = trained.experiment.data, selecting.read_sizes(options.best_of)
    is_shapes = isinstance(data, ShapesConfig)
    if not is_shapes and not options.judge:
        raise Refused("--best-of needs a judge beside --scorer where data.kind is not shapes: name one by --judge")
    rounds = tuple(map(selecting.read_round, options.reject))
    plan = selecting.Plan(sizes[-1], judges.read(options.scorer), rounds)
    judge = judges.read(options.judge) if options.judge else None
    plan.check(sampling)
    texts: Sequence[str] = prompts("pair", options.num, measure.PROMPT_SEED) if is_shapes else ()
    texts = texts or heldout.pictures(data, "heldout", options.num, least=2).captions

    def make(sampling: SamplingConfig, path: Path, kept: Path, stopper: Stopper) -> None:
        selector = selecting.Selector(trained, measure.PROMPT_SEED, sampling, plan, stopper.check)
        _write(path, selection_curve.quality(selector, texts, sizes, judge, kept))

    what = [dict(trained.origin), sizes, plan.panel.facts, judge and judge.facts, options.reject, list(texts)]
    path = _once(options, "best-of", what, sampling, make)
    found = json.loads(path.read_text())
    drawn = plotting.draw(selection_curve.plots(found), path.with_suffix(".png"))
    warnings = [line for panel in (plan.panel, judge) if panel for line in panel.warnings(texts)]
    told = [selection_curve.table(found, len(texts)), *warnings, drawn]
    return path, "\n".join(told)


def _of_guidance(options: Namespace, asked: Panel) -> Kept:
    """The figures over scales of guidance: one evaluation of each, kept as any other, and curves of them all."""
    trained, scales = drawing.trained(options.run, options.checkpoint, options.weights), options.guidance
    one = _of_prompts if isinstance(trained.experiment.data, ShapesConfig) else _of_captions
    points = []
    for scale in scales:
        own = Namespace(**{**vars(options), "guidance": scale})
        own.json = options.json and options.json.with_name(f"{options.json.stem}-{scale:g}.json")
        path, _ = one(own, trained, drawing.sampling(trained.experiment, settings.asked(own)), asked)
        points.append({"guidance": scale, **json.loads(path.read_text())})
    path = options.json or options.run / f"guidance-{gallery.digest(points)}.json"
    _write(path, {"scales": list(scales), "points": points})
    drawn = plotting.draw(guidance_curve.plots(points), path.with_suffix(".png"))
    return path, "\n".join([guidance_curve.table(points), drawn])


def _once(options: Namespace, title: str, what: list[Any], sampling: SamplingConfig, make: Make) -> Path:
    """Measure unless the file is there, in smaller chunks where memory runs out; give the file."""
    folder = options.json.parent if options.json else options.run
    kept: list[Path] = []

    def complete(sampling: SamplingConfig) -> Path:
        name = f"{title}-{gallery.digest([*what, sampling.model_dump(mode='json')])}"
        path: Path = options.json or folder / f"{name}.json"
        kept.append(folder / f"{name}.drawn")
        if not path.exists():
            make(sampling, path, kept[-1], stopper)
        return path

    with Stopper().listening() as stopper:
        path = within_memory(complete, sampling)
    for folder in kept:
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _of_pictures(options: Namespace, lab: Any) -> Kept:
    """What a model makes of pictures that it is given."""
    if options.metrics:
        raise Refused("--metrics is for runs that draw from prompts: leave it out")
    _check_num(options, "pictures", 20, with_networks=not options.no_distances)
    found, asked = saved.read(options.run, options.checkpoint, options.weights), settings.asked(options)
    networks = not options.no_distances
    what: list[Any] = [found.origin, {"num": options.num, "networks": networks}]
    if lab is upscaling_lab:
        found = enlarging.retold(found, asked, {})
        what.append(enlarging.told(found))
    elif asked:
        raise Refused(f"--{next(iter(asked)).replace('_', '-')} is for runs that draw from prompts: leave it out")
    name = gallery.digest(what)
    path: Path = options.json or options.run / f"evaluation-{name}.json"
    if not path.exists():
        with Stopper().listening() as stopper:
            figures, sheets = lab.everything(found, options.num, stopper.check, with_networks=networks)
        _save_sheets(path, sheets)
        _write(path, figures)
    return path, lab.table(json.loads(path.read_text()))


def _check_num(options: Namespace, what: str, with_distances: int, *, with_networks: bool) -> None:
    """Refuse too few of something."""
    least = with_distances if with_networks else 2
    if options.num < least:
        way_out = ", or 2 with --no-distances" if with_networks else ""
        raise Refused(f"--num {options.num}: at least {least} {what}{way_out}")


def _save_sheets(path: Path, sheets: Mapping[str, Image.Image]) -> None:
    for part, sheet in sheets.items():
        save_png(path.with_name(f"{path.stem}-{part}.png"), sheet)


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(figures, indent=2) + "\n").encode())
