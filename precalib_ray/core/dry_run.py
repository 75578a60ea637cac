"""The passes of a run through its model, tried before the run begins.

What a model refuses depends on the mode and on the size of the batch: BatchNorm cannot train on
one value per channel, a backward pass fails where a forward pass does not, some models have another
output in training. So a dry run takes the engine's own step and the probes' own forward passes,
with the smallest and the largest batch that any rank gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from precalib_ray.core.engine import Engine, Optimization
from precalib_ray.core.head import select_trainable
from precalib_ray.core.models import Model
from precalib_ray.core.models.shapes import explain, needs_values, require_logits
from precalib_ray.core.probes import modes, predict
from precalib_ray.errors import SettingError

_LARGER = (2, 32)
"""Sizes of a worker's part of a step that are tried where a smaller one fails."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The sizes of the batches that a run puts through its model, over all ranks."""

    training: frozenset[int] = frozenset()
    """A worker's parts of a step."""
    probing: frozenset[int] = frozenset()
    """Chunks of ``predict``, in every BatchNorm mode."""
    evaluation: frozenset[int] = frozenset()
    """Chunks of ``predict``, with running statistics only."""
    num_workers: int = 1
    """The maximum."""


def dry_run(
    settings: Model,
    optimization: Optimization,
    batches: Batches,
    *,
    device: str = "meta",
    max_size: int | None = None,
) -> None:
    """Evaluate and train fresh copies of a network; the global generators keep their state.

    On the device ``meta`` nothing is computed, autocast is left out, and a pass that depends on
    values is taken to succeed. Elsewhere, outputs and loss must be finite. Nothing is compiled.

    Args:
        settings: the network.
        optimization: how it is trained.
        batches: the smallest is evaluated; the smallest and the largest are trained on.
        device: where.
        max_size: larger batches are tried with so many samples.

    Raises:
        SettingError: a pass fails; ``model`` is named, or the setting without which it does not.
    """
    model = settings.build(seed=0, device=device)
    for mode in modes(model):
        sizes = batches.probing | (batches.evaluation if mode == "running" else frozenset())
        for size in _ends(sizes, max_size)[:1]:
            failure = _failure(_evaluate, model, settings, size, mode, device)
            if failure is not None:
                reason = f"evaluation fails with {_samples(size)} at once: {failure}"
                raise SettingError("model", settings.architecture, reason)
    training = _Training(settings, optimization, batches.num_workers, device)
    for size in _ends(batches.training, max_size):
        failure = training.failure(size)
        if failure is not None:
            raise training.blame(size, failure)


@dataclass(frozen=True)
class _Training:
    """Training steps of fresh copies of a network, as one of several workers takes them."""

    settings: Model
    optimization: Optimization
    num_workers: int
    device: str

    def failure(self, size: int) -> str | None:
        """Why a step fails where a worker's part of it has so many samples; None if it does not."""
        return _failure(self._step, size)

    def blame(self, size: int, failure: str) -> SettingError:
        """The error that names the setting without which the step does not fail."""
        reason = f"training fails where a worker gets {_samples(size)}: {failure}"
        batch_size = self.optimization.batch_size
        for larger in _LARGER:
            if larger > size and self.failure(larger) is None:
                enough = larger * self.num_workers
                hint = str(enough) if enough > batch_size else ""
                return SettingError("batch_size", batch_size, reason, hint)
        for path, value, other in self._others():
            if other.failure(size) is None:
                return SettingError(path, value, reason)
        return SettingError("model", self.settings.architecture, reason)

    def _others(self) -> Iterator[tuple[str, object, _Training]]:
        """Path and value of a setting, and the same training without it."""
        optimization, compute = self.optimization, self.optimization.compute
        if self.num_workers > 1:
            yield "scaling.num_workers", self.num_workers, replace(self, num_workers=1)
        changes: list[tuple[str, object, Optimization]] = [
            ("trainable", optimization.trainable, replace(optimization, trainable="all"))
        ]
        for name, default in (("channels_last", False), ("precision", "fp32")):
            other = replace(optimization, compute=replace(compute, **{name: default}))  # type: ignore[arg-type]
            changes.append((f"compute.{name}", getattr(compute, name), other))
        for path, value, other in changes:
            if other != optimization:
                yield path, value, replace(self, optimization=other)

    def _step(self, size: int) -> None:
        """Compute the gradients of a worker's part of a step; raises what the model raises.

        Raises:
            ValueError: the output is not ``size`` logits, the loss is not finite, or several
                workers would wait for gradients that never come.
        """
        settings, compute = self.settings, replace(self.optimization.compute, compile=False)
        if self.device == "meta":  # which has no autocast
            compute = replace(compute, precision="fp32")
        model = settings.build(seed=0, device=self.device)
        select_trainable(model, settings, self.optimization.trainable)
        engine = Engine(
            model, replace(self.optimization, compute=compute), num_steps=1, device=self.device
        )
        model.train()
        if compute.sync_batch_norm and self.num_workers > 1:
            for layer in model.modules():  # its statistics are those of all workers together
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        shape = (size, settings.num_classes)

        def require(_model: nn.Module, _given: object, output: object) -> None:
            require_logits(output, shape)

        model.register_forward_hook(require)
        targets = torch.zeros(size, dtype=torch.int64)
        if not self.optimization.loss.takes_ids:
            targets = torch.full(shape, 1 / settings.num_classes)
        inputs = _inputs(settings, size, self.device)
        _require_finite(engine.differentiate(0, inputs, targets, batch_size=size), "loss")
        idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if idle and self.num_workers > 1:
            raise ValueError(
                f"workers wait for the gradient of every parameter, and {idle[0]}, one of "
                f"{len(idle)}, has none; leave these out of trainable"
            )


def _evaluate(model: nn.Module, settings: Model, size: int, mode: str, device: str) -> None:
    """Predict; raises ValueError if the output is not ``size`` finite logits."""
    logits = predict(model, _inputs(settings, size, device), mode=mode)
    _require_finite(require_logits(logits, (size, settings.num_classes)), "output")


def _inputs(settings: Model, size: int, device: str) -> Tensor:
    """Inputs, (size, *input_shape): uniform in [0, 1), which a model of nonnegative inputs takes,
    too; without values on the device ``meta``.
    """
    shape = (size, *settings.input_shape)
    if device == "meta":
        return torch.empty(shape, device=device)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _require_finite(values: Tensor, what: str) -> None:
    if not values.is_meta and not values.isfinite().all():
        raise ValueError(f"its {what} is NaN or infinite")


def _ends(sizes: frozenset[int], max_size: int | None) -> list[int]:
    """The smallest and the largest size."""
    ends = {min(sizes), max(sizes)} if sizes else set()
    return sorted({min(size, max_size or size) for size in ends})


def _failure(attempt: Callable[..., None], *args: object) -> str | None:
    """Why an attempt fails; None if it does not."""
    try:
        with torch.random.fork_rng(devices=[]):
            attempt(*args)
    except Exception as error:  # a model may raise anything
        return None if needs_values(error) else explain(error)
    return None


def _samples(size: int) -> str:
    return f"{size} sample" if size == 1 else f"{size} samples"
