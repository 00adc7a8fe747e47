"""Fourteen mistakes of published diffusion code, made here on purpose: a test must fail on each of them.

    python -m tests.mutants              # all of them, as `make mutants`
    python -m tests.mutants --only 3     # those of one number

A mutant is our code with one snippet replaced, in a copy of the tree; the checkout is not touched. It is killed when
the test that it names fails on an assertion: an error of any other kind proves nothing. The same tests must pass on a
copy without a mutant. Where our code has no place for a mistake, the mutant is what comes nearest to its effect.

Exit codes: 0 all are killed, 1 not all are, or a snippet no longer occurs exactly once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("lab", "vae", "diffusion", "superres", "scripts", "tests", "pyproject.toml")
AT_ONCE = 2  # each is a process of one thread
ASSERTIONS = ("assert ", "AssertionError", "Failed: DID NOT RAISE")  # how the message of a failed assertion begins


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        number: 1 to 14; some mistakes can be made in several places.
        defect: in a few words.
        path: of the file, from the root.
        old: a snippet that occurs there exactly once.
        new: what takes its place.
        test: which must fail, as pytest names it, without parameters.
    """

    number: int
    defect: str
    path: str
    old: str
    new: str
    test: str

    def source(self, root: Path) -> str:
        """Give the text of the file with the mistake in it.

        Raises:
            ValueError: the snippet does not occur exactly once.
        """
        text = (root / self.path).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.number} ({self.defect}) no longer applies: its snippet occurs {text.count(self.old)} "
                f"times in {self.path}, not once; write it anew in tests/mutants.py"
            )
        return text.replace(self.old, self.new)


MUTANTS = (
    Mutant(
        1,
        "trained on x0, whatever is predicted",
        "diffusion/stage.py",
        "target = config.parameterization.target(x0, noised.noise, per_image(noised.alpha), per_image(noised.sigma))",
        "target = x0",
        "tests/diffusion/test_stage.py::test_the_loss_is_the_mean_square_over_the_networks_own_target",
    ),
    Mutant(
        1,
        "a prediction of x0 is used as noise",
        "diffusion/parameterization.py",
        "return Scales(torch.zeros_like(alpha), torch.ones_like(alpha), _into(alpha, sigma))",
        "return Scales(1 / alpha, -sigma / alpha, _into(alpha, sigma))",
        "tests/diffusion/test_parameterization.py::test_its_target_gives_x0",
    ),
    Mutant(
        2,
        "DDIM: 1 - alpha of the step for 1 - alpha-bar",
        "diffusion/samplers/steps.py",
        "return (self.alpha_to - share * self.alpha) * x0_hat + share * x",
        "return self.alpha_to / self.alpha * (x - self.added * self.eps(x, x0_hat)) + kept * self.eps(x, x0_hat)",
        "tests/diffusion/test_samplers.py::test_one_ddim_step_by_hand",
    ),
    Mutant(
        3,
        "DDIM cannot skip: n steps are the last n of 1,000",
        "diffusion/samplers/spacing.py",
        "return torch.linspace(1, 0, steps + 1, dtype=torch.float64)",
        "return torch.arange(steps, -1, -1, dtype=torch.float64) / 1000",
        "tests/diffusion/test_samplers.py::test_any_number_of_steps_goes_all_the_way",
    ),
    Mutant(
        4,
        "DDIM: eta = 0 means two things in two branches",
        "diffusion/samplers/ddim.py",
        'noise = required(noise, "eta", eta)',
        "eta = 1.0 if noise is not None and not eta else eta",
        "tests/diffusion/test_samplers.py::test_eta_0_is_bit_equal_to_no_noise_and_eta_1_is_lower_ddpm",
    ),
    Mutant(
        5,
        "quadratic: betas of t^2 / 4 + 0.15 t, noise from the middle on",
        "diffusion/tables.py",
        "betas: Array = np.linspace(self.first**0.5, self.last**0.5, self.steps) ** 2",
        "betas: Array = 0.25 * np.linspace(0, 1, self.steps) ** 2 + 0.15 * np.linspace(0, 1, self.steps)",
        "tests/diffusion/test_schedule.py::test_tables_are_the_published_ones_at_their_knots",
    ),
    Mutant(
        6,
        "quadratic: the first beta is 0",
        "diffusion/tables.py",
        "betas: Array = np.linspace(self.first**0.5, self.last**0.5, self.steps) ** 2",
        "betas: Array = np.linspace(0, self.last**0.5, self.steps) ** 2",
        "tests/diffusion/test_schedule.py::test_every_knot_of_a_table_but_data_has_noise",
    ),
    Mutant(
        6,
        "a table may begin with a beta of 0",
        "diffusion/tables.py",
        "first: float = Field(1e-4, gt=0, lt=1)",
        "first: float = Field(1e-4, ge=0, lt=1)",
        "tests/diffusion/test_schedule.py::test_a_table_without_noise_or_without_end_is_refused",
    ),
    Mutant(
        7,
        "cosine: s = 1e-4 for 0.008",
        "diffusion/schedule.py",
        "s: float = Field(0.008, gt=0, le=0.1)",
        "s: float = Field(1e-4, gt=0, le=0.1)",
        "tests/diffusion/test_schedule.py::test_cosine_is_nichol_and_dhariwals",
    ),
    Mutant(
        8,
        "linear of 500 steps, which never reaches noise, is let through",
        "diffusion/stage.py",
        "SIGNAL_REFUSED = 0.075",
        "SIGNAL_REFUSED = 0.085",
        "tests/diffusion/test_stage.py::test_a_schedule_that_never_reaches_noise_is_refused_with_the_remedy",
    ),
    Mutant(
        9,
        "the first level of a table is never trained",
        "diffusion/times.py",
        "return 1 - u\n",
        "return 1 - u * 0.999\n",
        "tests/diffusion/test_times.py::test_uniform_times_are_uniform_and_never_data",
    ),
    Mutant(
        9,
        "sampling stops before the last noise is removed",
        "diffusion/samplers/spacing.py",
        "return torch.linspace(1, 0, steps + 1, dtype=torch.float64)",
        "return torch.linspace(1, 0.001, steps + 1, dtype=torch.float64)",
        "tests/diffusion/test_samplers.py::test_the_last_step_adds_no_noise",
    ),
    Mutant(
        10,
        "data in [0, 1]",
        "lab/data/shapes_render.py",
        "(np.array(rgb, dtype=np.float32) / 127.5 - 1)",
        "(np.array(rgb, dtype=np.float32) / 255)",
        "tests/lab/data/test_shapes.py::test_a_picture_has_the_bytes_of_its_colours",
    ),
    Mutant(
        10,
        "a sigmoid on the network's output",
        "diffusion/denoiser.py",
        "return output.to(x_t.dtype), scales",
        "return output.sigmoid().to(x_t.dtype), scales",
        "tests/diffusion/test_denoiser.py::test_one_network_denoises_on_any_schedule",
    ),
    Mutant(
        10,
        "what lies beyond [-1, 1] is not clipped",
        "lab/images.py",
        ".round().clamp(0, 255).to(torch.uint8)",
        ".round().to(torch.int64).to(torch.uint8)",
        "tests/lab/test_images.py::test_rounding_is_to_the_nearest_level_and_clamps",
    ),
    Mutant(
        11,
        "DDPM: no posterior variance",
        "diffusion/samplers/ddim.py",
        '"lower": lambda step: step.posterior',
        '"lower": lambda step: step.added',
        "tests/diffusion/test_samplers.py::test_ddpm_has_the_moments_of_the_exact_chain",
    ),
    Mutant(
        11,
        "a table is multiplied up anew at every step",
        "diffusion/tables.py",
        "@lru_cache(maxsize=64)\n",
        "",
        "tests/diffusion/test_schedule.py::test_a_table_is_computed_once",
    ),
    Mutant(
        12,
        "sampling does not know the schedule of training",
        "diffusion/pipeline.py",
        "schedule = self.model.denoiser.schedule",
        "schedule = Linear()",
        "tests/diffusion/test_pipeline.py::test_an_image_is_its_noise_walked_to_data",
    ),
    Mutant(
        12,
        "a trained run is sampled with the default schedule",
        "scripts/assemble.py",
        "    made = stage(found.experiment, runtime)\n",
        "    default = DiffusionConfig(unet=found.experiment.stage.unet)\n"
        '    made = stage(found.experiment.model_copy(update={"stage": default}), runtime)\n',
        "tests/scripts/test_sample.py::test_a_run_is_drawn_as_it_was_trained",
    ),
    Mutant(
        13,
        "no caption is dropped",
        "diffusion/stage.py",
        '"" if drop < config.caption_drop else text for text, drop',
        "text for text, drop",
        "tests/diffusion/test_stage.py::test_captions_are_dropped_one_by_one_with_the_stated_share",
    ),
    Mutant(
        13,
        "no null condition",
        "diffusion/pipeline.py",
        "partial(self.model.encode, [request.negative for request in requests])",
        "lambda: cond",
        "tests/diffusion/test_pipeline.py::test_an_image_is_its_noise_walked_to_data",
    ),
    Mutant(
        13,
        "no guidance",
        "diffusion/guidance.py",
        "    if combine is None:\n        return plain\n",
        "    return plain\n",
        "tests/diffusion/test_pipeline.py::test_an_image_is_its_noise_walked_to_data",
    ),
    Mutant(
        14,
        "every noise level counts the same",
        "diffusion/loss.py",
        "return self.weight(level).to(error) * error",
        "return error",
        "tests/diffusion/test_stage.py::test_the_loss_is_the_configured_one",
    ),
    Mutant(
        14,
        "times are never stratified",
        "diffusion/loss.py",
        "spread = stratified if config.stratified else uniform",
        "spread = uniform",
        "tests/diffusion/test_loss.py::test_stratified_times_are_those_of_the_slot",
    ),
    Mutant(
        14,
        "the loss in the log is that of one batch",
        "lab/training/meter.py",
        "self._sums[name].to(value) + value if name in self._sums else value.clone()",
        "value * self._steps",
        "tests/lab/training/test_trainer.py::test_it_writes_means_over_samples_and_steps",
    ),
)


class Outcome(NamedTuple):
    """What the tests said.

    Attributes:
        code: pytest's exit code.
        failed: the test that failed on an assertion; "" if none did.
        output: what pytest wrote.
        seconds: it took.
    """

    code: int
    failed: str
    output: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether an assertion failed, and nothing else did."""
        return self.code == 1 and self.failed != ""


def attempt(root: Path, tests: Sequence[str], mutant: Mutant | None = None) -> Outcome:
    """Run tests on a copy of the tree at ``root``, with a mutant in it or without."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for source in (root / name for name in COPIED):
            if source.is_dir():
                shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy)
        if mutant is not None:
            (copy / mutant.path).write_text(mutant.source(root), encoding="utf-8")
        report, begin = copy / "report.xml", time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", f"--junitxml={report}", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = failed_assertion(report.read_text(encoding="utf-8")) if report.exists() else ""
        return Outcome(done.returncode, failed, done.stdout + done.stderr, time.perf_counter() - begin)


def failed_assertion(report: str) -> str:
    """The first test that failed on an assertion, in pytest's JUnit XML, without its parameters; "" if none did."""
    for case in ElementTree.fromstring(report).iter("testcase"):
        failure = case.find("failure")
        if failure is not None and failure.attrib["message"].startswith(ASSERTIONS):
            return f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name'].split('[')[0]}"
    return ""


def hunt(root: Path, mutants: Sequence[Mutant]) -> int:
    """Try the mutants, print what became of each, and give the exit code."""
    for mutant in mutants:
        mutant.source(root)
    control = attempt(root, sorted({mutant.test for mutant in mutants}))
    if control.code != 0:
        print(f"{control.output}\nwithout a mutant these tests must pass, and do not: nothing is proved")
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        trials = pool.map(lambda mutant: attempt(root, [mutant.test], mutant), mutants)
        outcomes = list(tqdm(trials, total=len(mutants), unit="mutant"))
    width = max(len(mutant.defect) for mutant in mutants)
    print(f" #  {'defect':{width}}  seconds  killed by")
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        fate = outcome.failed if outcome.killed else f"NOTHING (pytest: exit code {outcome.code})"
        print(f"{mutant.number:2}  {mutant.defect:{width}}  {outcome.seconds:7.1f}  {fate}")
    alive = [outcome for outcome in outcomes if not outcome.killed]
    for outcome in alive:
        print(f"\n{outcome.output}")
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} mutants killed; without a mutant the tests pass")
    return 1 if alive else 0


def main(argv: Sequence[str]) -> int:
    """Hunt; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = sorted({mutant.number for mutant in MUTANTS})
    parser.add_argument("--only", type=int, metavar="N", choices=numbers, help="those of one number, 1 to 14")
    only = parser.parse_args(argv).only
    try:
        return hunt(ROOT, [mutant for mutant in MUTANTS if only in (None, mutant.number)])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
