import pytest
import torch
import torch.nn.functional as F

from precalib_ray.core.losses import loss_sum

K = 4


def soft(n=6):
    return torch.rand(n, K, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_losses_agree_with_torch():
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.tensor([0, 1, 2, 3, 1, 1])
    ce, kl = {"kind": "cross_entropy"}, {"kind": "kl_div"}
    close = torch.testing.assert_close
    close(loss_sum(ce, logits, ids), F.cross_entropy(logits, ids, reduction="sum"))
    smoothed = ce | {"label_smoothing": 0.3}
    expected = F.cross_entropy(logits, ids, reduction="sum", label_smoothing=0.3)
    close(loss_sum(smoothed, logits, ids), expected)
    close(loss_sum(ce, logits, soft()), -(soft() * logits.log_softmax(-1)).sum())
    target, prediction = torch.distributions.Categorical(soft()), logits.softmax(-1)
    expected = torch.distributions.kl_divergence(
        target, torch.distributions.Categorical(prediction)
    ).sum()
    close(loss_sum(kl, logits, soft()), expected)
    close(loss_sum(kl, logits, logits.softmax(-1)), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss(gamma):
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(1)) * 3
    ids = torch.tensor([0, 1, 2, 3, 1, 1])
    p = logits.double().softmax(-1)
    expected = sum(-((1 - p[i, k]) ** gamma) * p[i, k].log() for i, k in enumerate(ids))
    found = loss_sum({"kind": "focal", "gamma": gamma}, logits, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("confident", [0.0, 40.0, 1e4])
def test_focal_gradients_are_finite(confident):
    logits = torch.tensor([[confident, 0.0], [0.0, confident]], requires_grad=True)
    loss_sum({"kind": "focal", "gamma": 2.0}, logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
