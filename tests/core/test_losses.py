import pytest
import torch
import torch.nn.functional as F

from precalib_ray.core.losses import CrossEntropy, Focal, KLDivergence

K = 4


def soft(n=6):
    return torch.rand(n, K, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_losses_agree_with_torch():
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.tensor([0, 1, 2, 3, 1, 1])
    ce, kl = CrossEntropy(), KLDivergence()
    close = torch.testing.assert_close
    close(ce.sum(logits, ids), F.cross_entropy(logits, ids, reduction="sum"))
    smoothed = CrossEntropy(label_smoothing=0.3)
    expected = F.cross_entropy(logits, ids, reduction="sum", label_smoothing=0.3)
    close(smoothed.sum(logits, ids), expected)
    close(ce.sum(logits, soft()), -(soft() * logits.log_softmax(-1)).sum())
    target, prediction = torch.distributions.Categorical(soft()), logits.softmax(-1)
    expected = torch.distributions.kl_divergence(
        target, torch.distributions.Categorical(prediction)
    ).sum()
    close(kl.sum(logits, soft()), expected)
    close(kl.sum(logits, logits.softmax(-1)), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss(gamma):
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.tensor([0, 1, 2, 3, 1, 1])
    p = logits.double().softmax(-1)
    expected = sum(-((1 - p[i, k]) ** gamma) * p[i, k].log() for i, k in enumerate(ids))
    found = Focal(gamma=gamma).sum(logits, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("confident", [0.0, 40.0, 1e4])
def test_focal_gradients_are_finite(confident):
    logits = torch.tensor([[confident, 0.0], [0.0, confident]], requires_grad=True)
    Focal(gamma=2.0).sum(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
