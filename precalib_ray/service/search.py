"""The job ``search``: which recipe brings a network to chance at the least cost."""

from __future__ import annotations

import json
import queue
import statistics
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from precalib_ray.cluster import placement, session
from precalib_ray.cluster import search as trials
from precalib_ray.config import base, space
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.config.search import SearchConfig
from precalib_ray.core import pretraining
from precalib_ray.data import parquet
from precalib_ray.data.dataset import Split
from precalib_ray.errors import ClusterError, ConfigError, DivergedError, Problem, TrackingError
from precalib_ray.registry import tracking
from precalib_ray.report import figures
from precalib_ray.report import search as search_figures
from precalib_ray.service import preflight
from precalib_ray.service.identity import Identity
from precalib_ray.service.job import complete, tracked
from precalib_ray.service.pretrain import Pretrained, pretrain
from precalib_ray.service.study import FAILED, FINISHED, RUNNING, STOPPED, Record, Study
from precalib_ray.service.terminal import Display, console, stage, table

BEST_FILE = "best.yaml"
PHASE = "search"
_FULL_LENGTH = 4
"""What is registered may take so many times a trial's samples to reach the target."""
_NUM_CANDIDATES = 3
"""Recipes that may be tried with other seeds; the best of many trials had some luck."""


def search(config: SearchConfig) -> Study:
    """Run the trials that are left, show the best, and register it if asked to.

    Raises:
        PrecalibError: see its families.
    """
    shared = _shared(config)
    identity = Identity(config, name=config.name, storage=config.storage)
    with identity.lease():
        if identity.result is not None and (config.tracking.offline or identity.told):
            study = Study(config, identity)
            console.print(f"{config.name} has finished before; nothing is done again.")
        else:
            with tracked(config, identity, phase=PHASE) as run:
                with _Children(run, config) as children:
                    study = Study(config, identity, on_end=children.put)
                    if study.num_left:
                        _run_trials(config, study, shared, identity)
                best = study.best()
                if best:
                    identity.folder.write(BEST_FILE, _best_yaml(config, best[0]))
                if run is not None:
                    _tell(config, study, run, identity)
        _show(config, study)
        best = study.best()
        if best and config.register_best:
            _register(config, study, identity.run_id)
    return study


def sync(config: SearchConfig, identity: Identity, run: tracking.Run) -> None:
    """Log the trials that have ended, and what they come to if none is left."""
    study = Study(config, identity)
    if study.num_left:
        children = _Children(run, config)
        complete(run, config, identity, lambda: children.log(study.records.values()))
    else:
        _tell(config, study, run, identity)


def _tell(config: SearchConfig, study: Study, run: tracking.Run, identity: Identity) -> None:
    """Tell MLflow what a finished search has found; doing it twice is as good as once."""

    def last() -> None:
        _Children(run, config).log(study.records.values())
        _log(config, study, run)

    complete(run, config, identity, last)
    identity.update(result={"trials": study.num_trials})


def _shared(config: SearchConfig) -> dict[str, Any]:
    """What all trials need; refuses what only code and data can tell is wrong."""
    corners = [job.model_dump() for job in config.corners()]
    shape = corners[0]["model"]["input_shape"]
    noises = {repr(corner["noise"]): corner["noise"] for corner in corners}
    for corner in {repr((c["model"], c["trainable"])): c for c in corners}.values():
        preflight.check_model(corner["model"], "recipe.model")
        preflight.check_trainable(corner["model"], corner["trainable"])
    probes = corners[0]["probes"]
    measured = preflight.read_statistics([*noises.values(), *probes["noise"].values()], shape)
    for noise in noises.values():
        spec = pretraining.with_statistics(noise, measured)
        preflight.check_noise(spec, shape, "recipe.noise")
    images = {
        name: preflight.read_inputs(probe["path"], probe["split"], shape, limit=probes["size"])
        for name, probe in probes["data"].items()
    }
    splits = _splits(config, corners[0]["model"]) if config.downstream else None
    return {"images": images, "statistics": measured, "splits": splits}


def _splits(config: SearchConfig, model: Mapping[str, Any]) -> dict[str, Split]:
    assert config.downstream is not None, "asked by the caller"
    folder = Path(config.downstream.data.path)
    splits = {
        name: parquet.read_split(
            parquet.split_path(folder, name), on_bad_row=config.downstream.data.on_bad_row
        )
        for name in ("train", "val")
    }
    train, num = splits["train"], config.downstream.num_samples
    if train.info.num_classes != model["num_classes"]:
        allowed = f"the data set {folder} has {train.info.num_classes} classes"
        raise ConfigError([Problem("recipe.model.num_classes", model["num_classes"], allowed)])
    preflight.to_shape(train, model["input_shape"], str(folder), limit=1)
    splits["train"] = Split(train.images[:num], train.labels[:num], train.info)
    return splits


def _run_trials(
    config: SearchConfig, study: Study, shared: Mapping[str, Any], identity: Identity
) -> None:
    given = config.trials
    attempt = identity.record.get("attempt", 0) + 1
    identity.update(attempt=attempt)
    longest = max(job.max_samples or 0 for job in config.corners())
    total = study.num_trials + len(config.references)
    with session.connect() as local, Display("search", total) as display:
        request = placement.Request(given.num_workers, given.cpus, given.gpus)
        placement.require(request, local=local, tell=console.print)
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                display.update(total - study.num_left, _progress(study))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            trials.run(
                study,
                name=f"{config.name}/tune-{attempt}",
                storage=config.storage,
                num_trials=study.num_left,
                shared=shared,
                resources=trials.Resources(**given.model_dump()),
                asha=config.asha.model_dump() if config.asha else None,
                max_samples=longest,
            )
        finally:
            ended.set()
            watcher.join()
        display.update(total - study.num_left, _progress(study))
    if study.num_left:
        raise ClusterError(f"{study.num_left} trials did not run; submitted again, they do")


def _progress(study: Study) -> str:
    records = list(study.records.values())
    text = f"trials, {sum(r['state'] == RUNNING for r in records)} under way"
    failed = sum(r["state"] == FAILED for r in records)
    if failed:
        text += f", {failed} failed"
    best = study.best()
    if best:
        text += f", best {best[0]['deviation']:.4f} after {best[0]['samples']:,} samples"
    return text


class _Children:
    """Logs ended trials to MLflow in the background, each as a child of the search's run.

    What a server that is away does not get is on storage, and is logged at the end.
    """

    def __init__(self, run: tracking.Run | None, config: SearchConfig) -> None:
        self._run, self._config = run, config
        self._queue: queue.Queue[Record | None] = queue.Queue()
        self._known: dict[str, tuple[str, str]] | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> _Children:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._dropped = kind is not None  # interrupted: the next submission logs them
        self._queue.put(None)
        self._thread.join()

    def put(self, record: Record) -> None:
        """Log a trial that has ended."""
        if self._run is not None:
            self._queue.put(record)

    def log(self, records: Iterable[Record]) -> None:
        """Log the trials that have ended and are not logged yet; raises TrackingError."""
        assert self._run is not None, "nothing is logged without one"
        if self._known is None:
            self._known = self._run.children("precalib.trial")
        for record in records:
            run_id, status = self._known.get(record["key"], (None, ""))
            if record["state"] != RUNNING and status not in ("FINISHED", "FAILED"):
                self._log(record, run_id)

    def _work(self) -> None:
        away = False
        while (record := self._queue.get()) is not None:
            if away or self._dropped:
                continue
            try:
                self.log([record])
            except TrackingError as error:
                console.print(f"{error}; trials are logged at the end", style="yellow")
                away = True

    def _log(self, record: Record, run_id: str | None) -> None:
        assert self._run is not None, "nothing is logged without one"
        assert self._known is not None, "asked before"
        child = tracking.Run(
            uri=self._run.uri,
            experiment=self._config.tracking.experiment,
            name=f"{self._config.name}-{record['key']}",
            tags={
                "mlflow.parentRunId": self._run.run_id,
                "precalib.phase": "trial",
                "precalib.trial": record["key"],
                "precalib.state": record["state"],
                "precalib.reason": str(record["reason"])[:5000],
            },
            run_id=run_id,  # begun by a submission that did not get to its end
        )
        self._known[record["key"]] = (child.run_id, "RUNNING")
        child.log_params(record["recipe"] or {"point": json.dumps(record["point"])})
        for samples, deviation in record.get("history", []):
            child.log_metrics({"deviation": deviation}, step=int(samples))
        final = {
            f"final/{key}": record[key]
            for key in ("deviation", "samples", "seconds", "compute_seconds", "initial_deviation")
            if key in record
        }
        final |= {f"deviation/{name}": v for name, v in record.get("deviations", {}).items()}
        final |= {f"downstream/{name}": v for name, v in record.get("downstream", {}).items()}
        child.log_metrics(final, step=int(record.get("samples", 0)))
        status = "FAILED" if record["state"] == FAILED else "FINISHED"
        if not child.end(status):
            raise TrackingError(f"MLflow did not take trial {record['key']}: {child.last_error}")
        self._known[record["key"]] = (child.run_id, status)


def _best_config(config: SearchConfig, record: Record, **fields: Any) -> PretrainConfig:
    recipe = space.at(config.recipe, record["point"])
    return config.pretraining(recipe, **{"name": f"{config.name}-best", **fields})


def _best_yaml(config: SearchConfig, record: Record) -> str:
    job = _best_config(config, record)
    cost = f"{record['samples']:,} samples, deviation {record['deviation']:.5f}"
    heading = f"# Trial {record['key']} of the search {config.name}: {cost}.\n"
    return heading + base.to_yaml(job, exclude={"tracking"})


def _log(config: SearchConfig, study: Study, run: tracking.Run) -> None:
    with stage("drawing"), tempfile.TemporaryDirectory() as folder:
        for name, figure in _figures(config, study).items():
            run.log_file(figures.save(figure, Path(folder) / f"{name}.png"), "figures")
        files = {"config.yaml": base.to_yaml(config, exclude={"tracking"})}
        best = study.best()
        if best:
            files[BEST_FILE] = _best_yaml(config, best[0])
            run.log_metrics(
                {"best/deviation": best[0]["deviation"], "best/samples": best[0]["samples"]}, step=0
            )
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
            run.log_file(Path(folder) / name)
    run.set_tags({"precalib.trials": study.num_trials})


def _figures(config: SearchConfig, study: Study) -> dict[str, Figure]:
    scores = {r["key"]: study.scores(r) for r in study.scored()}
    what = {
        "cost_to_target": "samples to the target, more where it was missed",
        "downstream": "gap of confidence and accuracy",
    }.get(config.objective, "worst deviation from chance")
    duration = config.corners()[0].duration
    references = {r["reference"]: study.scores(r)[0] for r in study.comparable_references()}
    found = {
        "history": search_figures.history(scores, study.trials, references, what=what),
        "pareto": search_figures.pareto(
            study.trials, study.references, target=duration.until_deviation
        ),
        "parallel_coordinates": search_figures.parallel_coordinates(study.scored_study, what=what),
        "importances": search_figures.importances(study.scored_study, seed=config.seed),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _show(config: SearchConfig, study: Study) -> None:
    records = [(str(place), r) for place, r in enumerate(study.best(10), start=1)]
    records += [(r["reference"], r) for r in study.references if r["state"] != FAILED]
    header = ["", "trial", "deviation", "samples", "seconds"]
    rows = [
        [
            place,
            "" if record["reference"] else record["key"],
            f"{max(0.0, record['deviation']):.4f}",  # rounding can leave it below
            f"{record['samples']:,}",
            f"{record['compute_seconds']:.1f}",
        ]
        for place, record in records
    ]
    if config.objective == "downstream":
        header += ["gap", "accuracy"]
        for row, (_, record) in zip(rows, records, strict=True):
            found = record.get("downstream")
            row.extend([f"{found['gap']:.4f}", f"{found['accuracy']:.4f}"] if found else ["", ""])
    header.append("recipe")
    for row, (_, record) in zip(rows, records, strict=True):
        row.append(_in_words(record["recipe"]))
    table(f"{config.name}: the best by {config.objective}, and the references", header, rows)
    states = [r["state"] for r in study.trials]
    console.print(
        f"trials: {len(states)}, of them {states.count(FINISHED)} finished, "
        f"{states.count(STOPPED)} stopped early, {states.count(FAILED)} failed"
    )
    for record in study.trials:
        if record["state"] == FAILED:
            console.print(f"  trial {record['key']}: {record['reason']}", style="yellow")
    compute = sum(r.get("compute_seconds", 0.0) for r in study.records.values())
    seconds = study.seconds
    console.print(f"{compute:.0f} s of computing in {seconds:.0f} s")
    if study.best():
        console.print(f"best recipe: {study.folder}/{BEST_FILE}")


def _in_words(recipe: Mapping[str, Any]) -> str:
    noise, labels, optimizer = recipe["noise"], recipe["labels"], recipe["optimizer"]
    if recipe["duration"]["steps"] == 0:
        return "zeroed last layer, no training" if recipe["head_scale"] == 0 else "no training"
    extra = f" {noise['alpha']:.2g}" if "alpha" in noise else ""
    return (
        f"{noise['kind']}{extra}, {labels['kind']}, {optimizer['kind']} {optimizer['lr']:.2g}, "
        f"batch {recipe['batch_size']}, head {recipe['head_scale']:.2g}"
    )


def _whole(job: PretrainConfig) -> dict[str, Any]:
    """The duration of a trial without the haste: a search cuts short what other seeds may need."""
    duration = job.duration.model_dump()
    if job.duration.until_deviation is None:
        return duration
    longer = {key: duration[key] * _FULL_LENGTH for key in ("steps", "samples") if duration[key]}
    return duration | longer


def _seeds(config: SearchConfig, record: Record) -> list[PretrainConfig]:
    """A trial's recipe at full length, with the seeds that it is to be judged by."""
    jobs = []
    for seed in range(config.seed + 1, config.seed + 1 + config.register_seeds):
        job = _best_config(config, record, name=f"{config.name}-{record['key']}-{seed}", seed=seed)
        jobs.append(base.validate(PretrainConfig, job.model_dump() | {"duration": _whole(job)}))
    return jobs


def _offline(job: PretrainConfig) -> PretrainConfig:
    changed = {"tracking": {"offline": True}, "promote": None}
    return base.validate(PretrainConfig, job.model_dump() | changed)


def _steady(config: SearchConfig, study: Study) -> tuple[list[PretrainConfig], list[Pretrained]]:
    """The best recipe that reaches its target with every seed; of those that miss it with some,
    the best. What is held out of stopping has no part in that.
    """
    tried: list[tuple[list[PretrainConfig], list[Pretrained]]] = []
    candidates = study.best(_NUM_CANDIDATES)
    for record in candidates:
        jobs = _seeds(config, record)
        done: list[Pretrained] = []
        tried.append((jobs, done))
        for job in jobs:
            console.rule(f"the recipe of trial {record['key']} with seed {job.seed}", align="left")
            try:
                done.append(pretrain(_offline(job)))
            except DivergedError as error:
                console.print(str(error), style="yellow")
                tried.pop()
                break
            reason = done[-1].outcome["progress"]["stop_reason"]
            if job.duration.until_deviation and reason != "until_deviation":
                break
        else:
            return jobs, done
    if not tried:
        raise DivergedError("every recipe diverged with another seed; see above")
    console.print("no recipe reached its target with every seed; the best is taken", style="yellow")
    jobs, done = tried[0]
    done += [pretrain(_offline(job)) for job in jobs[len(done) :]]
    return jobs, done


def _register(config: SearchConfig, study: Study, run_id: str | None) -> Pretrained:
    """Run the best recipe with other seeds, and register the one in the middle."""
    with session.connect():
        jobs, done = _steady(config, study)
        found = [result.outcome["after"]["deviation"] for result in done]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        console.print(
            f"deviation over {len(found)} seeds, probes that are held out included: mean "
            f"{statistics.mean(found):.5f}, standard deviation {spread:.5f}, worst {max(found):.5f}"
        )
        if config.tracking.offline:
            return done[0]
        middle = sorted(range(len(found)), key=lambda index: found[index])[(len(found) - 1) // 2]
        tags = {
            "precalib.search": config.name,
            "precalib.search_run_id": run_id or "",
            "precalib.seeds_mean_deviation": f"{statistics.mean(found):.6f}",
            "precalib.seeds_std_deviation": f"{spread:.6f}",
        }
        console.rule(f"registering seed {jobs[middle].seed}, the median", align="left")
        wanted = config.tracking.model_dump() | {"tags": config.tracking.tags | tags}
        promote = config.promote.model_dump() if config.promote else None
        registered = jobs[middle].model_dump() | {"tracking": wanted, "promote": promote}
        return pretrain(base.validate(PretrainConfig, registered))
