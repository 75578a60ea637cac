"""Deviation of a classifier's confidence from chance, over a panel of inputs without labels.

Confidence is c(x) = max_k p_k(x). The initial-confidence deviation on a probe P is
d(P) = mean over P of c(x) - 1/K, in [0, 1 - 1/K]; the headline is the largest over the panel and
over both BatchNorm modes: running statistics, and those of the batch.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from precalib_ray.core.lazy import torch
from precalib_ray.core.noise import Noise, Statistics, draw
from precalib_ray.core.noise.gaussian import Gaussian
from precalib_ray.core.noise.patches import Patches
from precalib_ray.core.noise.pink import Pink
from precalib_ray.core.seeding import mix
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK = 64
"""Samples per forward pass; with batch statistics, the batch that they are computed over."""


@dataclass(frozen=True, kw_only=True)
class DataProbe(Section):
    """Real images of a Parquet data set, whose labels are not read."""

    path: str = setting(path=True, description="directory of the data set")
    image_column: str = setting(
        "image", added=True, min_length=1, description="column of the images"
    )
    split: Literal["train", "val", "test"] = setting(
        "test", description="split that the images are taken from"
    )
    held_out: bool = setting(True, description="measure, but hide from the stopping rule")


@dataclass(frozen=True, kw_only=True)
class PanelSettings(Section):
    """The probes that confidence is measured on."""

    noise: dict[str, Noise] = setting(
        factory=lambda: {"gaussian": Gaussian(), "pink": Pink(), "patches": Patches()},
        description="probes of noise, by name (as noise)",
    )
    data: dict[str, DataProbe] = setting(factory=dict, description="probes of real images, by name")
    size: int = setting(128, ge=2, le=100_000, description="inputs per probe")
    seed: int = setting(0x9E37, ge=0, description="seed of the probes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise and not self.data:
            raise SettingError("", {}, "needs at least one probe")
        for name in self.noise.keys() & self.data.keys():
            raise SettingError(f"data.{name}", name, "is the name of a noise probe too")
        for kind, names in (("noise", self.noise), ("data", self.data)):
            for name in names:
                if not re.fullmatch(r"[\w. -]+", name):
                    allowed = "a probe's name may hold letters, digits, '_', '.', '-' and spaces"
                    raise SettingError(f"{kind}.{name}", name, allowed)

    def is_held_out(self, probe: str) -> bool:
        """Whether the stopping rule does not see a probe."""
        return probe in self.data and self.data[probe].held_out

    def panel(
        self,
        shape: Sequence[int],
        *,
        images: Mapping[str, Tensor],
        statistics: Mapping[str, Statistics],
    ) -> Panel:
        """The panel for inputs of a shape.

        Args:
            shape: the shape of one input.
            images: model inputs (N, *shape) of each data probe, by its name.
            statistics: those that ``matched`` noise needs, by data set.
        """
        noise = [
            noise_probe(
                name, spec, size=self.size, input_shape=shape, seed=self.seed, statistics=statistics
            )
            for name, spec in self.noise.items()
        ]
        data = [
            Probe(name, images[name][: self.size], held_out=probe.held_out)
            for name, probe in self.data.items()
        ]
        return Panel([*noise, *data])


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(PanelSettings):
    """The probes that confidence is measured on, and when."""

    stop_size: int = setting(64, ge=2, description="inputs per probe that the stopping rule sees")
    every: int = setting(10, ge=1, description="steps between probings")
    max_share: float = setting(
        0.05,
        gt=0,
        le=10,
        description="maximum cost of probing as a fraction of the cost of training, both in "
        "forward passes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_size > self.size:
            raise SettingError("stop_size", self.stop_size, f"must be <= size, {self.size}")

    @property
    def stopping(self) -> list[str]:
        """Names of the probes that the stopping rule sees."""
        return [*self.noise, *(name for name, probe in self.data.items() if not probe.held_out)]


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs (N, *input_shape), float32; a held-out probe is hidden from the stopping rule."""

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
    """How often each class is predicted, (K,), summing to 1."""

    @property
    def key(self) -> str:
        """Probe and mode, as in the names of metrics."""
        return f"{self.probe}/{self.mode}"


@dataclass(frozen=True)
class PanelResult:
    """All measurements of a model."""

    measurements: list[Measurement]
    num_forwards: int = field(default=0, compare=False)
    """Samples in forward passes: the cost of measuring."""

    @property
    def worst(self) -> Measurement:
        """The measurement with the largest deviation."""
        return max(self.measurements, key=lambda m: m.deviation)

    @property
    def deviation(self) -> float:
        """The headline: the largest deviation."""
        return self.worst.deviation

    @property
    def deviations(self) -> dict[str, float]:
        """Deviation by probe and mode."""
        return {m.key: m.deviation for m in self.measurements}

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``metrics.json``."""
        return {
            "deviation": self.deviation,
            "worst": self.worst.key,
            "measurements": [asdict(m) for m in self.measurements],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls([Measurement(**m) for m in content["measurements"]])


def confidence(logits: Tensor) -> Tensor:
    """The largest softmax probability, (N,) float64, of logits (N, K)."""
    return logits.double().softmax(-1).amax(-1)


def class_bias(probabilities: Tensor) -> float:
    """Unevenness of the mean prediction: 1 - H(mean p) / log K, in [0, 1], of p (N, K)."""
    mean = probabilities.double().mean(0)
    entropy = -torch.special.xlogy(mean, mean).sum()
    bias = 1 - entropy / torch.log(torch.tensor(float(mean.numel()), dtype=torch.float64))
    return float(bias.clamp(0, 1))


def noise_probe(
    name: str,
    noise: Noise,
    *,
    size: int,
    input_shape: Sequence[int],
    seed: int,
    statistics: Mapping[str, Statistics] | None = None,
) -> Probe:
    """A seeded probe of noise, drawn on the CPU and so the same on every machine."""
    generator = torch.Generator().manual_seed(mix(seed, zlib.crc32(name.encode())))
    shape = (size, *input_shape)
    inputs = draw(noise, shape, generator=generator, statistics=statistics)
    return Probe(name, inputs)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers, synchronized ones included, that have running statistics to differ."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


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


def predict(model: nn.Module, inputs: Tensor, *, mode: str = "running") -> Tensor:
    """Logits (N, K) float32 of inputs (N, *input_shape), in chunks of nearly equal size."""
    device = next(model.parameters()).device
    with torch.no_grad(), evaluation(model, mode):
        chunks = inputs.tensor_split(-(-len(inputs) // CHUNK))
        return torch.cat([model(chunk.to(device, non_blocking=True)).float() for chunk in chunks])


def chunk_sizes(num_inputs: int) -> set[int]:
    """Sizes of the chunks in which ``predict`` runs so many inputs."""
    chunks = -(-num_inputs // CHUNK)
    return {num_inputs // chunks, -(-num_inputs // chunks)}


def modes(model: nn.Module) -> tuple[str, ...]:
    """The BatchNorm modes that a model is measured in: one without BatchNorm."""
    return ("running", "batch") if batch_norms(model) else ("running",)


class Panel:
    """A set of probes."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        """Names must differ."""
        self.probes = list(probes)

    def visible(self, limit: int | None) -> list[tuple[str, Tensor]]:
        """Names and inputs that ``measure`` takes with this limit."""
        return [
            (probe.name, probe.inputs[:limit])
            for probe in self.probes
            if limit is None or not probe.held_out
        ]

    def num_forwards(self, model: nn.Module, *, limit: int | None = None) -> int:
        """Samples in the forward passes of ``measure``."""
        return len(modes(model)) * sum(len(inputs) for _, inputs in self.visible(limit))

    def measure(self, model: nn.Module, *, limit: int | None = None) -> PanelResult:
        """Measure every probe in every BatchNorm mode; models without BatchNorm have one.

        Args:
            model: the classifier.
            limit: measure the first inputs of each probe, and leave out held-out probes: what a
                stopping rule may see.
        """
        measurements = []
        for name, inputs in self.visible(limit):
            for mode in modes(model):
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
