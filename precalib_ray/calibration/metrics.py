"""Calibration of class scores against labels.

Everything is computed in float64 on the CPU: in float32 a confidence above 1 - 3e-8 rounds to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram of B bins; the confidence of bin b lies in [edges[b], edges[b + 1])
    and the last bin also holds confidence 1.

    ``confidence`` and ``accuracy`` are means over the bin, NaN where it is empty.
    """

    count: Tensor  # (B,) int64
    confidence: Tensor  # (B,) float64
    accuracy: Tensor  # (B,) float64
    edges: Tensor  # (B + 1,) float64

    @property
    def ece(self) -> float:
        """Expected calibration error: sum over bins of n_b / N · |accuracy_b - confidence_b|."""
        gap = (self.accuracy - self.confidence).abs()
        return float((gap * self.count).nansum() / self.count.sum())


def reliability(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> Reliability:
    """Bin the samples by confidence, in bins of equal width over [0, 1].

    The standard definition (Guo et al., arXiv 1706.04599), as netcal computes it. torchmetrics
    does the same in float32, with one difference: confidence exactly 1 gets a bin of its own
    there, a 16th, whose content depends on rounding.

    Args:
        logits: (N, K) of any floating dtype.
        labels: (N,) int64 in 0..K-1.
        num_bins: B.

    Raises:
        ValueError: the inputs do not have these shapes, dtypes and ranges.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    logits, labels = _checked(logits, labels)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    correct = (predicted == labels).double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1], right=True)
    count = torch.bincount(bins, minlength=num_bins)
    return Reliability(
        count=count,
        confidence=torch.bincount(bins, weights=confidence, minlength=num_bins) / count,
        accuracy=torch.bincount(bins, weights=correct, minlength=num_bins) / count,
        edges=edges,
    )


@dataclass(frozen=True, eq=False)
class Scores:
    """The input of metrics: N samples with p = softmax(logits), c = max_k p_k."""

    logits: Tensor  # (N, K) float64
    labels: Tensor  # (N,) int64
    probabilities: Tensor  # (N, K)
    confidence: Tensor  # (N,)
    correct: Tensor  # (N,) float64: 1 where the most probable class (the first on ties) is right
    reliability: Reliability


@dataclass(frozen=True)
class Metric:
    """A number about a classifier on a split."""

    name: str
    """Name in results, in MLflow and in tables."""
    label: str
    """Text of headings."""
    compute: Callable[[Scores], Tensor | float]


METRICS: dict[str, Metric] = {}
"""Metrics by name, in the order of tables. To add one, write a function and decorate it."""


def metric(label: str) -> Callable[[Callable[[Scores], Tensor | float]], Metric]:
    """Register a function under its name."""

    def register(function: Callable[[Scores], Tensor | float]) -> Metric:
        METRICS[function.__name__] = Metric(function.__name__, label, function)
        return METRICS[function.__name__]

    return register


@metric("accuracy")
def accuracy(scores: Scores) -> Tensor:
    """Share of samples whose most probable class is the label."""
    return scores.correct.mean()


@metric("mean confidence")
def mean_confidence(scores: Scores) -> Tensor:
    """Mean c."""
    return scores.confidence.mean()


@metric("overconfidence")
def overconfidence(scores: Scores) -> Tensor:
    """Mean confidence minus accuracy; negative for an underconfident classifier."""
    return scores.confidence.mean() - scores.correct.mean()


@metric("ECE")
def ece(scores: Scores) -> float:
    """Expected calibration error of :func:`reliability`."""
    return scores.reliability.ece


@metric("NLL")
def nll(scores: Scores) -> Tensor:
    """Mean of -log p_label, in nats."""
    return F.cross_entropy(scores.logits, scores.labels)


@metric("Brier score")
def brier(scores: Scores) -> Tensor:
    """Mean of sum_k (p_k - [k = label])², in [0, 2]."""
    one_hot = F.one_hot(scores.labels, scores.logits.shape[1])
    return (scores.probabilities - one_hot).square().sum(dim=1).mean()


def evaluate(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> dict[str, float]:
    """Every metric of :data:`METRICS`, by name.

    Arguments and errors are those of :func:`reliability`.
    """
    diagram = reliability(logits, labels, num_bins=num_bins)
    logits, labels = _checked(logits, labels)
    probabilities = logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).double()
    scores = Scores(logits, labels, probabilities, confidence, correct, diagram)
    return {name: float(metric.compute(scores)) for name, metric in METRICS.items()}


def checked_logits(logits: Tensor) -> Tensor:
    """The same logits, detached, in float64 on the CPU; ValueError unless finite (N, K), K >= 2."""
    shape = tuple(logits.shape)
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating (N, K), got {logits.dtype} of shape {shape}")
    if shape[0] == 0 or shape[1] < 2:
        raise ValueError(f"logits must hold at least 1 sample and 2 classes, got shape {shape}")
    logits = logits.detach().to("cpu", torch.float64)
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"logits must be finite, {int((~finite).sum())} of {shape[0]} samples are not"
        )
    return logits


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = checked_logits(logits)
    num_samples, num_classes = logits.shape
    if labels.shape != (num_samples,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({num_samples},) like the logits, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    labels = labels.cpu()
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {int(outside[0])}")
    return logits, labels
