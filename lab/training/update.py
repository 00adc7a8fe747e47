"""One optimizer step of one player: exact, whatever the micro-batches and processes, or not made at all.

    gradient = sum over the step's samples of d loss_i / batch
             = sum over processes of (sum over micro-batches of (sum over samples))

Each process adds up the gradient of its own samples; then they are exchanged once. When memory runs out on one of them,
all begin the step again with half the micro-batch.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lab.data.loader import Batch, Loader
from lab.errors import NonFinite, OutOfMemory, Refused
from lab.randomness import seed_torch
from lab.runtime import Runtime
from lab.training.config import TrainConfig
from lab.training.optimizer import build, clip, norm_of_gradients, set_rates
from lab.training.sharding import exchange_gradients
from lab.training.stage import Stage

log = logging.getLogger(__name__)

SCALE, SCALE_GROWS_AFTER = (
    2.0**16,
    2000,
)  # of the losses in fp16; halved where a gradient overflows, doubled after so many


@dataclass(frozen=True)
class Update:
    """What came of an update.

    Attributes:
        samples: loss (batch,) and metrics (batch, ...) of each of the step's samples, by name.
        gradient_norm: before clipping.
        made: whether the weights were changed; ``False`` where it was skipped.
    """

    samples: Mapping[str, Tensor]
    gradient_norm: Tensor
    made: bool


class Updater:
    """Makes the updates of a stage's players.

    Args:
        stage: what is trained; its players are where they compute.
        loader: gives the samples of slots once more, for messages.
        runtime: where it runs, and with whom.
        config: how.

    Attributes:
        stage: what is trained.
        optimizers: of each player.
        micro_batch: samples per pass now.
        loss_scale: what losses are multiplied by before the way back; 1 but for fp16.
        skipped: updates left out in a row.
    """

    def __init__(self, stage: Stage, loader: Loader, runtime: Runtime, config: TrainConfig) -> None:
        if config.batch < runtime.world.size:
            raise Refused(
                f"train.batch={config.batch} gives some of {runtime.world.size} processes no sample: raise it"
            )
        if config.shard and config.batch % runtime.world.size:
            raise Refused(f"train.shard needs a train.batch that {runtime.world.size} processes share evenly")
        passes = len(config.windows(-(-config.batch // runtime.world.size)))
        if stage.needs_whole_batch and passes > 1:
            raise Refused(
                f"train.micro_batch={config.micro_batch} makes a step in {passes} passes, but the loss of this stage "
                "compares every sample of the step with every other: set train.micro_batch=0, or lower train.batch"
            )
        self.stage, self._loader, self._runtime, self._config = stage, loader, runtime, config
        arithmetic = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        self.optimizers = {name: build(player, config.optimizer, arithmetic) for name, player in stage.players.items()}
        self.micro_batch = max(config.windows(len(runtime.world.share(config.batch))))
        self.loss_scale = SCALE if runtime.precision == "fp16" else 1.0
        self.skipped = 0
        self._good = 0  # updates since the scale changed

    def state(self) -> dict[str, Any]:
        """Give what has a history, as JSON values."""
        memory = {"micro_batch": self.micro_batch} if self.micro_batch < max(self._sizes()) else {}
        scale = {"loss_scale": self.loss_scale, "good": self._good} if self._runtime.precision == "fp16" else {}
        return {"skipped": self.skipped, **memory, **scale}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.skipped = int(state.get("skipped", 0))
        self.micro_batch = min(self.micro_batch, int(state.get("micro_batch", self.micro_batch)))
        if self._runtime.precision == "fp16":
            self.loss_scale, self._good = float(state.get("loss_scale", SCALE)), int(state.get("good", 0))

    def __call__(self, name: str, window: Sequence[Batch], step: int, factor: float) -> Update:
        """Make step ``step``, counted from 0, of a player.

        Args:
            name: of the player.
            window: this process's samples of the step, on the device.
            step: for messages.
            factor: share of the peak rates.

        Raises:
            NonFinite: a loss or a gradient is not, and the run is to stop then; weights and moments are as before.
            OutOfMemory: memory does not suffice for a single sample.
        """
        player, world, config = self.stage.players[name], self._runtime.world, self._config
        own = self._gradient(name, window)
        samples = {metric: world.gather(values, config.batch) for metric, values in own.items()}
        gradients = [parameter.grad for parameter in player.parameters() if parameter.grad is not None]
        if not config.shard:
            world.sum_(gradients)
        if gradients and self.loss_scale != 1:  # a player that rests has none
            torch._foreach_mul_(gradients, 1 / self.loss_scale)
        norm = norm_of_gradients(player.parameters())
        if not (norm.isfinite() & samples["loss"].isfinite().all()):  # one look for both: a GPU is waited for
            self._leave_out(name, samples["loss"], step)
            return Update(samples, norm, made=False)
        clip(player.parameters(), config.optimizer.clip, norm)
        set_rates(self.optimizers[name], factor)
        for optimizer in self.optimizers[name]:
            optimizer.step()
        self.skipped, self._good = 0, self._good + 1
        if self._runtime.precision == "fp16" and self._good >= SCALE_GROWS_AFTER:
            self.loss_scale, self._good = 2 * self.loss_scale, 0
        return Update(samples, norm, made=True)

    def _sizes(self) -> list[int]:
        return self._config.windows(len(self._runtime.world.share(self._config.batch)))

    def _gradient(self, name: str, window: Sequence[Batch]) -> dict[str, Tensor]:
        """Add up the gradient of this process's samples, in smaller passes if memory runs out; give what each said."""
        while True:
            try:
                samples, problem = self._accumulate(name, window), None
            except torch.OutOfMemoryError as error:
                samples, problem = {}, str(error).splitlines()[0]
                if self.stage.needs_whole_batch:  # the others wait within their passes: nobody begins again
                    raise OutOfMemory(
                        f"memory ran out ({problem}), and the loss of this stage needs the whole batch at once: "
                        "lower train.batch, or share it among more processes"
                    ) from error
            if not self._runtime.world.largest(int(problem is not None)):
                return samples
            if self._config.shard and self._runtime.world.size > 1:
                raise OutOfMemory(
                    f"memory ran out ({problem}): with train.shard a step cannot begin again; set train.micro_batch="
                    f"{(self.micro_batch + 1) // 2} or runtime.recompute=true, and the same command goes on"
                )
            if self.micro_batch == 1:
                raise OutOfMemory(
                    f"memory does not suffice for a single sample ({problem or 'on another process'}): "
                    "set runtime.recompute=true, or choose a smaller network or smaller images"
                )
            self.stage.players[name].zero_grad(set_to_none=True)
            if self._runtime.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch = (self.micro_batch + 1) // 2
            log.warning(
                "memory ran out (%s); the step begins again with train.micro_batch=%d, and so do those to come",
                problem or "on another process",
                self.micro_batch,
            )

    def _accumulate(self, name: str, window: Sequence[Batch]) -> dict[str, Tensor]:
        player = self.stage.players[name]
        player.train()
        player.zero_grad(set_to_none=True)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        world, is_sharded = self._runtime.world, self._config.shard
        scale = self.loss_scale * (world.size if is_sharded else 1)  # shards take the mean over processes
        passes = [part for whole in window for part in whole.split(self.micro_batch)]
        for k, batch in enumerate(passes, start=1):
            exchange_gradients(player, now=k == len(passes))
            seed_torch(batch.seed, f"dropout/{name}", batch.slots[0])
            with self._runtime.autocast():
                losses, metrics = self.stage.loss(name, batch)
            if losses.requires_grad or name == "model":  # or another player rests in this step
                (losses.sum() * (scale / self._config.batch)).backward()
            for metric, values in {"loss": losses, **metrics}.items():
                parts[metric].append(values.detach())
        return {metric: torch.cat(values) for metric, values in parts.items()}

    def _leave_out(self, name: str, losses: Tensor, step: int) -> None:
        """Count an update that cannot be made.

        Raises:
            NonFinite: it is one too many.
        """
        config, self.skipped = self._config, self.skipped + 1
        overflow = self.loss_scale > 1 and bool(losses.isfinite().all())  # no fault of the run: fp16 ends at 65,504
        if overflow:
            self.loss_scale, self._good = self.loss_scale / 2, 0
        reason = f"step {step + 1}: {self._explain(name, losses, step)}"
        if self.skipped > (config.max_skipped if overflow or config.on_nonfinite == "skip" else 0):
            raise NonFinite(f"{reason}; nothing of it is kept")
        scale = f"; losses are now scaled by {self.loss_scale:g}" if overflow else ""
        log.warning("%s; this update is left out (%d in a row)%s", reason, self.skipped, scale)

    def _explain(self, name: str, losses: Tensor, step: int) -> str:
        """Say which samples' loss is not finite, and in which module that begins; or which parameter's gradient."""
        bad = [step * self._config.batch + i for i, fine in enumerate(losses.isfinite().tolist()) if not fine]
        if not bad:
            parameters = self.stage.players[name].named_parameters()
            first = next(
                (key for key, p in parameters if p.grad is not None and not p.grad.isfinite().all()), "its norm"
            )
            return f"the gradient of {name!r} is not finite (first in {first}), though the loss of every sample is"
        parts = self._loader.parts(bad[:4])
        ids = ", ".join(id for part in parts for id in part.ids)
        module = self._first_non_finite(name, parts[0].with_images(self._runtime.batch(parts[0].images)))
        more = f" and {len(bad) - 4} more" if bad[4:] else ""
        return f"the loss of {name!r} is not finite for {ids}{more} (first in {module})"

    def _first_non_finite(self, name: str, batch: Batch) -> str:
        """Name the first module of the player whose output is not finite, in the order in which they compute."""
        found: list[str] = []

        def look(module_name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if isinstance(output, Tensor) and not output.isfinite().all():
                    found.append(module_name)

            return hook

        player = self.stage.players[name]
        hooks = [module.register_forward_hook(look(key)) for key, module in player.named_modules() if key]
        try:
            with torch.no_grad(), self._runtime.autocast():
                self.stage.loss(name, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else "the loss itself"
