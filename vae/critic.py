"""A critic that learns to tell reconstructions from images, patch by patch, and what the autoencoder hears of it.

    critic:       hinge = (max(0, 1 - D(image)) + max(0, 1 + D(reconstruction))) / 2, and its regularisation
    autoencoder:  -weight D(reconstruction)

The critic has no batch statistics and no state, so every loss is one sample's own. What has a history (the weight of
its voice, the running means of what it says) changes between two steps, on all samples of the step, and is kept in the
stage's memory.
"""

import itertools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.layers import edge
from lab.randomness import seeded

LARGEST_WEIGHT = 1e4


class CriticConfig(Config):
    """A critic and when and how loudly it speaks.

    Attributes:
        width: channels of its first layer, doubled by every other up to eightfold.
        depth: strided convolutions; a patch is 9 2^depth - 2 pixels wide.
        start_step: before it neither player hears of the other.
        weight: of its voice in the autoencoder's loss.
        adaptive: whether ``weight`` counts relative to the reconstruction: the voice is scaled so that at weight 1 its
            gradient with respect to the reconstructed pixels was as large as theirs in the step before.
        lecam: weight of the squared distance of what it says of images from the running mean of what it says of
            reconstructions, and the other way round, which keeps it from being too sure where data is scarce.
        r1: weight of its squared gradient at the images, halved.
    """

    width: int = Field(64, ge=1)
    depth: int = Field(3, ge=1)
    start_step: int = Field(0, ge=0)
    weight: float = Field(0.5, ge=0)
    adaptive: bool = True
    lecam: float = Field(0.001, ge=0)
    r1: float = Field(0.0, ge=0)


class Critic(nn.Module):
    """Says of every patch of an image how real it looks.

    Args:
        config: its shape.

    It has no norm: one over a picture takes away how much fine detail there is, which is what reconstructions lack.

    Source: Isola et al. 2017, arXiv:1611.07004, the PatchGAN; there with batch norms.
    """

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**level, 8) for level in range(config.depth + 1)]
        layers: list[nn.Module] = [edge(nn.Conv2d(3, widths[0], 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        for level, (width, wider) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if level < config.depth else 1
            layers += [nn.Conv2d(width, wider, 4, stride, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, edge(nn.Conv2d(widths[-1], 1, 4, padding=1)))

    def forward(self, images: Tensor) -> Tensor:
        """Judge (b, 3, H, W) images: (b, patches), positive for real."""
        judgements: Tensor = rearrange(self.layers(images), "b 1 h w -> b (h w)").to(images.dtype)
        return judgements


def build(config: CriticConfig, seed: int) -> Critic:
    """Build a critic with initial weights drawn from the run's seed."""
    with seeded(seed, "weights/critic"):
        return Critic(config)


class Contest:
    """What a player of the name "critic" and the model that it judges have to do with each other; perhaps nothing.

    Args:
        config: when and how loudly the critic speaks; ``None`` where there is none, and nothing is added to any loss.
        seed: the run's, for the critic's initial weights.

    Attributes:
        players: "critic", new, or nothing.
        memory: all that is known of the steps before: "step", how many there were, and with a critic, in float64,
            "weight" of its voice (0 before its gradient was seen), "real" and "fake", running means of what it says.

    Source: Esser et al. 2021, arXiv:2012.09841, eq. 7, for the adaptive weight; with respect to the output rather than
    the last layer as in Défossez et al. 2022, arXiv:2210.13438, sec. 3.4, which makes it a sum over samples. Tseng et
    al. 2021, arXiv:2104.03310, eq. 4, for LeCam.
    """

    decay = 0.99

    def __init__(self, config: CriticConfig | None, seed: int) -> None:
        self.config = config
        self.players: dict[str, nn.Module] = {"critic": build(config, seed)} if config else {}
        known = ("weight", "real", "fake") if config else ()
        self.memory: Mapping[str, Tensor] = {
            "step": torch.zeros((), dtype=torch.int64),
            **{name: torch.zeros((), dtype=torch.float64) for name in known},
        }

    @property
    def step(self) -> int:
        """How many steps were made."""
        return int(self.memory["step"].item())

    @property
    def speaks(self) -> bool:
        """Whether there is a critic, and it is heard in this step."""
        return self.config is not None and self.step >= self.config.start_step

    @property
    def weight(self) -> float:
        """Of the critic's voice in this step."""
        if self.config is None:
            return 0.0
        return self.config.weight * (self.memory["weight"].item() if self.config.adaptive else 1.0)

    def heard(
        self, players: Mapping[str, nn.Module], losses: Tensor, reconstructions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the model's losses (b,) with what the critic says, and metrics of it.

        Args:
            players: as they are now, the critic among them, if there is one.
            losses: (b,), of the reconstructions alone.
            reconstructions: (b, 3, H, W), with a gradient.
        """
        if self.config is None:
            return losses, {}
        voice = -players["critic"](reconstructions).mean(dim=1) if self.speaks else torch.zeros_like(losses)
        metrics = {"voice": voice, "critic_weight": torch.full_like(losses, self.weight)}
        if self.config.adaptive:
            metrics |= {"pull_pixels": pull(losses, reconstructions), "pull_critic": pull(voice, reconstructions)}
        return losses + self.weight * voice, metrics

    def critic_loss(
        self, players: Mapping[str, nn.Module], images: Tensor, reconstruct: Callable[[], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the critic's loss (b,) and metrics, among them "real" and "fake": what it says of both.

        Args:
            players: as they are now.
            images: (b, 3, H, W).
            reconstruct: makes what the model makes of them; called without gradients, and not before the critic's first
                step: until then it rests, at a loss of 0.
        """
        assert self.config is not None
        if not self.speaks:
            nothing = images.new_zeros(len(images))
            return nothing, {"real": nothing, "fake": nothing}
        with torch.no_grad():
            reconstructions = reconstruct()
        config, critic = self.config, players["critic"]
        images = images.detach().requires_grad_(config.r1 > 0)
        with torch.set_grad_enabled(torch.is_grad_enabled() or config.r1 > 0):
            real, fake = critic(images), critic(reconstructions)
            losses = 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).mean(dim=1)
            anchors = (real - self.memory["fake"].item()).square() + (fake - self.memory["real"].item()).square()
            metrics = {"real": real.mean(dim=1), "fake": fake.mean(dim=1), "lecam": anchors.mean(dim=1)}
            if config.r1 > 0:
                (slope,) = torch.autograd.grad(real.mean(dim=1).sum(), images, create_graph=True)
                metrics["r1"] = slope.square().flatten(1).sum(dim=1)
                losses = losses + 0.5 * config.r1 * metrics["r1"]
        return losses + config.lecam * metrics["lecam"], metrics

    def learn(self, samples: Mapping[str, Tensor]) -> None:
        """Take in a step, and count it.

        Args:
            samples: of all its samples, where the critic spoke: "critic/real", "critic/fake", and where the weight is
                adaptive "pull_pixels" and "pull_critic", the squared gradients of both parts of the model's loss with
                respect to the reconstruction.
        """
        if self.config is not None and self.speaks:
            self._learn(samples, self.config.adaptive)
        self.memory["step"].add_(1)

    def _learn(self, samples: Mapping[str, Tensor], adaptive: bool) -> None:
        if adaptive:
            pixels, voice = (samples[f"pull_{name}"].double().sum() for name in ("pixels", "critic"))
            self.memory["weight"].copy_((pixels / voice.clamp(min=1e-24)).sqrt().clamp(max=LARGEST_WEIGHT))
        for name in ("real", "fake"):
            self.memory[name].lerp_(samples[f"critic/{name}"].double().mean().to(self.memory[name]), 1 - self.decay)


def pull(losses: Tensor, reconstructions: Tensor) -> Tensor:
    """Give the squared length (b,) of each loss's gradient with respect to its reconstruction; 0 where it has none."""
    if not losses.requires_grad:
        return torch.zeros_like(losses)
    (gradient,) = torch.autograd.grad(losses.sum(), reconstructions, retain_graph=True)
    return gradient.square().flatten(1).sum(dim=1)
