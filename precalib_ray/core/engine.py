"""The training step of both phases, and the loop around it.

Everything that decides what happens (batches, evaluations, checkpoints, stops) is a function of the
step, so that an interrupted run that goes on from a checkpoint ends with the same bits. The only
exceptions are a limit in seconds and calls from outside, when to look for which rank 0 decides for
all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from precalib_ray.core import models
from precalib_ray.core.losses import loss_sum
from precalib_ray.core.optimizers import build_optimizer, learning_rate
from precalib_ray.core.seeding import DROPOUT, mix
from precalib_ray.errors import DivergedError, InterruptedRunError

CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between looks at the losses, by device: on a GPU a look waits for the device."""


LOOK_EVERY_S = 1.0
"""Seconds between looks for a call from outside."""

Call = Literal["", "save", "stop"]
"""From outside, to a run: nothing; write a checkpoint now; write one and end."""


def world() -> tuple[int, int]:
    """Rank and number of the processes that train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Engine:
    """A model, its optimizer and how a step is computed.

    With an initialized process group of several ranks the model is wrapped for distributed data
    parallel training; ``model`` stays the module itself.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        optimizer: Mapping[str, Any],
        loss: Mapping[str, Any],
        schedule: Mapping[str, Any],
        num_steps: int | None,
        seed: int,
        trainable: str | Sequence[str] = "all",
        precision: str = "fp32",
        channels_last: bool = False,
        compile_model: bool = False,
        clip_norm: float | None = None,
        sync_batch_norm: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """``num_steps`` is where the schedule ends; ``precision`` is fp32, or bf16 for autocast."""
        self.device = torch.device(device)
        self.rank, self.world_size = world()
        if sync_batch_norm and self.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        model = model.to(self.device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        models.select_trainable(model, num_classes, trainable)
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(optimizer, self.parameters)
        self._forward: Callable[[Tensor], Tensor] = model
        if self.world_size > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self._forward = DistributedDataParallel(model, device_ids=ids)
        if compile_model:
            self._forward = torch.compile(self._forward)
        self._loss, self._schedule = dict(loss), dict(schedule)
        self._base_rate, self._num_steps = float(optimizer["lr"]), num_steps
        self._seed, self._clip_norm = seed, clip_norm
        self._bf16, self._channels_last = precision == "bf16", channels_last
        self.work = Stopwatch(self.device)
        """Time of the parts of steps that wait for no other rank: drawing a batch, and forward."""

    @classmethod
    def of_job(
        cls,
        model: nn.Module,
        config: Mapping[str, Any],
        *,
        num_classes: int,
        num_steps: int | None,
        device: torch.device | str,
    ) -> Engine:
        """The engine that the resolved config of a job, of either phase, asks for."""
        compute = config["compute"]
        return cls(
            model,
            num_classes=num_classes,
            optimizer=config["optimizer"],
            loss=config["loss"],
            schedule=config["schedule"],
            num_steps=num_steps,
            seed=config["seed"],
            trainable=config["trainable"],
            precision=compute["precision"],
            channels_last=compute["channels_last"],
            compile_model=compute["compile"],
            clip_norm=compute["clip_norm"],
            sync_batch_norm=compute["sync_batch_norm"],
            device=device,
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(self._schedule, self._base_rate, step, self._num_steps)

    def step(self, step: int, inputs: Tensor, targets: Tensor, *, batch_size: int) -> Tensor:
        """One step on this rank's part of a global batch of ``batch_size`` samples.

        Returns:
            This rank's part of the batch's mean loss, (), on the device: the parts sum to the mean.
        """
        # Dropout draws from the global generators; seeded by the step, they are no state to save.
        seed = mix(self._seed, DROPOUT, step, self.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        inputs = inputs.to(self.device, non_blocking=True)
        if self._channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self._forward(inputs)
        loss = loss_sum(self._loss, logits, targets.to(self.device, non_blocking=True))
        loss = loss / batch_size
        self.work.stop()
        # Gradients are averaged over ranks, whose parts may differ in size: scale to a sum.
        (loss * self.world_size if self.world_size > 1 else loss).backward()  # type: ignore[no-untyped-call]
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self._clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Stopwatch:
    """Sums stretches of time on a device, without making the host wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._begun: Any = None
        self._stretches: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin a stretch."""
        self._begun = self._now()

    def stop(self) -> None:
        """End the stretch that was begun, if there is one."""
        if self._begun is not None:
            self._stretches.append((self._begun, self._now()))
        self._begun = None

    def take(self) -> float:
        """Seconds since the last call."""
        stretches, self._stretches = self._stretches, []
        if self._cuda and stretches:
            stretches[-1][1].synchronize()
            return float(sum(begun.elapsed_time(ended) for begun, ended in stretches)) / 1000
        return float(sum(ended - begun for begun, ended in stretches))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@dataclass
class Progress:
    """Where a run is: all that must be saved besides weights and optimizer."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    """Spent in training steps."""
    evaluation_seconds: float = 0.0
    evaluation_forwards: int = 0
    """Samples pushed through the model by evaluations: for a cost, three are one trained on."""
    loss_sum: float = 0.0
    loss_steps: int = 0
    """Sum and number of the losses since the last evaluation."""
    hits: int = 0
    """Evaluations in a row at or below the deviation to reach."""
    last_good: str = ""
    """The checkpoint written last."""
    stop_reason: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    """What evaluations returned, each with its step."""

    @property
    def mean_loss(self) -> float | None:
        """Mean training loss since the last evaluation, if there was a step."""
        return self.loss_sum / self.loss_steps if self.loss_steps else None


@dataclass(frozen=True)
class Limits:
    """What ends a run, whichever comes first; None is no limit."""

    steps: int | None = None
    samples: int | None = None
    seconds: float | None = None
    until_deviation: float | None = None
    patience: int = 1
    """Evaluations in a row that must reach ``until_deviation``."""

    def num_steps(self, batch_size: int) -> int | None:
        """The last step that the limits in steps and samples allow."""
        ends = [self.steps, None if self.samples is None else -(-self.samples // batch_size)]
        return min((end for end in ends if end is not None), default=None)


def run(
    engine: Engine,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    limits: Limits,
    progress: Progress | None = None,
    evaluate: Callable[[Progress], dict[str, Any]] | None = None,
    evaluate_at: Callable[[Progress], bool] = lambda progress: False,
    on_evaluation: Callable[[Progress], None] | None = None,
    save: Callable[[Progress], str] | None = None,
    save_every: int | None = None,
    on_progress: Callable[[Progress, dict[str, float]], None] | None = None,
    on_work: Callable[[list[float]], None] | None = None,
    call: Callable[[], Call] | None = None,
    report_every_s: float = 0.25,
) -> Progress:
    """Train until a limit is reached.

    Args:
        engine: the step.
        batch: this rank's inputs and targets of a step.
        batch_size: samples of a global batch.
        limits: when to stop.
        progress: where to go on from; the engine's weights and optimizer must be of that step.
        evaluate: called on every rank; what it returns is kept in the history, and its
            ``deviation`` is what ``until_deviation`` waits for, its ``num_forwards`` counted.
        evaluate_at: whether to evaluate after the step just taken.
        on_evaluation: called on rank 0 after an evaluation, which is the last of the history; its
            time is not counted.
        save: writes a checkpoint, and returns its name for messages; called on every rank.
        save_every: steps between checkpoints.
        on_progress: called on rank 0, at most every ``report_every_s`` seconds, with loss,
            learning rate and samples per second since the last call.
        on_work: called on rank 0 before ``on_progress``, with the seconds that each rank has
            worked without waiting for another since the last call; given on every rank or none.
        call: what is asked for from outside; called every ``LOOK_EVERY_S`` seconds, on every rank
            after the same step, and must return the same on every rank. A ``save`` is answered
            even where ``save_every`` is None.

    Returns:
        The progress at the end, with the reason for stopping.

    Raises:
        DivergedError: a loss is not finite, or weights that are to be kept are not. Every rank
            raises it at the same step, and no checkpoint is written after that step.
        InterruptedRunError: ``call`` asked for the end, and a checkpoint is written.
    """
    progress = progress or Progress()
    model = engine.model.train()
    num_steps = limits.num_steps(batch_size)
    check_every = CHECK_EVERY[engine.device.type]
    waiting: list[Tensor] = []
    window_loss, window_steps, window_start = 0.0, 0, time.perf_counter()
    out_of_time = False
    worked, looked = [0.0] * engine.world_size, time.perf_counter()
    before, mark = progress.seconds, time.perf_counter()

    def elapsed() -> float:
        return before + time.perf_counter() - mark

    def report() -> None:
        nonlocal window_loss, window_steps, window_start
        now = time.perf_counter()
        progress.seconds = elapsed()
        if on_work is not None and engine.rank == 0:
            on_work(worked.copy())
        worked[:] = [0.0] * len(worked)
        if on_progress is not None and engine.rank == 0:
            metrics = {
                "loss": window_loss / window_steps,
                "learning_rate": engine.rate(progress.step - 1),
                "samples_per_second": window_steps * batch_size / (now - window_start),
            }
            on_progress(progress, metrics)
        window_loss, window_steps, window_start = 0.0, 0, time.perf_counter()

    while True:
        if progress.hits >= limits.patience and limits.until_deviation is not None:
            progress.stop_reason = "until_deviation"
        elif num_steps is not None and progress.step >= num_steps:
            by_samples = limits.steps is None or num_steps < limits.steps
            progress.stop_reason = "samples" if by_samples else "steps"
        elif out_of_time:
            progress.stop_reason = "seconds"
        if progress.stop_reason:
            break

        if on_work is not None:
            engine.work.start()
        inputs, targets = batch(progress.step)
        waiting.append(engine.step(progress.step, inputs, targets, batch_size=batch_size))
        progress.step += 1
        progress.samples += batch_size
        evaluate_now = evaluate is not None and evaluate_at(progress)
        save_now = save_every is not None and progress.step % save_every == 0
        last = progress.step == num_steps
        called: Call = ""

        if len(waiting) >= check_every or evaluate_now or save_now or last:
            over = limits.seconds is not None and elapsed() >= limits.seconds
            look = call is not None and time.perf_counter() - looked >= LOOK_EVERY_S
            losses, (out_of_time, look), work = _gather(waiting, (over, look), engine)
            worked = [sum(seconds) for seconds in zip(worked, work, strict=True)]
            _require_finite(losses, engine, progress)
            if look and call is not None:
                called, looked = call(), time.perf_counter()
                save_now = save_now or bool(called)
            window_loss += sum(losses)
            window_steps += len(losses)
            progress.loss_sum += sum(losses)
            progress.loss_steps += len(losses)
            waiting.clear()

        if evaluate_now or save_now:
            progress.seconds = elapsed()
            pause = time.perf_counter()
            _require_finite_weights(engine, progress)
            if evaluate_now and evaluate is not None:
                _evaluate(evaluate, progress, limits, engine)
                model.train()
                progress.evaluation_seconds += time.perf_counter() - pause
                if on_evaluation is not None and engine.rank == 0:
                    on_evaluation(progress)
            if save_now and save is not None:
                progress.last_good = save(progress)
            if called == "stop":
                raise InterruptedRunError(progress.last_good)
            before, mark = progress.seconds, time.perf_counter()
            window_start += mark - pause
        if window_steps and time.perf_counter() - window_start >= report_every_s:
            report()

    _require_finite_weights(engine, progress)
    if window_steps:
        report()
    progress.seconds = elapsed()
    return progress


def _evaluate(
    evaluate: Callable[[Progress], dict[str, Any]],
    progress: Progress,
    limits: Limits,
    engine: Engine,
) -> None:
    record = {"step": progress.step, "samples": progress.samples} | evaluate(progress)
    progress.history.append(record)
    progress.loss_sum, progress.loss_steps = 0.0, 0
    progress.evaluation_forwards += int(record.get("num_forwards", 0))
    if limits.until_deviation is not None:
        reached = float(record["deviation"] <= limits.until_deviation)
        if engine.world_size > 1:  # rank 0 decides: another kind of device may round otherwise
            decision = torch.tensor(reached, device=engine.device)
            dist.broadcast(decision, src=0)
            reached = float(decision)
        progress.hits = progress.hits + 1 if reached else 0


def _gather(
    waiting: list[Tensor], flags: Sequence[bool], engine: Engine
) -> tuple[list[float], list[bool], list[float]]:
    """Mean losses of the waiting steps, rank 0's flags, and seconds of work of each rank since the
    last call; as all ranks see them.
    """
    told = [float(flag and engine.rank == 0) for flag in flags]
    work = [0.0] * engine.world_size
    work[engine.rank] = engine.work.take()
    values = torch.stack([*waiting, *torch.tensor([*told, *work], device=engine.device)])
    if engine.world_size > 1:
        dist.all_reduce(values)
    numbers = values.tolist()
    losses, rest = numbers[: len(waiting)], numbers[len(waiting) :]
    return losses, [flag > 0 for flag in rest[: len(flags)]], rest[len(flags) :]


def _require_finite(losses: list[float], engine: Engine, progress: Progress) -> None:
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            step = progress.step - len(losses) + index
            last = progress.last_good or "none was written yet"
            raise DivergedError(
                f"the loss became {loss} at step {step}, learning rate {engine.rate(step):.3g}; "
                f"last good checkpoint: {last}"
            )


def _require_finite_weights(engine: Engine, progress: Progress) -> None:
    """See that the last step, whose loss was finite, did not spoil the weights."""
    if all(bool(parameter.isfinite().all()) for parameter in engine.parameters):
        return
    step, last = progress.step - 1, progress.last_good or "none was written yet"
    raise DivergedError(
        f"the weights are not finite after step {step}, learning rate {engine.rate(step):.3g}; "
        f"last good checkpoint: {last}"
    )


def training_state(engine: Engine, progress: Progress) -> dict[str, Any]:
    """Optimizer and progress, as ``restore`` takes them: tensors and plain data."""
    return {"optimizer": engine.optimizer.state_dict(), "progress": asdict(progress)}


def restore(engine: Engine, state: Mapping[str, Any]) -> Progress:
    """Fill the optimizer, and return the progress to go on from."""
    engine.optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
