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
from lab.world import ALONE, World
from scripts.assembly import drawing, enlarging, experiments, saved
from scripts.assembly.drawing import Trained
from scripts.evaluation import guidance_curve, heldout, measure, panel, pictures_lab, scorer_lab, upscaling_lab, vae_lab
from scripts.evaluation.panel import Panel
from scripts.interface import gallery, plotting, settings
from scripts.selection import judges, selecting, selection_curve

LABS = {"vae": vae_lab, "fast": upscaling_lab, "cascade": upscaling_lab, "scorer": scorer_lab}  # by the kind of stage
Kept = tuple[Path, str]
"""The file of figures, and what they tell in words."""
Figures = tuple[Path, dict[str, Any]]
"""The file, and what is in it."""
Make = Callable[[SamplingConfig, Path, Path, Stopper], None]
"""Measure with these settings, write the file of figures; what is drawn on the way is kept in the folder. Of several
processes each measures, on the pictures and features of all, and the first writes."""


def evaluate(options: Namespace, world: World) -> Kept:
    """Measure what there is to measure of a run, unless it was measured before.

    Args:
        options: of scripts/evaluate.py.
        world: the processes that share the work out; all are given what the first has written.

    Raises:
        Refused: too few pictures, settings that do not go with the run, something that is not installed, or several
            processes for what one does.
    """
    experiment = experiments.load(RunDir.view(options.run).config_path, [])
    is_drawn = isinstance(experiment.stage, TextToImageConfig)
    if world.size > 1 and (options.best_of or not is_drawn):
        what = "--best-of" if is_drawn else f"{options.run} trains {experiments.SUBJECTS[experiment.stage.kind]}, which"
        raise Refused(f"{what} is measured by one process: leave torchrun out")
    if options.kinds and (options.best_of or not isinstance(experiment.data, ShapesConfig) or not is_drawn):
        raise Refused(
            "--kinds are prompt lists of the Shapes, for runs that draw them and without --best-of: leave it out"
        )
    if not is_drawn:
        if options.best_of:
            raise Refused("--best-of is for runs that draw from prompts: leave it out")
        return _of_pictures(options, LABS[experiment.stage.kind])
    is_shapes = isinstance(experiment.data, ShapesConfig)
    if isinstance(options.guidance, tuple) and (options.best_of or options.variance == "optimal"):
        raise Refused("--guidance with several scales goes with neither --best-of nor --variance optimal")
    if options.best_of:
        return _of_selection(options, *_drawing(options, world))
    for flag in ("judge", "reject"):
        if getattr(options, flag):
            raise Refused(f"--{flag} goes with --best-of N,N: name the numbers of candidates, or leave it out")
    asked = panel.choose(options, is_shapes=is_shapes, world=world)
    what, least = ("prompts per kind", 10) if is_shapes else ("captions", 20)
    _check_num(options, what, least, with_networks=bool(asked.extractors))
    if isinstance(options.guidance, tuple):
        return _of_guidance(options, asked)
    path, figures = (_of_prompts if is_shapes else _of_captions)(options, *_drawing(options, world), asked)
    return path, (measure if is_shapes else pictures_lab).table(figures)


def _drawing(options: Namespace, world: World) -> tuple[Trained, SamplingConfig]:
    """The model, and how it draws."""
    trained = drawing.trained(options.run, options.checkpoint, options.weights, world)
    sampling = drawing.sampling(trained.experiment, settings.asked(options))
    return drawing.with_variance(trained, sampling), sampling


def _of_prompts(options: Namespace, trained: Trained, sampling: SamplingConfig, asked: Panel) -> Figures:
    """Whether the prompts of the Shapes are obeyed."""
    if options.kinds and "prompt" not in asked.metrics:
        raise Refused("--kinds says which prompts are judged, and --metrics leaves that out: add prompt to it")
    kinds = measure.kinds_of(experiments.world_of(trained.experiment), options.kinds)

    def make(sampling: SamplingConfig, path: Path, kept: Path, stopper: Stopper) -> None:
        found = measure.everything(trained, sampling, options.num, kept, stopper.check, asked, kinds)
        if not asked.world.is_first:
            return
        for kind, images in found.images.items():
            for index, image in enumerate(images):
                save_png(outcomes.picture_of(path, kind, index), image)
        if found.verdicts:
            outcomes.write(outcomes.path_of(path), found.prompts, found.verdicts)
        _write(path, found.figures)

    what = {"num": options.num, **asked.identity, **({"kinds": kinds} if kinds != measure.KINDS else {})}
    return _once(options, "evaluation", [trained.origin, what], sampling, make, asked.world)


def _of_captions(options: Namespace, trained: Trained, sampling: SamplingConfig, asked: Panel) -> Figures:
    """How pictures of captions are like those of the data."""

    def make(sampling: SamplingConfig, path: Path, kept: Path, stopper: Stopper) -> None:
        draw = partial(measure.draw, trained, sampling, kept, stopper.check)
        data, poll = trained.experiment.data, stopper.check
        figures, sheets = pictures_lab.everything(data, options.num, draw, asked, kept, poll)
        if asked.world.is_first:
            _save_sheets(path, sheets)
            _write(path, {"origin": dict(trained.origin), "sampling": sampling.model_dump(mode="json"), **figures})

    what = {"num": options.num, **asked.identity}
    return _once(options, "evaluation", [trained.origin, what], sampling, make, asked.world)


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
    path, found = _once(options, "best-of", what, sampling, make, ALONE)
    drawn = plotting.draw(selection_curve.plots(found), path.with_suffix(".png"))
    warnings = [line for panel in (plan.panel, judge) if panel for line in panel.warnings(texts)]
    told = [selection_curve.table(found, len(texts)), *warnings, drawn]
    return path, "\n".join(told)


def _of_guidance(options: Namespace, asked: Panel) -> Kept:
    """The figures over scales of guidance: one evaluation of each, kept as any other, and curves of them all."""
    trained = drawing.trained(options.run, options.checkpoint, options.weights, asked.world)
    scales = options.guidance
    one = _of_prompts if isinstance(trained.experiment.data, ShapesConfig) else _of_captions
    points = []
    for scale in scales:
        own = Namespace(**{**vars(options), "guidance": scale})
        own.json = options.json and options.json.with_name(f"{options.json.stem}-{scale:g}.json")
        _, figures = one(own, trained, drawing.sampling(trained.experiment, settings.asked(own)), asked)
        points.append({"guidance": scale, **figures})
    path = options.json or options.run / f"guidance-{gallery.digest(points)}.json"
    told = [guidance_curve.table(points)]
    if asked.world.is_first:
        _write(path, {"scales": list(scales), "points": points})
        told.append(plotting.draw(guidance_curve.plots(points), path.with_suffix(".png")))
    return path, "\n".join(told)


def _once(
    options: Namespace, title: str, what: list[Any], sampling: SamplingConfig, make: Make, world: World
) -> Figures:
    """Measure unless the file is there, in smaller chunks where memory runs out; give what the first process wrote."""
    folder = options.json.parent if options.json else options.run
    kept: list[Path] = []

    def complete(sampling: SamplingConfig) -> Path:
        name = f"{title}-{gallery.digest([*what, sampling.model_dump(mode='json')])}"
        path: Path = options.json or folder / f"{name}.json"
        kept.append(folder / f"{name}.drawn")
        if not world.from_first(path.exists()):
            make(sampling, path, kept[-1], stopper)
        return path

    with Stopper().listening() as stopper:
        path = within_memory(complete, sampling)
    written = ""
    if world.is_first:
        written = path.read_text()
        for folder in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return path, json.loads(world.gather_text(written)[0])


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
