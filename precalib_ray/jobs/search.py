"""The job ``search``: which recipe brings a network to chance at the least cost."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

from precalib_ray.cluster import session
from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.config.sections import Tracking
from precalib_ray.core.phases.pretraining import Outcome
from precalib_ray.jobs.pretrain import pretrain
from precalib_ray.registry import tracking
from precalib_ray.report.figures import search as figures
from precalib_ray.report.figures import style
from precalib_ray.runs import lifecycle, trials
from precalib_ray.runs.child_runs import ChildRuns
from precalib_ray.runs.console import console, stage, table
from precalib_ray.runs.record import RunRecord
from precalib_ray.search import confirmation, summary
from precalib_ray.search.best import BEST_FILE, best_yaml, write_best
from precalib_ray.search.trial import Trial
from precalib_ray.search.trials import TrialLog

_warn = functools.partial(console.print, style="yellow")


@dataclass(frozen=True)
class Searched:
    """The result of a search."""

    log: TrialLog
    model_uri: str | None = None
    """``models:/NAME/VERSION`` of the best recipe, if this submission registered it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``run.json``; the trials have files of their own."""
        return {"trials": self.log.num_trials}


def search(config: SearchConfig) -> Searched:
    """Run the trials that are left, show the best, and register it if requested; idempotent.

    Raises:
        PrecalibError: any of its subclasses.
    """
    return lifecycle.run(Search(config))


class Search(lifecycle.Job[SearchConfig, Searched]):
    """One submission."""

    phase: ClassVar[str] = "search"

    def check(self) -> None:
        self._shared = trials.check(self.config)

    def load_result(self, record: RunRecord) -> Searched | None:
        self._log = TrialLog(
            self.config,
            record.folder,
            seconds=record.content.get("seconds", 0.0),
            on_seconds=lambda seconds: record.update(seconds=seconds),
        )
        if self._log.num_left:
            return None
        # An earlier submission may have been killed before it wrote the best recipe.
        write_best(self.config, self._log, record.folder)
        return Searched(self._log)

    def work(self, record: RunRecord, run: tracking.Run | None) -> Searched:
        with ChildRuns(run, self.config) as child_runs:
            self._log.on_end = child_runs.put
            trials.run(self.config, self._log, self._shared, record)
        write_best(self.config, self._log, record.folder)
        return Searched(self._log)

    def log(self, result: Searched, record: RunRecord, run: tracking.Run) -> Searched:
        config, log = self.config, result.log
        self.log_partial(record, run)
        files = {"config.yaml": load.to_yaml(config, exclude={"tracking"})}
        for best in log.best():
            files[BEST_FILE] = best_yaml(config, best)
            run.log_metrics(summary.metrics(best), step=0)
        with stage("drawing"), tempfile.TemporaryDirectory() as folder:
            for name, figure in _figures(config, log).items():
                run.log_file(style.save(figure, Path(folder) / f"{name}.png"), "figures")
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
                run.log_file(Path(folder) / name)
        run.set_tags({"precalib.trials": log.num_trials})
        return result

    def log_partial(self, record: RunRecord, run: tracking.Run) -> None:
        ChildRuns(run, self.config).log(self._log.records.values())

    def show(self, result: Searched) -> None:
        config, log = self.config, result.log
        title = f"{config.name}: the best by {config.objective}, and the references"
        table(title, *summary.table(log))
        console.print(summary.counts(log))
        for trial in summary.failures(log):
            _warn(f"  trial {trial.key}: {trial.reason}")
        console.print(summary.cost(log))
        if log.best():
            console.print(f"best recipe: {config.storage}/{config.name}/{BEST_FILE}")

    def conclude(self, result: Searched, record: RunRecord) -> Searched:
        """Run the best recipe with other seeds, and register the median."""
        config = self.config
        candidates = result.log.best(confirmation.NUM_CANDIDATES)
        if not (config.register_best and candidates):
            return result
        with session.connect(stage):
            found = confirmation.confirm(config, candidates, run=_run_seed, notify=_warn)
            console.print(found.summary())
            if config.tracking.offline:
                return result
            console.rule(f"registering seed {found.median.seed}, the median", align="left")
            tags = config.tracking.tags | found.tags(config.name, record.run_id)
            settings = replace(config.tracking, tags=tags)
            registered = pretrain(replace(found.median, tracking=settings, promote=config.promote))
        return replace(result, model_uri=registered.model_uri)


def _run_seed(trial: Trial, job: PretrainConfig) -> Outcome:
    console.rule(f"the recipe of trial {trial.key} with seed {job.seed}", align="left")
    return pretrain(replace(job, tracking=Tracking(offline=True))).outcome


def _figures(config: SearchConfig, log: TrialLog) -> dict[str, Figure]:
    what, study = log.objective.axis, log.scored_study
    scores = {trial.key: log.scores(trial) for trial in log.scored}
    references = {str(t.reference): log.scores(t)[0] for t in log.comparable_references}
    target = config.corners()[0].duration.until_deviation
    drawn = {
        "history": figures.history(scores, log.trials, references, what=what),
        "pareto": figures.pareto(log.trials, log.references, target=target),
        "parallel_coordinates": figures.parallel_coordinates(study, what=what),
        "importances": figures.importances(study, seed=config.seed),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}
