import math
import time
from dataclasses import dataclass

import pytest

from precalib_ray.core import loop
from precalib_ray.core.loop import Phase, run
from precalib_ray.core.progress import Progress
from precalib_ray.core.stopping import Duration
from precalib_ray.errors import DivergedError
from tests.core.runs import Callbacks, batches, make_engine, same_bits


@dataclass(frozen=True)
class Evaluated:
    step: int
    samples: int
    deviation: float
    num_forwards: int = 0
    loss: float | None = None


class Steps(Phase):
    """Steps of an engine on batches of 8, evaluated by a function after some of them."""

    batch_size = 8

    def __init__(
        self, engine=None, batch=batches, *, progress=None, evaluate=None,
        evaluate_at=lambda progress: False, save_every=None, **duration,
    ):  # fmt: skip
        self.engine, self.duration = engine or make_engine(), Duration(**duration)
        self.progress, self.save_every = progress or Progress(), save_every
        self._batch, self._evaluate, self._evaluate_at = batch, evaluate, evaluate_at

    def batch(self, step):
        return self._batch(step)

    def evaluates_now(self):
        return self._evaluate_at(self.progress)

    def evaluate(self):
        progress = self.progress
        return Evaluated(progress.step, progress.samples, **self._evaluate(progress))


def test_mean_losses_and_counts():
    engine, reference = make_engine(), make_engine()
    progress = run(Steps(engine, steps=7))
    losses = [float(reference.step(s, *batches(s), batch_size=8)) for s in range(7)]
    assert (progress.step, progress.samples, progress.stop_reason) == (7, 56, "steps")
    assert progress.mean_loss == pytest.approx(sum(losses) / 7)
    assert progress.seconds > 0
    assert Progress().mean_loss is None


@pytest.mark.parametrize("check_every", [1, 4, 16])
def test_looking_at_losses_later_changes_nothing(check_every, monkeypatch):
    monkeypatch.setitem(loop.CHECK_EVERY, "cpu", check_every)
    engine = make_engine()
    progress = run(Steps(
        engine, steps=11,
        evaluate=lambda p: {"deviation": 1.0, "loss": p.mean_loss},
        evaluate_at=lambda p: p.step == 6,
    ))  # fmt: skip
    reference = make_engine()
    losses = [float(reference.step(s, *batches(s), batch_size=8)) for s in range(11)]
    assert progress.history[0].loss == pytest.approx(sum(losses[:6]) / 6)
    assert progress.mean_loss == pytest.approx(sum(losses[6:]) / 5)
    assert same_bits(engine.model.state_dict(), reference.model.state_dict())


@pytest.mark.parametrize(
    ("duration", "steps", "reason"),
    [
        ({"steps": 5}, 5, "steps"),
        ({"samples": 40}, 5, "samples"),
        ({"samples": 33}, 5, "samples"),
        ({"steps": 5, "samples": 41}, 5, "steps"),
        ({"steps": 6, "samples": 40}, 5, "samples"),
        ({"steps": 5, "seconds": 1000}, 5, "steps"),
        ({"steps": 50, "until_deviation": 0.1}, 3, "until_deviation"),
        ({"steps": 50, "until_deviation": 0.1, "patience": 2}, 6, "until_deviation"),
        ({"steps": 50, "until_deviation": 0.05, "patience": 2}, 9, "until_deviation"),
        ({"steps": 5, "until_deviation": 0.1, "patience": 2}, 5, "steps"),
        ({"steps": 3, "until_deviation": 0.1}, 3, "until_deviation"),
    ],
)
def test_durations(duration, steps, reason):
    deviations = iter([0.5, 0.5, 0.1, 0.2, 0.1, 0.1, 0.06, 0.05, 0.01, 0.01])
    progress = run(Steps(
        **duration,
        evaluate=lambda _: {"deviation": next(deviations), "num_forwards": 3},
        evaluate_at=lambda _: True,
    ))  # fmt: skip
    assert (progress.step, progress.stop_reason) == (steps, reason)
    assert [evaluated.step for evaluated in progress.history] == list(range(1, steps + 1))
    assert progress.evaluation_forwards == 3 * steps
    assert progress.history[-1].samples == 8 * steps


def test_deviation_is_ignored_without_a_limit():
    progress = run(
        Steps(steps=4, evaluate=lambda _: {"deviation": 0.0}, evaluate_at=lambda _: True)
    )
    assert progress.stop_reason == "steps"
    assert progress.hits == 0


def test_seconds_end_a_run_and_do_not_count_probing():
    def slow(step):
        time.sleep(0.01)
        return batches(step)

    def probe(_):
        time.sleep(0.03)
        return {"deviation": 1.0}

    begun = time.perf_counter()
    progress = run(Steps(
        batch=slow, steps=1000, seconds=0.2, evaluate=probe, evaluate_at=lambda p: p.step % 2 == 0
    ))  # fmt: skip
    took = time.perf_counter() - begun
    assert progress.stop_reason == "seconds"
    assert 0.2 <= progress.seconds < took
    assert 2 <= progress.step <= 20
    assert progress.evaluation_seconds >= 0.03 * len(progress.history) > 0
    assert progress.seconds + progress.evaluation_seconds == pytest.approx(took, abs=0.1)


def test_seconds_spent_before_a_resumption_count():
    before = Progress(step=3, samples=24, seconds=99.9999)
    progress = run(Steps(seconds=100.0, progress=before))
    assert progress.stop_reason == "seconds"
    assert progress.step < 30


@pytest.mark.parametrize(
    ("duration", "reason", "hits"),
    [
        ({"steps": 5}, "steps", 0),
        ({"samples": 40}, "samples", 0),
        ({"seconds": 9.0}, "seconds", 0),
        ({"steps": 9, "until_deviation": 0.1, "patience": 2}, "until_deviation", 2),
    ],
)
def test_a_finished_run_does_no_step(duration, reason, hits):
    def refuse(step):
        raise AssertionError("a step was taken")

    finished = Progress(step=5, samples=40, seconds=9.01, hits=hits, stop_reason=reason)
    progress = run(Steps(batch=refuse, **duration, progress=finished))
    assert progress.stop_reason == reason


def poisoned(bad_step, value=math.nan):
    def batch(step):
        inputs, targets = batches(step)
        if step == bad_step:
            inputs = inputs * value
        return inputs, targets

    return batch


@pytest.mark.parametrize("check_every", [1, 16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("bad_step", "last"), [(5, "at-4"), (2, "none was written yet"), (8, "at-8")]
)
def test_divergence_names_step_rate_and_checkpoint(bad_step, last, value, check_every, monkeypatch):
    monkeypatch.setitem(loop.CHECK_EVERY, "cpu", check_every)
    saved = []

    def save(progress):
        saved.append(progress.step)
        return f"at-{progress.step}"

    engine = make_engine(schedule={"kind": "linear", "warmup_steps": 0}, num_steps=20)
    with pytest.raises(DivergedError) as caught:
        run(Steps(engine, poisoned(bad_step, value), steps=20, save_every=4), Callbacks(save=save))
    rate = 0.1 * (1 - bad_step / 20)
    message = str(caught.value)
    assert f"at step {bad_step}, learning rate {rate:.3g}; last good checkpoint: {last}" in message
    assert max(saved, default=0) <= bad_step
    assert caught.value.exit_code == 5


def test_progress_is_reported(monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.0)
    reports = []
    engine, reference = make_engine(), make_engine()

    def on_progress(progress, metrics):
        reports.append((progress.step, progress.samples, progress.seconds, metrics))

    run(Steps(engine, steps=5), Callbacks(on_progress=on_progress))
    losses = [float(reference.step(s, *batches(s), batch_size=8)) for s in range(5)]
    assert [step for step, *_ in reports] == [1, 2, 3, 4, 5]
    assert [samples for _, samples, *_ in reports] == [8, 16, 24, 32, 40]
    assert [m.loss for *_, m in reports] == pytest.approx(losses)
    assert all(m.learning_rate == 0.1 and m.samples_per_second > 0 for *_, m in reports)
    seconds = [s for _, _, s, _ in reports]
    assert seconds == sorted(seconds)


def test_progress_is_reported_in_intervals_and_at_the_end(monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 0.1)
    reports = []

    def slow(step):
        time.sleep(0.01)
        return batches(step)

    def on_progress(progress, metrics):
        reports.append((progress.step, metrics.samples_per_second))

    begun = time.perf_counter()
    run(Steps(batch=slow, steps=25), Callbacks(on_progress=on_progress))
    took = time.perf_counter() - begun
    assert reports[-1][0] == 25
    assert 2 <= len(reports) <= took / 0.1 + 1
    assert all(0 < rate < 800 for _, rate in reports)  # at most 8 samples in 10 ms


def test_model_is_in_train_mode_after_an_evaluation():
    engine = make_engine()
    modes = []

    def batch(step):
        modes.append(engine.model.training)
        return batches(step)

    def evaluate(_):
        engine.model.eval()
        return {"deviation": 1.0}

    run(Steps(engine, batch, steps=4, evaluate=evaluate, evaluate_at=lambda _: True))
    assert modes == [True] * 4
