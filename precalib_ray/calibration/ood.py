"""Out-of-distribution detection: scores of logits, and how well a score separates.

A larger score means more in-distribution (known). The scores take logits (N, K) of any floating
dtype and give (N,) float64 on the CPU (in float32 saturated confidences all tie at 1); ValueError
unless the logits are finite with K >= 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from precalib_ray.calibration.metrics import checked_logits


def max_softmax(logits: Tensor) -> Tensor:
    """Confidence max_k p_k (Hendrycks and Gimpel, arXiv 1610.02136)."""
    return checked_logits(logits).softmax(dim=1).amax(dim=1)


def energy(logits: Tensor) -> Tensor:
    """Negative free energy log sum_k exp(logit_k) (Liu et al., arXiv 2010.03759)."""
    return checked_logits(logits).logsumexp(dim=1)


def neg_entropy(logits: Tensor) -> Tensor:
    """sum_k p_k log p_k, in nats: 0 for a one-hot prediction, -log K at chance."""
    logits = checked_logits(logits)
    return (logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def auroc(known_scores: Tensor, unknown_scores: Tensor) -> float:
    """Probability that a known input outscores an unknown one, equal scores counting half.

    Args:
        known_scores: (N,) the positives.
        unknown_scores: (M,)

    Raises:
        ValueError: scores are empty, not one-dimensional, or NaN.
    """
    known, unknown = _checked_scores(known_scores), _checked_scores(unknown_scores)
    # N · M pairs, by sorting: count unknown scores below, and below or equal to, each known one
    ordered = unknown.sort().values
    below = torch.searchsorted(ordered, known, right=False)
    below_or_level = torch.searchsorted(ordered, known, right=True)
    return int((below + below_or_level).sum()) / (2 * len(known) * len(unknown))


def fpr_at_tpr(known_scores: Tensor, unknown_scores: Tensor, tpr: float = 0.95) -> float:
    """Share of unknown inputs accepted by the strictest threshold that accepts a share ``tpr`` of
    the known ones.

    Arguments and errors are those of :func:`auroc`; also ValueError unless 0 < tpr <= 1.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be above 0 and at most 1, got {tpr}")
    known, unknown = _checked_scores(known_scores), _checked_scores(unknown_scores)
    accepted = torch.arange(1, len(known) + 1, dtype=torch.float64) / len(known)
    threshold = known.sort(descending=True).values[(accepted < tpr).sum()]
    return float((unknown >= threshold).double().mean())


def _checked_scores(scores: Tensor) -> Tensor:
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores must be non-empty (N,), got shape {tuple(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"scores must not be NaN, {int(scores.isnan().sum())} are")
    return scores.detach().to("cpu", torch.float64)
