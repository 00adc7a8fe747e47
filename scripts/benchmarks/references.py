"""Long DDIM walks from the same noise, which stand for the exact solution.

They cost as much as all else together, so each chunk of images is kept in a file that is named by everything that
determines it, and is not drawn again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from diffusion.pipeline import Request, SamplingConfig
from lab.storage import write_whole
from scripts.assembly.drawing import Trained
from scripts.benchmarks.walks import walk
from scripts.interface import gallery

STEPS = 1000


@dataclass(frozen=True)
class References:
    """Draws reference walks and keeps them.

    Attributes:
        trained: the model.
        folder: where they are kept.
        seed: of the noise.
        steps: of the walk.
    """

    trained: Trained
    folder: Path
    seed: int
    steps: int = STEPS

    def of(self, requests: Sequence[Request], sampling: SamplingConfig) -> Tensor:
        """Give the images (n, 3, H, W) that the exact solver would make of these requests.

        Args:
            requests: what is wanted.
            sampling: whose guidance and chunk are taken; its sampler and steps are what is compared.
        """
        exact = SamplingConfig(
            sampler="ddim",
            steps=self.steps,
            spacing="uniform",
            guidance=sampling.guidance,
            guide=sampling.guide,
            chunk=sampling.chunk,
        )
        return torch.cat(
            [self._chunk(requests[k : k + exact.chunk], exact) for k in range(0, len(requests), exact.chunk)]
        )

    def _chunk(self, requests: Sequence[Request], exact: SamplingConfig) -> Tensor:
        precision = self.trained.pipeline.runtime.precision
        recipe = [dict(self.trained.origin), precision, self.seed, exact.model_dump(mode="json"), list(requests)]
        path = self.folder / f"reference-{gallery.digest(recipe)}.safetensors"
        if path.exists():
            return safetensors.torch.load_file(path)["x0"]
        name = f"{self.steps}-step reference, guidance {exact.guidance:g}"
        images = walk(self.trained.pipeline, requests, self.seed, exact, name).images
        write_whole(path, safetensors.torch.save({"x0": images.contiguous()}))
        return images
