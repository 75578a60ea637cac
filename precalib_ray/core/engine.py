"""The training step of both phases."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from precalib_ray.core.lazy import torch
from precalib_ray.core.losses import CrossEntropy, Loss
from precalib_ray.core.optimizers import Adam, Optimizer, Schedule
from precalib_ray.core.seeding import DROPOUT, mix
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Compute(Section):
    """How a step is computed."""

    precision: Literal["fp32", "bf16"] = setting(
        "fp32", description="bf16 is autocast; CPUs that only emulate it are slower with it"
    )
    channels_last: bool = setting(False, description="use the channels_last memory format")
    compile: bool = setting(False, description="torch.compile")
    clip_norm: float | None = setting(None, gt=0, description="gradient-norm clipping threshold")
    sync_batch_norm: bool = setting(False, description="synchronize BatchNorm across workers")


@dataclass(frozen=True, kw_only=True)
class Optimization(Section):
    """Settings common to both phases of training."""

    seed: int = setting(0, ge=0, lt=2**63, description="seed of everything random")
    batch_size: int = setting(128, ge=1, description="samples per step, over all workers")
    compute: Compute = setting(Compute(), description="how a step is computed")
    trainable: Literal["all", "head"] | list[str] = setting(
        "all", description="parameters to train: all, head, or patterns of their names"
    )
    optimizer: Optimizer = setting(Adam(), description="optimizer")
    schedule: Schedule = setting(Schedule(), description="learning-rate schedule")
    loss: Loss = setting(CrossEntropy(), description="loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainable == []:
            raise SettingError("trainable", [], "must hold at least one pattern")


def world() -> tuple[int, int]:
    """Rank and number of the processes that train together."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Engine:
    """A model, its optimizer and the computation of a step.

    With an initialized process group of several ranks the model is wrapped for distributed data
    parallel training; ``model`` stays the module itself.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimization,
        *,
        num_steps: int | None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``num_steps`` is where the learning-rate schedule ends; frozen parameters stay frozen."""
        self.settings, self.device = settings, torch.device(device)
        self.rank, self.world_size = world()
        compute = settings.compute
        if compute.sync_batch_norm and self.world_size > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        model = model.to(self.device)
        if compute.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = settings.optimizer.build(self.parameters)
        self._num_steps = num_steps
        self._forward: Callable[[Tensor], Tensor] = model
        if self.world_size > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self._forward = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
        if compute.compile:
            self._forward = torch.compile(self._forward)
        self.work = Stopwatch(self.device)
        """Time of the parts of a step that wait for no other rank: drawing a batch, and forward."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.settings.schedule.rate(self.settings.optimizer.lr, step, self._num_steps)

    def step(self, step: int, inputs: Tensor, targets: Tensor, *, batch_size: int) -> Tensor:
        """One step on this rank's part of a global batch of ``batch_size`` samples.

        Returns:
            As ``differentiate``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        loss = self.differentiate(step, inputs, targets, batch_size=batch_size)
        clip_norm = self.settings.compute.clip_norm
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def differentiate(
        self, step: int, inputs: Tensor, targets: Tensor, *, batch_size: int
    ) -> Tensor:
        """Compute the gradients of a step.

        Returns:
            This rank's part of the batch's mean loss, (), on the device: the parts sum to the mean.
        """
        compute = self.settings.compute
        # Dropout draws from the global generators; seeded by the step, they need not be saved.
        seed = mix(self.settings.seed, DROPOUT, step, self.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        inputs = inputs.to(self.device, non_blocking=True)
        if compute.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        bf16 = compute.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()
        with autocast:
            logits = self._forward(inputs)
        targets = targets.to(self.device, non_blocking=True)
        loss = self.settings.loss.sum(logits.float(), targets) / batch_size
        self.work.stop()
        # Gradients are averaged over ranks, whose parts may differ in size: scale to a sum.
        (loss * self.world_size if self.world_size > 1 else loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class Stopwatch:
    """Sums intervals of time on a device, without synchronizing the host with it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._started: Any = None
        self._intervals: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin an interval."""
        self._started = self._now()

    def stop(self) -> None:
        """End the interval that was begun, if any."""
        if self._started is not None:
            self._intervals.append((self._started, self._now()))
        self._started = None

    def take(self) -> float:
        """Seconds since the last call."""
        intervals, self._intervals = self._intervals, []
        if self._cuda and intervals:
            intervals[-1][1].synchronize()
            return float(sum(start.elapsed_time(stop) for start, stop in intervals)) / 1000
        return float(sum(stop - start for start, stop in intervals))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
