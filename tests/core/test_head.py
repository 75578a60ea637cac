"""The last layers, by name and by output."""

import pytest
import torch
from torch import nn

from precalib_ray.core.head import find_head, scale_head, select_trainable
from precalib_ray.core.models import Model
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.spec import from_plain
from tests.core import user_models

K = 5
SETTINGS = MLP(num_classes=K, input_shape=(12,))
TWO = ["head", "head_dist"]


def library(kind, name, shape, **args):
    return from_plain(
        Model,
        {"kind": kind, "name": name, "num_classes": K, "input_shape": shape, "args": args},
    )


def is_at_chance(model, shape):
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)) * 30
    with torch.no_grad():
        return not any(model.train(mode)(inputs).any() for mode in (True, False))


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (user_models.Body, ["head"]),
        (user_models.Registered, ["head"]),
        (user_models.Distilled, TWO),
        (user_models.InTraining, TWO),
        (user_models.Pooled, ["conv"]),
        (user_models.Temperature, ["head"]),
        (user_models.Mixed, ["heads.0", "heads.1", "heads.2"]),
        (user_models.Repeated, ["head"]),
    ],
)
def test_found(model, head):
    torch.manual_seed(0)
    built = model(K)
    modes = [module.training for module in built.modules()]
    before = {name: value.clone() for name, value in built.state_dict().items()}
    drawn = torch.get_rng_state()
    found = find_head(built, SETTINGS)
    assert sorted(found) == head
    assert [module.training for module in built.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in built.modules())
    for name, value in built.state_dict().items():
        assert torch.equal(value, before[name])
    assert not is_at_chance(built, (12,))
    scale_head(found, 0.0)
    assert is_at_chance(built, (12,))
    select_trainable(built, SETTINGS, "head")
    trained = {name.rpartition(".")[0] for name, p in built.named_parameters() if p.requires_grad}
    assert sorted(trained) == head


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (user_models.Offset, "head cannot .*: with their parameters zeroed, the logits are not 0"),
        (user_models.LogSoftmax, "with their parameters zeroed, the logits are not 0"),
        (user_models.WeightNorm, "with their parameters zeroed, the logits are not 0"),
        (user_models.Prior, "depend on more than its output, such as a buffer"),
        (user_models.Normalized, "scaling their parameters does not scale the logits"),
        (user_models.Skip, "the logits depend on the input too"),
        (user_models.Residual, "body.0, head cannot .*: one of these layers comes before another"),
        (user_models.Tied, "another layer has head.weight too"),
        (user_models.Matrix, "the logits depend on matrix too"),
        (user_models.NoParameters, "no linear or convolution layer of the model has 5 outputs"),
        (user_models.OtherClasses, r"its output is \(32, 4\), not \(batch, 5\)"),
    ],
)
def test_refused(model, reason):
    with pytest.raises(ValueError, match=reason):
        find_head(model(K), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "head"),
    [
        (library("torchvision", "squeezenet1_1", (3, 64, 64)), ["classifier.1"]),
        (library("torchvision", "googlenet", (3, 64, 64)), ["fc"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_libraries(settings, head):
    assert sorted(find_head(settings.build(device="meta"), settings)) == head


def test_auxiliary_outputs_have_no_head():
    settings = library("torchvision", "googlenet", (3, 64, 64), aux_logits=True)
    with pytest.raises(ValueError, match="its output is GoogLeNetOutputs"):
        find_head(settings.build(device="meta"), settings)


def test_every_head_of_a_library_is_zeroed():
    settings = library("timm", "deit_tiny_distilled_patch16_224", (3, 32, 32), img_size=32)
    model = settings.build(seed=0)
    assert not is_at_chance(model, settings.input_shape)
    scale_head(find_head(model, settings), 0.0)
    assert is_at_chance(model, settings.input_shape)


def test_dropout_and_batch_norm_are_no_hindrance():
    model = nn.Sequential(
        nn.Linear(12, K), nn.BatchNorm1d(K), nn.ReLU(), nn.Dropout(), nn.Linear(K, K), nn.Dropout()
    )
    buffers = [buffer.clone() for buffer in model.buffers()]
    assert list(find_head(model, SETTINGS)) == ["4"]
    assert all(map(torch.equal, model.buffers(), buffers))
