import json

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.spec import plain
from tests.config.examples import pretraining, refused


def test_overrides_alone():
    config = load.load(
        PretrainConfig, None,
        ["name=x", "model={kind: mlp, num_classes: 3, input_shape: [4]}", "noise.kind=pink",
         "duration.steps=5"],
    )  # fmt: skip
    assert (config.noise.kind, config.noise.alpha) == ("pink", 1.0)
    assert config.model.input_shape == (4,)


def test_override_of_a_kind_drops_the_settings_of_the_old_one():
    noise = {"kind": "pink", "alpha": 2.0, "scale": 3.0}
    config = pretraining("noise.kind=gaussian", noise=noise)
    assert plain(config.noise) == {"kind": "gaussian", "shift": 0.0, "scale": 1.0}
    config = pretraining("noise.kind=pink", noise=noise)  # the same kind keeps them
    assert (config.noise.alpha, config.noise.scale) == (2.0, 3.0)
    config = pretraining("noise.kind=student_t", "noise.df=7", noise=noise)
    assert config.noise.df == 7
    config = pretraining("optimizer.kind=sgd", optimizer={"kind": "adam", "betas": [0.5, 0.6]})
    assert config.optimizer.kind == "sgd"


def test_override_into_a_list():
    parts = [{"noise": {"kind": "gaussian"}}, {"noise": {"kind": "pink"}, "weight": 3}]
    noise = {"kind": "mixture", "parts": parts}
    config = pretraining("noise.parts.1.noise.alpha=2", "noise.parts.0.weight=9", noise=noise)
    assert [part.weight for part in config.noise.parts] == [9, 3]
    assert config.noise.parts[1].noise.alpha == 2
    config = pretraining("noise.parts.1={noise: {kind: uniform}}", noise=noise)
    assert [part.noise.kind for part in config.noise.parts] == ["gaussian", "uniform"]
    assert pretraining("model.input_shape.0=3").model.input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("override", "path", "value", "allowed"),
    [
        ("noise.parts.2.weight=1", "noise.parts.2.weight", "2", "must be an index below 2"),
        ("noise.parts.first.weight=1", "noise.parts.first.weight", "first", "must be an index"),
        ("noise.parts.-1=1", "noise.parts.-1", "-1", "must be an index below 2"),
        ("name.x=1", "name.x", 1, "name is a value and holds no fields"),
        ("noise.parts.0.weight.x=1", "noise.parts.0.weight.x", 1, "is a value and holds no"),
        ("noise", "override", "noise", "must be of the form a.b=value"),
        ("=3", "override", "=3", "must be of the form a.b=value"),
        ("noise..kind=pink", "override", "noise..kind=pink", "must be of the form a.b=value"),
        ("seed=[1", "seed", "[1", "is not a YAML value"),
    ],
)
def test_bad_override(override, path, value, allowed):
    parts = [{"noise": {"kind": "gaussian"}, "weight": 1}, {"noise": {"kind": "pink"}}]
    (problem,) = refused(pretraining, override, noise={"kind": "mixture", "parts": parts}).problems
    assert (problem.path, problem.value) == (path, value)
    assert allowed in problem.allowed


def test_values_are_yaml():
    config = pretraining(
        "seed=7", "compute.channels_last=true", "compute.clip_norm=null", "name='12'"
    )
    assert (config.seed, config.compute.channels_last, config.name) == (7, True, "12")
    assert pretraining("storage=s3://bucket/a=b").storage == "s3://bucket/a=b"


def test_override_of_one_field_keeps_the_rest_of_a_default():
    content = {
        "name": "a",
        "model": {"kind": "mlp", "num_classes": 3, "input_shape": [4]},
        "noise": {"kind": "gaussian"},
        "duration": {"steps": 9},
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in content.items()]
    config = load.load(
        PretrainConfig, None, [*overrides, "optimizer.lr=0.5", "probes.noise.pink.alpha=2"]
    )
    assert (config.optimizer.kind, config.optimizer.lr) == ("adam", 0.5)
    assert list(config.probes.noise) == ["gaussian", "pink", "patches"]
    assert config.probes.noise["pink"].alpha == 2
    other = load.load(PretrainConfig, None, [*overrides, "optimizer.kind=sgd"])
    assert other.optimizer.momentum == 0
