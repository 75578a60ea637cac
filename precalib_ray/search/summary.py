"""A search in words: its progress, the table of the best trials, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precalib_ray.search.trial import Trial
from precalib_ray.search.trials import TrialLog


def progress(log: TrialLog) -> str:
    """Text that follows the number of trials that have ended."""
    trials = list(log.records.values())
    text = f"trials, {sum(not t.ended for t in trials)} running"
    failed = sum(t.state == "failed" for t in trials)
    if failed:
        text += f", {failed} failed"
    for best in log.best():
        text += f", best {best.deviation:.4f} after {best.samples:,} samples"
    return text


def table(log: TrialLog) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the ten best trials and the reference trials."""
    shown = [(str(place), trial) for place, trial in enumerate(log.best(10), start=1)]
    shown += [(t.reference or "", t) for t in log.references if t.state != "failed"]
    header = ["", "trial", "deviation", "samples", "seconds", *log.objective.columns, "recipe"]
    rows = [
        [
            place,
            "" if trial.reference else trial.key,
            # Rounding can make a deviation negative.
            "" if trial.deviation is None else f"{max(0.0, trial.deviation):.4f}",
            "" if trial.samples is None else f"{trial.samples:,}",
            "" if trial.compute_seconds is None else f"{trial.compute_seconds:.1f}",
            *log.objective.cells(trial),
            recipe(trial.recipe or {}),
        ]
        for place, trial in shown
    ]
    return header, rows


def recipe(content: Mapping[str, Any]) -> str:
    """A recipe, given as plain data, in one line."""
    if content["duration"]["steps"] == 0:
        return "zeroed last layer, no training" if content["head_scale"] == 0 else "no training"
    noise, optimizer = content["noise"], content["optimizer"]
    exponent = f" {noise['alpha']:.2g}" if "alpha" in noise else ""
    return (
        f"{noise['kind']}{exponent}, {content['labels']['kind']}, "
        f"{optimizer['kind']} {optimizer['lr']:.2g}, batch {content['batch_size']}, "
        f"head {content['head_scale']:.2g}"
    )


def failures(log: TrialLog) -> list[Trial]:
    """Trials that have failed, reference trials excluded."""
    return [trial for trial in log.trials if trial.state == "failed"]


def counts(log: TrialLog) -> str:
    """The number of trials by state."""
    states = [trial.state for trial in log.trials]
    return (
        f"trials: {len(states)}, of them {states.count('finished')} finished, "
        f"{states.count('stopped')} stopped early, {states.count('failed')} failed"
    )


def cost(log: TrialLog) -> str:
    """The total compute time of trials, and the wall-clock time of the search."""
    compute = sum(trial.compute_seconds or 0.0 for trial in log.records.values())
    return f"{compute:.0f} s of compute time in {log.seconds:.0f} s"


def metrics(best: Trial) -> dict[str, float]:
    """Metrics of the search's run in MLflow."""
    assert best.deviation is not None, "it is scored"
    assert best.samples is not None, "it is scored"
    return {"best/deviation": best.deviation, "best/samples": best.samples}
