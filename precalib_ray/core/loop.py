"""The loop around the training step, in both phases.

Everything that decides what happens (batches, evaluations, checkpoints, stops) is a function of the
step, so that an interrupted run that resumes from a checkpoint ends bit-identically. The only
exceptions are a limit in seconds and control signals; rank 0 decides for all ranks when to check
them.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from precalib_ray.core.engine import Engine
from precalib_ray.core.progress import E, Metrics, Progress
from precalib_ray.core.spec import plain
from precalib_ray.core.stopping import Duration
from precalib_ray.errors import DivergedError, InterruptedRunError

CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between checks of the losses, by device: on a GPU a check waits for the device."""

SIGNAL_EVERY_S = 1.0
"""Seconds between checks for a control signal."""

REPORT_EVERY_S = 0.25
"""Seconds between progress reports."""

Signal = Literal["", "save", "stop"]
"""A control signal: none; write a checkpoint now; write one and end."""


class Phase(ABC, Generic[E]):
    """A phase of training: batches, evaluations and stopping rule."""

    engine: Engine
    progress: Progress[E]
    batch_size: int
    """Samples of a global batch, over all ranks."""
    duration: Duration
    save_every: int | None
    """Steps between checkpoints."""

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, this rank's part."""

    @abstractmethod
    def evaluates_now(self) -> bool:
        """Whether to evaluate after the step just taken."""

    @abstractmethod
    def evaluate(self) -> E:
        """Evaluate the model; called on every rank."""


class Host(Generic[E]):
    """Callbacks of the training loop: checkpoints, reports, control signals.

    The defaults do nothing.
    """

    compares_ranks = False
    """Whether ``on_work`` is called, which requires timing every step; the same on every rank."""

    def save(self, progress: Progress[E]) -> str:
        """Write a checkpoint, on every rank; returns its name for messages."""
        return ""

    def on_evaluation(self, progress: Progress[E]) -> None:
        """Called on rank 0 after each evaluation; its time is not counted."""

    def on_progress(self, progress: Progress[E], metrics: Metrics) -> None:
        """Called on rank 0, at most every ``REPORT_EVERY_S`` seconds."""

    def on_work(self, seconds: list[float]) -> None:
        """Called on rank 0 before ``on_progress``, with the seconds that each rank has worked
        without waiting for another since the last call.
        """

    def signal(self) -> Signal:
        """The control signal; called every ``SIGNAL_EVERY_S`` seconds, on every rank after the same
        step, and the same on every rank.
        """
        return ""


def run(phase: Phase[E], host: Host[E] | None = None) -> Progress[E]:
    """Train until a limit is reached; returns ``phase.progress``, with the reason for stopping.

    Raises:
        DivergedError: a loss is not finite, or weights to be saved are not. Every rank
            raises it at the same step, and no checkpoint is written after that step.
        InterruptedRunError: the control signal was ``stop``, and a checkpoint is written.
    """
    host = host or Host()
    engine, progress = phase.engine, phase.progress
    batch_size, duration = phase.batch_size, phase.duration
    model = engine.model.train()
    num_steps = duration.num_steps(batch_size)
    check_every = CHECK_EVERY[engine.device.type]
    window = _Window(engine)
    clock = _Clock(progress)
    pending: list[Tensor] = []
    out_of_time, signaled = progress.stop_reason == "seconds", time.perf_counter()

    while True:
        progress.stop_reason = duration.stop_reason(
            step=progress.step, batch_size=batch_size, hits=progress.hits, out_of_time=out_of_time
        )
        if progress.stop_reason:
            break
        if host.compares_ranks:
            engine.work.start()
        inputs, targets = phase.batch(progress.step)
        pending.append(engine.step(progress.step, inputs, targets, batch_size=batch_size))
        progress.step += 1
        progress.samples += batch_size
        evaluate_now = phase.evaluates_now()
        save_now = phase.save_every is not None and progress.step % phase.save_every == 0
        signal: Signal = ""

        if len(pending) >= check_every or evaluate_now or save_now or progress.step == num_steps:
            over = duration.seconds is not None and clock.seconds() >= duration.seconds
            ask = time.perf_counter() - signaled >= SIGNAL_EVERY_S
            losses, (out_of_time, ask), work = _gather(pending, (over, ask), engine)
            pending.clear()
            _require_finite(losses, engine, progress)
            if ask:
                signal, signaled = host.signal(), time.perf_counter()
            window.add(losses, work)
            progress.loss_sum += sum(losses)
            progress.loss_steps += len(losses)

        if evaluate_now or save_now or signal:
            pause = clock.pause()
            _require_finite_weights(engine, progress)
            if evaluate_now:
                _evaluate(phase, progress)
                model.train()
                progress.evaluation_seconds += time.perf_counter() - pause
                if engine.rank == 0:
                    host.on_evaluation(progress)
            if save_now or signal:
                progress.last_good = host.save(progress)
            if signal == "stop":
                raise InterruptedRunError(progress.last_good)
            window.shift(clock.resume() - pause)
        if window.age() >= REPORT_EVERY_S:
            progress.seconds = clock.seconds()
            window.report(host, progress, batch_size)

    _require_finite_weights(engine, progress)
    progress.seconds = clock.seconds()
    window.report(host, progress, batch_size)
    return progress


class _Clock:
    """Seconds spent in training steps."""

    def __init__(self, progress: Progress[Any]) -> None:
        self._progress = progress
        self._before, self._mark = progress.seconds, time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._mark

    def pause(self) -> float:
        """Stop counting; returns the time."""
        self._progress.seconds = self.seconds()
        return time.perf_counter()

    def resume(self) -> float:
        """Count again; returns the time."""
        self._before, self._mark = self._progress.seconds, time.perf_counter()
        return self._mark


class _Window:
    """The steps since the last report."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._work: list[float] = []
        self._clear()

    def add(self, losses: list[float], work: list[float]) -> None:
        self._loss += sum(losses)
        self._steps += len(losses)
        self._work = [sum(seconds) for seconds in zip(self._work, work, strict=True)]

    def shift(self, seconds: float) -> None:
        """Exclude time without steps."""
        self._start += seconds

    def age(self) -> float:
        """Seconds since the last report; 0 without a step."""
        return time.perf_counter() - self._start if self._steps else 0.0

    def report(self, host: Host[Any], progress: Progress[Any], batch_size: int) -> None:
        if not self._steps:
            return
        metrics = Metrics(
            loss=self._loss / self._steps,
            learning_rate=self._engine.rate(progress.step - 1),
            samples_per_second=self._steps * batch_size / (time.perf_counter() - self._start),
        )
        if self._engine.rank == 0:
            if host.compares_ranks:
                host.on_work(self._work)
            host.on_progress(progress, metrics)
        self._clear()

    def _clear(self) -> None:
        self._loss, self._steps, self._start = 0.0, 0, time.perf_counter()
        self._work = [0.0] * self._engine.world_size


def _evaluate(phase: Phase[E], progress: Progress[E]) -> None:
    evaluation = phase.evaluate()
    progress.history.append(evaluation)
    progress.loss_sum, progress.loss_steps = 0.0, 0
    progress.evaluation_forwards += evaluation.num_forwards
    if phase.duration.until_deviation is not None:
        reached = float(evaluation.deviation <= phase.duration.until_deviation)
        if phase.engine.world_size > 1:  # rank 0 decides: other devices may round differently
            decision = torch.tensor(reached, device=phase.engine.device)
            dist.broadcast(decision, src=0)
            reached = float(decision)
        progress.hits = progress.hits + 1 if reached else 0


def _gather(
    pending: list[Tensor], flags: Sequence[bool], engine: Engine
) -> tuple[list[float], list[bool], list[float]]:
    """Mean losses of the pending steps, rank 0's flags, and seconds of work of each rank since the
    last call; the same on all ranks.
    """
    mine = [float(flag and engine.rank == 0) for flag in flags]
    work = [0.0] * engine.world_size
    work[engine.rank] = engine.work.take()
    values = torch.stack([*pending, *torch.tensor([*mine, *work], device=engine.device)])
    if engine.world_size > 1:
        dist.all_reduce(values)
    numbers = values.tolist()
    losses, rest = numbers[: len(pending)], numbers[len(pending) :]
    return losses, [flag > 0 for flag in rest[: len(flags)]], rest[len(flags) :]


def _require_finite(losses: list[float], engine: Engine, progress: Progress[Any]) -> None:
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            step = progress.step - len(losses) + index
            last = progress.last_good or "none was written yet"
            raise DivergedError(
                f"the loss became {loss} at step {step}, learning rate {engine.rate(step):.3g}; "
                f"last good checkpoint: {last}"
            )


def _require_finite_weights(engine: Engine, progress: Progress[Any]) -> None:
    """Check that the last step, whose loss was finite, left finite weights."""
    if all(bool(parameter.isfinite().all()) for parameter in engine.parameters):
        return
    step, last = progress.step - 1, progress.last_good or "none was written yet"
    raise DivergedError(
        f"the weights are not finite after step {step}, learning rate {engine.rate(step):.3g}; "
        f"last good checkpoint: {last}"
    )


def training_state(engine: Engine, progress: Progress[Any]) -> dict[str, Any]:
    """Optimizer and progress, as ``restore`` takes them: tensors and plain data."""
    return {"optimizer": engine.optimizer.state_dict(), "progress": plain(progress)}


def restore(engine: Engine, state: Mapping[str, Any], evaluation: type[E]) -> Progress[E]:
    """Fill the optimizer, and return the progress to resume from."""
    engine.optimizer.load_state_dict(state["optimizer"])
    progress: Progress[E] = Progress.restore(state["progress"], evaluation)
    return progress
