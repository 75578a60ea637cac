"""The trials of a search in MLflow: child runs of its run."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterable

from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.errors import TrackingError
from precalib_ray.registry import tracking
from precalib_ray.runs.console import console
from precalib_ray.search.trial import Trial

_MAX_TAG = 5000  # characters


class ChildRuns:
    """Logs ended trials in the background, each as a child run of the search's run.

    While the server is unreachable, trials are only on storage; they are logged at the end.
    """

    def __init__(self, run: tracking.Run | None, config: SearchConfig) -> None:
        self._run, self._config = run, config
        self._queue: queue.Queue[Trial | None] = queue.Queue()
        self._known: dict[str, tuple[str, str]] | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> ChildRuns:
        """Start logging."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Log what is queued; after an error the next submission does."""
        self._dropped = kind is not None
        self._queue.put(None)
        self._thread.join()

    def put(self, trial: Trial) -> None:
        """Queue a trial that has ended."""
        if self._run is not None:
            self._queue.put(trial)

    def log(self, trials: Iterable[Trial]) -> None:
        """Log the trials that have ended and are not logged yet; raises TrackingError."""
        assert self._run is not None, "not called offline"
        if self._known is None:
            self._known = self._run.children("precalib.trial")
        for trial in trials:
            run_id, status = self._known.get(trial.key, (None, ""))
            if trial.ended and status not in ("FINISHED", "FAILED"):
                self._log(trial, self._run, run_id, self._known)

    def _work(self) -> None:
        unreachable = False
        while (trial := self._queue.get()) is not None:
            if unreachable or self._dropped:
                continue
            try:
                self.log([trial])
            except TrackingError as error:
                console.print(f"{error}; trials are logged at the end", style="yellow")
                unreachable = True

    def _log(
        self,
        trial: Trial,
        parent: tracking.Run,
        run_id: str | None,
        known: dict[str, tuple[str, str]],
    ) -> None:
        """Log one trial; ``run_id`` was begun by a submission that did not finish it."""
        child = tracking.Run(
            uri=parent.uri,
            experiment=self._config.tracking.experiment,
            name=f"{self._config.name}-{trial.key}",
            tags={
                "precalib.phase": "trial",
                "precalib.trial": trial.key,
                "precalib.state": trial.state,
                "precalib.reason": str(trial.reason)[:_MAX_TAG],
            },
            run_id=run_id,
            parent=parent,
        )
        known[trial.key] = (child.run_id, "RUNNING")
        child.log_params(trial.recipe or {"point": json.dumps(trial.point)})
        for samples, deviation in trial.history or []:
            child.log_metrics({"deviation": deviation}, step=int(samples))
        child.log_metrics(_metrics(trial), step=trial.samples or 0)
        status = "FAILED" if trial.state == "failed" else "FINISHED"
        if not child.end(status):
            raise TrackingError(f"MLflow did not accept trial {trial.key}: {child.last_error}")
        known[trial.key] = (child.run_id, status)


def _metrics(trial: Trial) -> dict[str, float]:
    """The final metrics, by their names in MLflow."""
    final = {
        "final/deviation": trial.deviation,
        "final/samples": trial.samples,
        "final/seconds": trial.seconds,
        "final/compute_seconds": trial.compute_seconds,
        "final/initial_deviation": trial.initial_deviation,
    }
    return {
        **{name: value for name, value in final.items() if value is not None},
        **{f"deviation/{name}": value for name, value in (trial.deviations or {}).items()},
        **{f"downstream/{name}": value for name, value in (trial.downstream or {}).items()},
    }
