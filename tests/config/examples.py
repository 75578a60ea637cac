"""Small configs, and what the tests of configs do with bad ones."""

import pytest
import yaml

from precalib_ray.config import load, overrides
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.errors import ConfigError

PRETRAIN = {
    "name": "x",
    "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8]},
    "noise": {"kind": "gaussian"},
    "duration": {"steps": 100},
}
RESNET = {
    "kind": "torchvision", "name": "resnet18", "num_classes": 10, "input_shape": [3, 32, 32]
}  # fmt: skip
TRAIN = {"name": "x", "start": {"kind": "random", "model": RESNET}, "data": {"path": "p"}}


def pretraining(*changed, **changes):
    """``PRETRAIN`` with other fields, and then with overrides."""
    content = yaml.safe_load(yaml.safe_dump(PRETRAIN | changes))
    overrides.apply(PretrainConfig, content, *changed)
    return load.validate(PretrainConfig, content)


def refused(call, *arguments, **keywords):
    """The error of a call that must raise ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    assert caught.value.exit_code == 2
    return caught.value
