import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from precalib_ray.calibration.metrics import METRICS, evaluate, metric, reliability

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from netcal.metrics import ECE

KEYS = {"accuracy", "mean_confidence", "overconfidence", "ece", "nll", "brier"}


def make(seed, num=700, num_classes=7, scale=2.0):
    """Logits that know their labels a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num,), generator=generator)
    logits = torch.randn(num, num_classes, generator=generator, dtype=torch.float64) * scale
    logits[torch.arange(num), labels] += scale
    return logits, labels


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("num_classes", [2, 7, 15])
def test_agrees_with_independent_libraries(scale, num_classes):
    logits, labels = make(seed=num_classes, num_classes=num_classes, scale=scale)
    probabilities = logits.softmax(dim=1)
    p, y = probabilities.numpy(), labels.numpy()
    result = evaluate(logits, labels)

    torchmetrics_ece = multiclass_calibration_error(probabilities, labels, num_classes, n_bins=15)
    predicted = p.argmax(axis=1)
    assert result["ece"] == pytest.approx(float(torchmetrics_ece), abs=1e-6)
    assert result["ece"] == pytest.approx(netcal_ece(p, y), abs=1e-6)
    assert result["nll"] == pytest.approx(log_loss(y, p, labels=range(num_classes)), abs=1e-6)
    brier = brier_score_loss(
        y, p if num_classes > 2 else p[:, 1], labels=range(num_classes), scale_by_half=False
    )
    assert result["brier"] == pytest.approx(brier, abs=1e-6)
    assert result["accuracy"] == pytest.approx(accuracy_score(y, predicted), abs=1e-12)
    assert result["mean_confidence"] == pytest.approx(p.max(axis=1).mean(), abs=1e-12)


def netcal_ece(p, y, num_bins=15):
    """On confidence and correctness: netcal's own arg-max bins all K columns for K = 2."""
    return float(ECE(bins=num_bins).measure(p.max(axis=1), (p.argmax(axis=1) == y).astype(int)))


@pytest.mark.parametrize("num_bins", [1, 4, 40])
def test_number_of_bins_is_used(num_bins):
    logits, labels = make(seed=3)
    p = logits.softmax(dim=1)
    expected = multiclass_calibration_error(p, labels, 7, n_bins=num_bins)
    assert evaluate(logits, labels, num_bins=num_bins)["ece"] == pytest.approx(
        float(expected), abs=1e-6
    )


def test_confidence_one_belongs_to_the_last_bin():
    # confidence 0.95, always right, and confidence 1, half right: their gaps have opposite signs
    logits = torch.tensor([[math.log(19), 0.0]] * 10 + [[800.0, 0.0]] * 10, dtype=torch.float64)
    labels = torch.tensor([0] * 10 + [0, 1] * 5)
    diagram = reliability(logits, labels)
    assert diagram.count.tolist() == [0] * 14 + [20]
    assert diagram.ece == pytest.approx((0.95 + 1) / 2 - 0.75, abs=1e-12)
    p = logits.softmax(dim=1).numpy()
    assert diagram.ece == pytest.approx(netcal_ece(p, labels.numpy()), abs=1e-9)


def test_left_edges_belong_to_their_bin():
    # p = (0.5, 0.5): confidence is exactly the inner edge of two bins
    diagram = reliability(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), num_bins=2)
    assert diagram.count.tolist() == [0, 4]
    assert diagram.edges.tolist() == [0, 0.5, 1]


def test_chance_by_hand():
    labels = torch.arange(10).repeat(5)
    result = evaluate(torch.full((50, 10), 0.7), labels)
    assert result.keys() == KEYS
    assert result["accuracy"] == pytest.approx(0.1)
    assert result["mean_confidence"] == pytest.approx(0.1)
    assert result["overconfidence"] == pytest.approx(0.0, abs=1e-12)
    assert result["ece"] == pytest.approx(0.0, abs=1e-12)
    assert result["nll"] == pytest.approx(math.log(10))
    assert result["brier"] == pytest.approx(0.9)


def test_logits_within_zero_and_one_are_still_logits():
    """A library that guesses would take these for probabilities."""
    logits = torch.tensor([[0.9, 0.1]])
    result = evaluate(logits, torch.tensor([0]))
    assert result["mean_confidence"] == pytest.approx(1 / (1 + math.exp(-0.8)))


def test_overconfidence_is_signed():
    sure_and_wrong = evaluate(torch.tensor([[9.0, 0.0]]), torch.tensor([1]))
    timid_and_right = evaluate(torch.tensor([[0.1, 0.0]]), torch.tensor([0]))
    assert sure_and_wrong["overconfidence"] > 0.9
    assert timid_and_right["overconfidence"] < -0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_logits_lose_nothing_more(dtype):
    logits, labels = make(seed=1, scale=5.0)
    low = logits.to(dtype).requires_grad_()
    assert evaluate(low, labels) == evaluate(low.detach().double(), labels)


def test_reliability_is_the_ece_taken_apart():
    logits, labels = make(seed=2)
    diagram = reliability(logits, labels)
    result = evaluate(logits, labels)
    filled = diagram.count > 0
    share = diagram.count[filled] / len(labels)
    assert 0 < filled.sum() < 15
    assert diagram.count.sum() == len(labels)
    assert diagram.confidence[~filled].isnan().all()
    assert diagram.accuracy[~filled].isnan().all()
    assert diagram.ece == result["ece"]
    assert float((share * diagram.accuracy[filled]).sum()) == pytest.approx(result["accuracy"])
    assert float((share * diagram.confidence[filled]).sum()) == pytest.approx(
        result["mean_confidence"]
    )
    assert (diagram.confidence[filled] >= diagram.edges[:-1][filled]).all()
    assert (diagram.confidence[filled] <= diagram.edges[1:][filled]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num=st.integers(1, 40),
    num_classes=st.integers(2, 12),
    scale=st.sampled_from([0.0, 0.1, 3.0, 1000.0]),
)
def test_bounds(seed, num, num_classes, scale):
    logits, labels = make(seed, num, num_classes, scale)
    result = evaluate(logits, labels)
    slack = 1e-12
    assert 1 / num_classes - slack <= result["mean_confidence"] <= 1 + slack
    assert 0 <= result["accuracy"] <= 1
    # the gap of the whole sample is at most the mean gap of its parts
    assert abs(result["overconfidence"]) - slack <= result["ece"] <= 1 + slack
    assert result["nll"] >= 0
    assert -slack <= result["brier"] <= 2 + slack
    # permuting the classes changes nothing but which of equal classes comes first
    if scale > 0:
        order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
        permuted = evaluate(logits[:, order], order.argsort()[labels])
        assert permuted == pytest.approx(result, abs=1e-9)


LOGITS, LABELS = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), LABELS, r"logits must be floating \(N, K\), got torch.float32 .* \(3,\)"),
        (torch.zeros(3, 2).long(), LABELS, "logits must be floating .* torch.int64"),
        (torch.zeros(0, 2), LABELS[:0], r"at least 1 sample and 2 classes, got shape \(0, 2\)"),
        (torch.zeros(3, 1), LABELS, r"at least 1 sample and 2 classes, got shape \(3, 1\)"),
        (torch.tensor([[0.0, math.nan], [math.inf, 0], [0, 1]]), LABELS, "finite, 2 of 3 samples"),
        (LOGITS, LABELS[:2], r"labels must be int64 of shape \(3,\) .* shape \(2,\)"),
        (LOGITS, LABELS.float(), "labels must be int64 .* torch.float32"),
        (LOGITS, LABELS + 2, r"labels must be in 0\.\.1, got 2"),
        (LOGITS, LABELS - 1, r"labels must be in 0\.\.1, got -1"),
    ],
)
@pytest.mark.parametrize("function", [evaluate, reliability])
def test_refuses(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


@pytest.mark.parametrize("function", [evaluate, reliability])
def test_refuses_no_bins(function):
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        function(LOGITS, LABELS, num_bins=0)


def test_a_metric_is_registered_by_being_decorated():
    logits, labels = make(seed=4)
    before = evaluate(logits, labels)

    @metric("share of class 0")
    def share_of_first(scores):
        return (scores.labels == 0).double().mean()

    try:
        result = evaluate(logits, labels)
    finally:
        del METRICS["share_of_first"]
    assert (share_of_first.name, share_of_first.label) == ("share_of_first", "share of class 0")
    assert result == before | {"share_of_first": pytest.approx(float((labels == 0).float().mean()))}
    assert list(result) == [*before, "share_of_first"]
    assert evaluate(logits, labels) == before
