import pytest
import torch

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.noise import Noise
from precalib_ray.core.spec import from_plain
from precalib_ray.errors import ConfigError
from precalib_ray.runs import preflight

USER = "tests.core.user_functions"


def model(name="resnet18", shape=(3, 32, 32), **more):
    kind = "function" if ":" in name else "torchvision"
    return {"kind": kind, "name": name, "num_classes": 10, "input_shape": shape} | more


def check_model(spec, *path, trainable="all"):
    content = {
        "name": "x", "model": spec, "noise": {"kind": "gaussian"}, "duration": {"steps": 1},
        "trainable": trainable,
    }  # fmt: skip
    config = load.validate(PretrainConfig, content)
    preflight.check_model(config.model, config, *path)


def check_noise(spec, shape, *path):
    preflight.check_noise(from_plain(Noise, spec), shape, {}, *path)


@pytest.mark.parametrize(
    ("spec", "path", "value", "allowed"),
    [
        (
            model(shape=(1, 32, 32)), "model.input_shape", [1, 32, 32],
            "the model refuses inputs of shape (1, 32, 32); it takes (3, 32, 32)",
        ),
        (
            model("vit_b_16"), "model.input_shape", [3, 32, 32],
            "the model refuses inputs of shape (3, 32, 32); it takes (3, 224, 224)",
        ),
        (
            model("inception_v3"), "model.input_shape", [3, 32, 32],
            "the model refuses inputs of shape (3, 32, 32); it takes (3, 224, 224)",
        ),
        (model(args={"no_such": 1}), "model", "resnet18", "no_such"),
        (model(f"{USER}:no_module"), "model", f"{USER}:no_module", "returned str, not a torch.nn"),
        (model(f"{USER}:absent"), "model", f"{USER}:absent", "has no function 'absent'"),
        (model("no_such_module:f"), "model", "no_such_module:f", "does not import"),
        (
            model(f"{USER}:three_classes", (12,)), "model.input_shape", [12],
            "its output is (2, 3), not (batch, 10)",
        ),
    ],
)  # fmt: skip
def test_model_refused(spec, path, value, allowed):
    with pytest.raises(ConfigError) as caught:
        check_model(spec)
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == (path, value)
    assert allowed in problem.allowed
    assert "\n" not in str(caught.value)


def test_models_accepted():
    check_model(model())
    check_model(model("regnet_x_400mf"))
    check_model(model(shape=(1, 16, 16), small_stem=True))
    check_model(model(f"{USER}:small_conv"))
    check_model(model(f"{USER}:computing", (3, 2, 2)))


def test_path_of_a_model_elsewhere():
    with pytest.raises(ConfigError, match=r"^start\.model\.input_shape: \[1, 32, 32\]: "):
        check_model(model(shape=(1, 32, 32)), "start.model")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("no_such_module:f", "module 'no_such_module' does not import: ModuleNotFoundError"),
        (f"{USER}:absent", "has no function 'absent'"),
        (f"{USER}:wrong_shape", "wrong_shape returned shape (2, 3, 4, 5), not (2, 3, 4, 4)"),
        (f"{USER}:no_tensor", "no_tensor returned list, not a tensor"),
        (f"{USER}:with_nan", "it gives values that are NaN or infinite"),
        (f"{USER}:raises", "RuntimeError: out of noise"),
    ],
)
def test_noise_refused(name, allowed):
    with pytest.raises(ConfigError) as caught:
        check_noise({"kind": "function", "name": name}, (3, 4, 4))
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("noise", name)
    assert allowed in problem.allowed
    with pytest.raises(ConfigError, match=r"^probes\.noise\.mine: "):
        check_noise({"kind": "function", "name": name}, (3, 4, 4), "probes.noise.mine")


def test_noise_accepted():
    for spec in (
        {"kind": "gaussian"},
        {"kind": "pink", "alpha": 2.0},
        {"kind": "function", "name": f"{USER}:two_sided"},
    ):
        before = torch.random.get_rng_state()
        check_noise(spec, (3, 4, 4))
        check_noise(spec, (12,))
        assert torch.equal(torch.random.get_rng_state(), before)


def test_trainable():
    for good in ("all", "head", ["layer4.*", "fc.bias"]):
        check_model(model(), trainable=good)
    with pytest.raises(ConfigError, match=r"^trainable: \['layer5\.\*'\]: 'layer5\.\*' matches no"):
        check_model(model(), trainable=["layer5.*"])


def test_sources_of_matched_noise():
    def matched(path):
        return {"kind": "matched", "data": path}

    parts = [{"weight": 1.0, "noise": n} for n in (matched("a"), {"kind": "pink"}, matched("b"))]
    mixture = {"kind": "mixture", "parts": parts}
    outer = {"kind": "mixture", "parts": [{"noise": mixture}, {"noise": matched("c")}]}

    def sources(spec):
        return from_plain(Noise, spec).sources()

    assert sources(outer) == {"a", "b", "c"}
    assert sources(matched("a")) == {"a"}
    assert sources({"kind": "pink"}) == set()
