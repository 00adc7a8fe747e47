"""Find out what is wrong with a run, and what to do about it.

    python scripts/doctor.py runs/shapes                # looks at the record, the data and the newest checkpoint
    python scripts/doctor.py runs/shapes --record       # at the record alone: in a second, also while the run is going

Looks for data out of range, latents off scale, signal at the last step, an average that lags behind, a null condition
that was not trained, text or word order that is not heard, samples without contrast; a loader that keeps the model
waiting, gradients that jump, vanish or are always clipped, a loss that rises, updates left out, and pictures learned
by heart. Every finding has a remedy; what is in order is listed too. Writes RUN/doctor.json, and changes nothing else
of the run. Ends with 0 also where something was found: scripts read RUN/doctor.json.

The doctor of data is another: scripts/prepare.py doctor PRESET.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from lab.rundir import RunDir
    from lab.training.symptoms import Symptom
    from scripts.assembly.experiments import AnyExperiment

NUM = 64  # pictures that the model is asked about
RANGE = 1000  # pictures whose range is looked at


def main(argv: Sequence[str]) -> int:
    """Examine; see the module's text."""
    options = _parser().parse_args(argv)
    from lab.errors import Refused
    from lab.rundir import RunDir
    from lab.storage import write_whole
    from scripts.assembly import experiments

    directory = RunDir.view(options.run)
    experiment = experiments.load(directory.config_path, [])
    symptoms = _of_record(directory, experiment)
    if not options.record:
        if experiment.stage.kind in experiments.SUBJECTS:
            raise Refused(
                f"{options.run} trains {experiments.SUBJECTS[experiment.stage.kind]}, and models are examined that "
                "draw from prompts: look at its record alone with --record, and at its figures with scripts/evaluate.py"
            )
        symptoms += _of_model(options.run)
    findings = [symptom for symptom in symptoms if symptom.is_ill]
    for symptom in symptoms:
        print(f"{'FINDING' if symptom.is_ill else 'ok':8} {symptom.name}: {symptom.told}")
        if symptom.is_ill:
            print(f"{'':8} remedy: {symptom.remedy}")
    print(f"{len(findings)} findings in {len(symptoms)} checks")
    told = json.dumps([asdict(symptom) | {"is_ill": symptom.is_ill} for symptom in symptoms], indent=1) + "\n"
    write_whole(directory.path / "doctor.json", told.encode())
    return 0


def _of_record(directory: "RunDir", experiment: "AnyExperiment") -> "list[Symptom]":
    from lab.training import symptoms

    clip, endless = experiment.train.optimizer.clip, experiment.data.kind == "shapes"
    return symptoms.of_record(list(directory.metrics()), clip, endless)


def _of_model(path: Path) -> "list[Symptom]":
    from diffusion import symptoms
    from lab.data.loader import Loader
    from lab.data.sources import source
    from scripts.assembly.drawing import trained

    averaged, raw = trained(path), trained(path, weights="raw")
    stage, experiment = averaged.stage, averaged.experiment
    loader = Loader(source(experiment.data), experiment.seed)
    num = min(RANGE, loader.source.num or RANGE)
    ends = [loader.batch(range(k, min(k + 50, num))).images.aminmax() for k in range(0, num, 50)]
    low, high = min(float(end.min) for end in ends), max(float(end.max) for end in ends)
    batch = loader.batch(range(NUM))
    batch = batch.with_images(stage.runtime.batch(batch.images))
    models = averaged.pipeline.model, raw.pipeline.model
    with stage.runtime.autocast():
        found = [
            symptoms.of_data(low, high, num),
            symptoms.of_latents(stage, batch),
            *symptoms.of_settings(stage),
            symptoms.of_average(stage, *models, batch),
            *symptoms.of_text(stage, models[0], batch),
        ]
    found.append(symptoms.of_samples(stage, models[0], batch, experiment.stage.sampling))
    return [symptom for symptom in found if symptom]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run directory of a text-to-image model")
    parser.add_argument("--record", action="store_true", help="look at the record alone")
    return parser


if __name__ == "__main__":
    run(main)
