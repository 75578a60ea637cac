"""How far a classifier's confidence is from chance, over a panel of inputs without labels.

Confidence is c(x) = max_k p_k(x). The initial-confidence deviation on a probe P is
d(P) = mean over P of c(x) - 1/K, in [0, 1 - 1/K]; the headline is the largest over the panel and
over both BatchNorm modes (DESIGN: running statistics, and those of the batch).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from precalib_ray.core import noise as noises
from precalib_ray.core.seeding import mix

CHUNK = 64
"""Samples that go through the model at once; with batch statistics, the batch they are of."""


@dataclass(frozen=True)
class Probe:
    """Inputs (N, *input_shape), float32. What is held out is measured, and stops nothing."""

    name: str
    inputs: Tensor
    held_out: bool = False


@dataclass(frozen=True)
class Measurement:
    """One probe in one BatchNorm mode, ``running`` or ``batch``."""

    probe: str
    mode: str
    deviation: float
    class_bias: float
    classes: list[float]
    """How often each class is the answer, (K,), summing to 1."""


@dataclass(frozen=True)
class PanelResult:
    """All measurements of a model."""

    measurements: list[Measurement]
    num_forwards: int
    """Samples pushed through the model."""

    @property
    def worst(self) -> Measurement:
        """The measurement with the largest deviation."""
        return max(self.measurements, key=lambda m: m.deviation)

    @property
    def deviation(self) -> float:
        """The headline: the largest deviation."""
        return self.worst.deviation

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``metrics.json``."""
        return {
            "deviation": self.deviation,
            "worst": f"{self.worst.probe}/{self.worst.mode}",
            "measurements": [asdict(m) for m in self.measurements],
        }


def confidence(logits: Tensor) -> Tensor:
    """The largest softmax probability, (N,) float64, of logits (N, K)."""
    return logits.double().softmax(-1).amax(-1)


def class_bias(probabilities: Tensor) -> float:
    """How uneven the mean prediction is: 1 - H(mean p) / log K, in [0, 1], of p (N, K)."""
    mean = probabilities.double().mean(0)
    entropy = -torch.special.xlogy(mean, mean).sum()
    bias = 1 - entropy / torch.log(torch.tensor(float(mean.numel()), dtype=torch.float64))
    return float(bias.clamp(0, 1))


def noise_probe(
    name: str,
    spec: Mapping[str, Any],
    *,
    size: int,
    input_shape: Sequence[int],
    seed: int,
    held_out: bool = False,
) -> Probe:
    """A seeded probe of noise, drawn on the CPU and so the same on every machine."""
    generator = torch.Generator().manual_seed(mix(seed, zlib.crc32(name.encode())))
    return Probe(name, noises.draw(spec, (size, *input_shape), generator=generator), held_out)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers, synchronized ones included, that have running statistics to differ."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


@contextlib.contextmanager
def evaluation(model: nn.Module, mode: str = "running") -> Iterator[None]:
    """Evaluation mode, with BatchNorm on its ``running`` statistics or on those of the ``batch``.

    Neither changes the running statistics, and every module's mode is restored at the end.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = batch_norms(model) if mode == "batch" else []
    model.eval()
    for norm in norms:
        norm.training = True
        norm.track_running_stats = False  # the layer then passes no buffers to be updated
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in modes:
            module.training = training


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, mode: str = "running") -> Tensor:
    """Logits (N, K) float32 of inputs (N, *input_shape), in chunks of nearly equal size."""
    device = next(model.parameters()).device
    with evaluation(model, mode):
        chunks = inputs.tensor_split(-(-len(inputs) // CHUNK))
        return torch.cat([model(chunk.to(device, non_blocking=True)).float() for chunk in chunks])


def _modes(model: nn.Module) -> tuple[str, ...]:
    return ("running", "batch") if batch_norms(model) else ("running",)


class Panel:
    """A set of probes."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        """Names must differ."""
        self.probes = list(probes)

    def seen(self, limit: int | None) -> list[tuple[str, Tensor]]:
        """Names and inputs that ``measure`` takes with this limit."""
        return [
            (probe.name, probe.inputs[:limit])
            for probe in self.probes
            if limit is None or not probe.held_out
        ]

    def num_forwards(self, model: nn.Module, *, limit: int | None = None) -> int:
        """Samples that ``measure`` pushes through the model."""
        return len(_modes(model)) * sum(len(inputs) for _, inputs in self.seen(limit))

    def measure(self, model: nn.Module, *, limit: int | None = None) -> PanelResult:
        """Measure every probe in every BatchNorm mode; models without BatchNorm have one.

        Args:
            limit: take so many samples of each probe, and leave out those that are held out: what
                a stopping rule may see.
        """
        measurements = []
        for name, inputs in self.seen(limit):
            for mode in _modes(model):
                probabilities = predict(model, inputs, mode=mode).double().softmax(-1)
                num_classes = probabilities.shape[1]
                answers = probabilities.argmax(-1).bincount(minlength=num_classes)
                measurements.append(
                    Measurement(
                        probe=name,
                        mode=mode,
                        deviation=float(probabilities.amax(-1).mean()) - 1 / num_classes,
                        class_bias=class_bias(probabilities),
                        classes=(answers.double() / len(inputs)).tolist(),
                    )
                )
        return PanelResult(measurements, self.num_forwards(model, limit=limit))
