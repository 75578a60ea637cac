import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score, roc_curve

from precalib_ray.calibration.ood import auroc, energy, fpr_at_tpr, max_softmax, neg_entropy

SCORES = [max_softmax, energy, neg_entropy]


def test_scores_agree_with_scipy():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 4
    x = logits.double().numpy()
    p = softmax(x, axis=1)
    np.testing.assert_allclose(max_softmax(logits), p.max(axis=1), atol=1e-12)
    np.testing.assert_allclose(energy(logits), logsumexp(x, axis=1), atol=1e-12)
    np.testing.assert_allclose(neg_entropy(logits), -entropy(p, axis=1), atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_surer_is_more_known(score):
    values = score(torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 0, 0]]))
    assert values.tolist() == sorted(values.tolist())
    assert len(set(values.tolist())) == 3


@pytest.mark.parametrize("score", [max_softmax, neg_entropy])
def test_sure_answers_do_not_tie(score):
    """In float32 both confidences are 1."""
    less, more = score(torch.tensor([[20.0, 0.0], [25.0, 0.0]]))
    assert less < more


def test_neg_entropy_at_the_ends():
    values = neg_entropy(torch.tensor([[0.0] * 10, [2000.0] + [0.0] * 9]))
    assert values.tolist() == pytest.approx([-math.log(10), 0.0])


@pytest.mark.parametrize("score", SCORES)
def test_scores_refuse_what_is_no_logits(score):
    with pytest.raises(ValueError, match=r"logits must be floating \(N, K\)"):
        score(torch.zeros(5))
    with pytest.raises(ValueError, match="logits must be finite"):
        score(torch.tensor([[0.0, math.nan]]))


# few distinct values, so that ties are common
some_scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=25).map(torch.tensor)


@settings(max_examples=150, deadline=None)
@given(
    known=some_scores, unknown=some_scores, tpr=st.sampled_from([0.05, 0.07, 0.5, 0.8, 0.95, 1.0])
)
def test_agree_with_sklearn(known, unknown, tpr):
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    values = torch.cat([known, unknown]).numpy()
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    false, true, _ = roc_curve(truth, values, drop_intermediate=False)
    expected = false[np.argmax(true >= tpr)]
    assert fpr_at_tpr(known, unknown, tpr=tpr) == pytest.approx(expected, abs=1e-12)


def test_agree_with_sklearn_at_size():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(20_000, generator=generator) + 1
    unknown = torch.randn(15_000, generator=generator, dtype=torch.float64)
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    values = torch.cat([known, unknown]).numpy()
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, values), abs=1e-6)
    false, true, _ = roc_curve(truth, values, drop_intermediate=False)
    assert fpr_at_tpr(known, unknown) == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-6)


def test_ends_and_middle():
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, math.inf])
    assert auroc(high, low) == 1
    assert auroc(low, high) == 0
    assert auroc(low, low) == 0.5
    assert fpr_at_tpr(high, low) == 0
    assert fpr_at_tpr(low, high) == 1


@pytest.mark.parametrize("function", [auroc, fpr_at_tpr])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([1.0, math.nan]), "scores must not be NaN, 1 are"),
        (torch.tensor([]), r"non-empty \(N,\), got shape \(0,\)"),
        (torch.zeros(2, 2), r"non-empty \(N,\), got shape \(2, 2\)"),
    ],
)
def test_refuse(function, bad, message):
    good = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=message):
        function(bad, good)
    with pytest.raises(ValueError, match=message):
        function(good, bad)


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, math.nan])
def test_refuses_tpr(tpr):
    with pytest.raises(ValueError, match="tpr must be above 0 and at most 1"):
        fpr_at_tpr(torch.tensor([1.0]), torch.tensor([0.0]), tpr=tpr)
