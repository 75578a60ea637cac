import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.core.runs import K, batches
from tests.core.runs import make_engine as make
from tests.core.user_functions import small_conv

# the learning rate


def test_the_optimizer_gets_the_rate_of_the_step():
    engine = make(schedule={"kind": "linear", "warmup_steps": 2}, num_steps=6)
    for step in (0, 1, 4):
        engine.step(step, *batches(step), batch_size=8)
        assert engine.optimizer.param_groups[0]["lr"] == engine.rate(step)
    assert engine.rate(4) == pytest.approx(0.05)


# losses


def test_one_kl_step_from_uniform_targets_is_one_of_cross_entropy():
    """They differ by the entropy of the targets, which has no gradient."""
    inputs, _ = batches(0)
    targets = torch.full((8, K), 1 / K)
    ended = []
    for kind in ("kl_div", "cross_entropy"):
        engine = make(loss={"kind": kind})
        engine.step(0, inputs, targets, batch_size=8)
        ended.append(engine.model.state_dict())
    for key in ended[0]:
        torch.testing.assert_close(ended[0][key], ended[1][key], atol=1e-7, rtol=1e-5)


# the step

OPTIMIZERS = {
    "sgd": ({"kind": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, 0.1)),
    "nesterov": (
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        {"kind": "adam", "lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.9), weight_decay=0.1),
    ),
    "adamw": (
        {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_a_plain_loop(name, clip_norm):
    spec, reference = OPTIMIZERS[name]
    engine = make(optimizer=spec, clip_norm=clip_norm)
    assert all(group["fused"] for group in engine.optimizer.param_groups)
    model = copy.deepcopy(engine.model)
    optimizer = reference(model.parameters())
    for step in range(4):
        inputs, targets = batches(step)
        optimizer.zero_grad()
        expected = F.cross_entropy(model(inputs), targets)
        expected.backward()
        if clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            assert norm > clip_norm  # or it would not be clipped
        optimizer.step()
        loss = engine.step(step, inputs, targets, batch_size=8)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected.detach())
    for found, wanted in zip(engine.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert found.grad is None


def test_clipped_step_has_the_norm():
    engine = make(optimizer={"kind": "sgd", "lr": 1.0}, clip_norm=0.01)
    before = [p.detach().clone() for p in engine.parameters]
    engine.step(0, *batches(0), batch_size=8)
    change = torch.cat([(p - q).flatten() for p, q in zip(engine.parameters, before, strict=True)])
    assert float(change.detach().norm()) == pytest.approx(0.01, rel=1e-3)


def test_head_alone_is_trained():
    engine = make(optimizer={"kind": "adamw", "lr": 0.1, "weight_decay": 0.5}, trainable="head")
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    for step in range(3):
        engine.step(step, *batches(step), batch_size=8)
    changed = {k for k, v in engine.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32():
    outputs = []
    engine = make(small_conv(K), precision="bf16")
    engine.model[0].register_forward_hook(lambda _, x, out: outputs.append(out.dtype))
    losses = [engine.step(s, *batches(s, 8, (3, 6, 6)), batch_size=8) for s in range(3)]
    assert outputs == [torch.bfloat16] * 3
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "bf16"}])
def test_other_formats_give_nearly_the_same_steps(options):
    torch.manual_seed(0)
    model = small_conv(K)
    plain, other = make(copy.deepcopy(model)), make(copy.deepcopy(model), **options)
    for step in range(5):
        inputs, targets = batches(step, 16, (3, 6, 6))
        first = plain.step(step, inputs, targets, batch_size=16)
        second = other.step(step, inputs, targets, batch_size=16)
        bound = 0.03 if "precision" in options else 1e-4
        assert float(second) == pytest.approx(float(first), rel=bound)


def test_channels_last_reaches_weights_and_inputs():
    seen = []
    engine = make(small_conv(K), channels_last=True)
    engine.model.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    engine.step(0, *batches(0, 8, (3, 6, 6)), batch_size=8)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert engine.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    make(channels_last=True).step(0, *batches(0), batch_size=8)  # flat inputs are left alone


@pytest.mark.e2e
def test_compiled_steps_are_those_of_the_model():
    plain, compiled = make(), make(compile=True)
    for step in range(3):
        first, second = (e.step(step, *batches(step), batch_size=8) for e in (plain, compiled))
        torch.testing.assert_close(first, second)
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[key], value)
