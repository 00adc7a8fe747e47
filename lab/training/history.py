"""What a run keeps of its averages along the way: from it, averages of other lengths are made after the training.

    snapshots/step-00000088/
        ema_0.050.safetensors       one file per averaging length, float32
        ema_0.100.safetensors
        state.json MANIFEST.json    as of a checkpoint, which such a folder is in all but what it holds

A snapshot is written before the checkpoint of its step, so a run that goes on from a checkpoint has all that lie before
it. Those after it are forgotten, and come back with the same bits when the run comes there again.

They are stored in float32. In float16 the average of length 0.03 of a real run was off by 0.062 of the distance between
those of 0.05 and 0.10, instead of 0.0004: the coefficients add up to 1, but their absolute values to 11. See
docs/decisions/0011-posthoc-averages.md.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lab.errors import Refused
from lab.training import checkpoint
from lab.training.posthoc import Profile
from lab.training.snapshot import Tensors, average_name

REMEDY = "delete the folder, and the average is made from the others, with the larger error that is then told"


def is_due(step: int, steps: int, num: int) -> bool:
    """Whether a step is one of ``num`` evenly spaced ones up to ``steps``, the last one among them.

    A run that is extended goes on at its new, wider spacing and keeps what it has: a profile is relative to the step at
    which it was taken, not to the end of the run.
    """
    return step * num // steps > (step - 1) * num // steps


@dataclass(frozen=True)
class History:
    """The snapshots of one run.

    Attributes:
        root: the run's ``snapshots`` folder.
    """

    root: Path

    def keep(self, step: int, seen: int, averages: Tensors, facts: Mapping[str, Any]) -> None:
        """Store the averages after a step.

        Args:
            step: optimizer steps made.
            seen: samples consumed.
            averages: of all lengths, by file stem.
            facts: where they come from, for the manifest; "run_id" at least.

        Raises:
            StorageFailed: the disk is full or refuses. The run ends there and goes on from its newest checkpoint: a
                snapshot that is missing could not be made later.
        """
        checkpoint.save(self.root, checkpoint.Snapshot(averages, {"step": step, "seen": seen}), facts, keep=None)

    def rewind(self, step: int) -> None:
        """Forget what was stored after ``step`` and what a killed process left half-written."""
        checkpoint.clean(self.root)
        for later, folder in self._folders().items():
            if later > step:
                shutil.rmtree(folder)

    def profiles(self, lengths: Sequence[float], step: int | None = None) -> list[Profile]:
        """List what was stored up to a step.

        Args:
            lengths: of the averages in each snapshot.
            step: of a snapshot; None for the newest.

        Returns:
            Those of each snapshot together, earliest first.

        Raises:
            Refused: there are no snapshots, or none at that step.
        """
        steps = list(self._folders())
        if not steps:
            raise Refused(
                f"{self.root}: no snapshots there; a run keeps them while it trains, with train.snapshots=32 and "
                'two lengths such as "train.ema=[0.05,0.1]"'
            )
        if step is not None and step not in steps:
            raise Refused(f"{self.root}: no snapshot at step {step} (found: {', '.join(map(str, steps))})")
        return [Profile(each, length) for each in steps if step is None or each <= step for length in lengths]

    def total(
        self, stored: Sequence[Profile], coefficients: Iterable[float], parameters: Collection[str]
    ) -> dict[str, Tensor]:
        """Add stored averages up, in float64.

        Args:
            stored: as ``profiles`` gives them.
            coefficients: one for each.
            parameters: names of the tensors that are added; the others are those of the last snapshot.

        Returns:
            Tensors by name, of the stored dtypes.

        Raises:
            Refused: a snapshot is broken; the message says how.
        """
        folders, sums = self._folders(), dict[str, Tensor]()
        tensors: Mapping[str, Tensor] = {}
        groups = groupby(zip(stored, coefficients, strict=True), key=lambda pair: pair[0].step)
        for step, group in tqdm(groups, total=len({profile.step for profile in stored}), unit="snapshot", desc="add"):
            saved = checkpoint.load(folders[step], REMEDY)
            for profile, coefficient in group:
                tensors = saved.tensors[average_name(profile.length)]
                for key in parameters:
                    part = tensors[key].double().mul_(coefficient)
                    sums[key] = sums[key].add_(part) if key in sums else part
        return {key: sums[key].to(tensor.dtype) if key in sums else tensor for key, tensor in tensors.items()}

    def identities(self, step: int) -> dict[str, str]:
        """Name the tensors of each snapshot up to a step by their hash."""
        return {folder.name: checkpoint.identity(folder) for each, folder in self._folders().items() if each <= step}

    def _folders(self) -> dict[int, Path]:
        """The folders by step, in order."""
        return {int(folder.name.removeprefix("step-")): folder for folder in sorted(self.root.glob("step-*"))}
