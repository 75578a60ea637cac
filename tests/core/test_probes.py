import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from precalib_ray.core import probes
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.noise.pink import Pink
from precalib_ray.core.probes import (
    Panel,
    PanelResult,
    Probe,
    class_bias,
    confidence,
    evaluation,
    noise_probe,
)
from tests.core.user_functions import small_conv

logit_tensors = st.integers(2, 12).flatmap(
    lambda k: st.lists(
        st.lists(st.floats(-500, 500, width=32), min_size=k, max_size=k), min_size=1, max_size=8
    )
).map(torch.tensor)  # fmt: skip


class Answers(nn.Module):
    """Gives its inputs as logits."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return inputs + self.nothing


def test_deviation_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    (found,) = Panel([Probe("p", logits)]).measure(Answers()).measurements
    assert found.deviation == pytest.approx((1 / 2 + 3 / 4 + 4 / 5) / 3 - 1 / 2, abs=1e-7)
    mean = [(1 / 2 + 3 / 4 + 1 / 5) / 3, (1 / 2 + 1 / 4 + 4 / 5) / 3]
    entropy = -sum(p * math.log(p) for p in mean)
    assert found.class_bias == pytest.approx(1 - entropy / math.log(2), abs=1e-7)
    assert found.classes == pytest.approx([2 / 3, 1 / 3])
    assert (found.probe, found.mode) == ("p", "running")


@settings(max_examples=150, deadline=None)
@given(logits=logit_tensors)
def test_bounds(logits):
    k = logits.shape[1]
    assert (confidence(logits) >= 1 / k - 1e-12).all()
    assert (confidence(logits) <= 1).all()
    (found,) = Panel([Probe("p", logits)]).measure(Answers()).measurements
    assert -1e-12 <= found.deviation <= 1 - 1 / k + 1e-12
    assert 0 <= found.class_bias <= 1
    assert sum(found.classes) == pytest.approx(1)
    assert found.deviation == pytest.approx(float(confidence(logits).mean()) - 1 / k, abs=1e-9)


@pytest.mark.parametrize("k", [2, 7, 1000])
def test_class_bias_at_its_ends(k):
    one_hot = torch.zeros(20, k)
    one_hot[:, 1] = 1
    assert class_bias(one_hot) == pytest.approx(1, abs=1e-12)
    assert class_bias(torch.full((20, k), 1 / k)) == pytest.approx(0, abs=1e-6)
    assert class_bias(torch.eye(k)) == pytest.approx(0, abs=1e-6)  # sure, but even


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        (m.training, getattr(m, "track_running_stats", None)) for m in model.modules()
    ]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(training):
    model = small_conv(num_classes=4).train(training)
    model[1].train(not training)
    weights, modes = snapshot(model)
    result = Panel([Probe("p", torch.randn(70, 3, 6, 6) * 3 + 1)]).measure(model)
    after, modes_after = snapshot(model)
    assert [m.mode for m in result.measurements] == ["running", "batch"]
    assert weights.keys() == after.keys() >= {"1.running_mean", "1.num_batches_tracked"}
    assert all(torch.equal(weights[key], after[key]) for key in weights)
    assert modes == modes_after


def test_modes_are_restored_after_an_error():
    model = small_conv(num_classes=4).train()
    _, modes = snapshot(model)
    with pytest.raises(RuntimeError, match="stop"), evaluation(model, "batch"):
        raise RuntimeError("stop")
    assert snapshot(model)[1] == modes


def test_both_modes_are_what_they_say():
    torch.manual_seed(0)
    model = small_conv(num_classes=4)
    inputs = torch.randn(40, 3, 6, 6) * 4 + 2
    with torch.no_grad():
        model.eval()
        running = model(inputs)
        model.train()
        batch = model(inputs)
    model.eval()
    model[1].reset_running_stats()
    torch.testing.assert_close(probes.predict(model, inputs), running)
    torch.testing.assert_close(probes.predict(model, inputs, mode="batch"), batch)
    assert not torch.allclose(running, batch)


def test_batch_norm_without_running_statistics_has_one_mode():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    result = Panel([Probe("p", torch.randn(8, 3))]).measure(model)
    assert [m.mode for m in result.measurements] == ["running"]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_modes_of_the_mlp(batch_norm):
    panel = Panel([Probe("a", torch.randn(10, 6)), Probe("b", torch.randn(7, 6))])
    model = MLP(num_classes=3, input_shape=(6,), batch_norm=batch_norm).build()
    result = panel.measure(model)
    expected = ["running", "batch"] if batch_norm else ["running"]
    assert [(m.probe, m.mode) for m in result.measurements] == [
        (probe, mode) for probe in "ab" for mode in expected
    ]
    assert result.num_forwards == panel.num_forwards(model) == 17 * len(expected)


def test_dropout_is_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(50), nn.Dropout(0.5), nn.Linear(50, 3)).train()
    inputs = torch.randn(30, 50)
    for mode in ("running", "batch"):
        first, again = (probes.predict(model, inputs, mode=mode) for _ in range(2))
        assert torch.equal(first, again)


def test_chunks_do_not_matter_without_batch_statistics():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    inputs = torch.randn(2 * probes.CHUNK + 3, 5)
    torch.testing.assert_close(probes.predict(model, inputs), model(inputs).detach())


def test_chunks_are_nearly_equal():
    """No batch of one sample, of which there are no statistics."""
    sizes = []
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    probes.predict(model, torch.randn(probes.CHUNK + 1, 4), mode="batch")
    assert sizes == [33, 32]


def test_headline_is_the_largest():
    sure, calm = torch.tensor([[5.0, 0.0]] * 3), torch.tensor([[0.1, 0.0]] * 3)
    result = Panel([Probe("calm", calm), Probe("sure", sure), Probe("zero", calm * 0)]).measure(
        Answers()
    )
    assert result.worst.probe == "sure"
    assert result.deviation == max(m.deviation for m in result.measurements)
    assert result.deviation == pytest.approx(1 / (1 + math.exp(-5)) - 0.5)
    assert result.deviations == {f"{m.probe}/running": m.deviation for m in result.measurements}
    content = result.to_json()
    assert content["worst"] == "sure/running"
    assert content["deviation"] == result.deviation
    assert [m["probe"] for m in content["measurements"]] == ["calm", "sure", "zero"]
    restored = PanelResult.from_json(content)
    assert restored.measurements == result.measurements
    assert restored.worst == result.worst


def test_headline_is_over_both_modes():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].running_var.fill_(1e6)  # calm in evaluation mode, because the signal dies
    result = Panel([Probe("p", torch.randn(32, 2))]).measure(model)
    assert result.worst.mode == "batch"
    assert result.deviation > result.measurements[0].deviation + 0.01


def test_what_is_held_out_does_not_count_for_stopping():
    calm, sure = torch.zeros(6, 2), torch.tensor([[9.0, 0.0]] * 6)
    panel = Panel([Probe("seen", calm), Probe("hidden", sure, held_out=True)])
    model = Answers()
    assert panel.measure(model).worst.probe == "hidden"
    stopping = panel.measure(model, limit=4)
    assert [m.probe for m in stopping.measurements] == ["seen"]
    assert stopping.num_forwards == panel.num_forwards(model, limit=4) == 4
    assert panel.num_forwards(model) == 12


def test_noise_probe_is_seeded_by_seed_and_name():
    def draw(name="a", seed=1):
        return noise_probe(name, Pink(), size=4, input_shape=(1, 8, 8), seed=seed).inputs

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(name="b"))
    assert not torch.equal(draw(), draw(seed=2))
    assert draw().shape == (4, 1, 8, 8)
