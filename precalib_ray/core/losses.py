"""Losses of class ids and of soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

SOFT_LOSSES = frozenset({"cross_entropy", "kl_div"})
"""Losses that take probabilities (B, K)."""

ID_LOSSES = frozenset({"cross_entropy", "focal"})
"""Losses that take class ids (B,)."""


def loss_sum(spec: Mapping[str, Any], logits: Tensor, targets: Tensor) -> Tensor:
    """The loss summed over the batch, from logits (B, K) and ids (B,) or probabilities (B, K).

    ``cross_entropy`` (with ``label_smoothing``); ``kl_div``, the divergence of the prediction from
    soft targets; ``focal`` with ``gamma`` (Lin et al., 2017).
    """
    logits = logits.float()
    if spec["kind"] == "kl_div":
        return F.kl_div(logits.log_softmax(-1), targets, reduction="sum")
    if spec["kind"] == "focal":
        log_p = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        return ((1 - log_p.exp()).pow(spec["gamma"]) * -log_p).sum()
    smoothing = float(spec.get("label_smoothing", 0.0))
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
