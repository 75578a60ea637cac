"""The gauges of a run for Prometheus, exported by Ray as ``ray_precalib_NAME``.

Their labels are ``run`` and ``phase``; ``k8s/observability`` has a dashboard of them.
"""

from __future__ import annotations

import math
from typing import Any

from ray.util.metrics import Gauge

from precalib_ray.core.progress import Metrics, Progress

NAMES = {
    "samples_per_second": "samples trained on per second, over all workers",
    "deviation": "worst deviation from chance on the probes that the stopping rule uses",
    "step_seconds": "seconds per training step, without probing",
    "probe_share": "fraction of the elapsed time spent probing",
}


class Gauges:
    """The gauges of one run, set by its rank 0."""

    def __init__(self, *, run: str, phase: str) -> None:
        tags = {"run": run, "phase": phase}
        self._gauges = {
            name: Gauge(f"precalib_{name}", description=text, tag_keys=tuple(tags))
            for name, text in NAMES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(tags)
        self._step, self._seconds = 0, 0.0

    def set(self, progress: Progress[Any], metrics: Metrics) -> None:
        """Set the gauges that have values."""
        values = {"samples_per_second": metrics.samples_per_second}
        if progress.step > self._step:
            spent = progress.seconds - self._seconds
            values["step_seconds"] = spent / (progress.step - self._step)
        self._step, self._seconds = progress.step, progress.seconds
        total = progress.seconds + progress.evaluation_seconds
        if total > 0:
            values["probe_share"] = progress.evaluation_seconds / total
        if progress.history and not math.isnan(progress.history[-1].deviation):
            values["deviation"] = progress.history[-1].deviation
        for name, value in values.items():
            self._gauges[name].set(value)
