"""Training workers on Ray, with progress on the terminal and metrics in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precalib_ray.cluster import session, trainer
from precalib_ray.cluster.channel import Report
from precalib_ray.config.sections import Distributed
from precalib_ray.registry import tracking
from precalib_ray.runs.console import Display, console, stage
from precalib_ray.runs.record import RunRecord


@dataclass(frozen=True)
class EvaluationSummary:
    """An evaluation in a few words for the terminal, and as metrics for MLflow."""

    text: str
    metrics: dict[str, float]


def run_workers(
    worker: Callable[[Mapping[str, Any]], Any],
    config: Distributed,
    shared: Mapping[str, Any],
    run: tracking.Run | None,
    record: RunRecord,
    *,
    title: str,
    num_steps: int | None,
    keep: int,
    summarize: Callable[[Any], EvaluationSummary],
) -> trainer.Fitted[Any]:
    """Train on Ray.

    Args:
        worker: as ``trainer.fit`` takes it.
        config: of the job.
        shared: as ``trainer.fit`` takes it.
        run: receives the metrics; None if the job is offline.
        record: of the job.
        title: of the progress bar.
        num_steps: the last step, if there is one.
        keep: newest checkpoints kept on storage.
        summarize: an evaluation of the phase.

    Raises:
        DivergedError: as ``trainer.fit``.
        ClusterError: as ``trainer.fit``, or Ray cannot be reached.
    """
    with session.connect(stage) as local, Display(title, num_steps) as display:
        text = ""

        def on_report(report: Report) -> None:
            nonlocal text
            summaries = [(each.step, summarize(each)) for each in report.evaluations]
            if summaries:
                text = summaries[-1][1].text
            display.update(report.step, f"loss {report.loss:.4f} {text}".rstrip())
            if run is None:
                return
            names = ("loss", "learning_rate", "samples_per_second", "samples")
            run.log_metrics({name: getattr(report, name) for name in names}, step=report.step)
            for step, summary in summaries:
                run.log_metrics(summary.metrics, step=step)

        return trainer.fit(
            worker,
            config,
            shared,
            keep=keep,
            local=local,
            on_report=on_report,
            notify=lambda text: console.print(text, style="yellow"),
            may_save=lambda: not record.superseded,
        )
