import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.data_training import TrainData
from precalib_ray.core.noise import Noise
from precalib_ray.core.probes import DataProbe, PanelSettings
from precalib_ray.core.spec import from_plain
from precalib_ray.data.codec import encode_png
from precalib_ray.errors import ConfigError, DataError
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


def write(path, *, num=6, labels=None, image="image", metadata=None):
    """A file of another program: gray images of 4 x 4, image i of brightness 10 * i."""
    cells = [encode_png(np.full((1, 4, 4), 10 * i, dtype=np.uint8)) for i in range(num)]
    columns = {image: cells} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("labels", [None, [-1] * 6, ["ant", "owl", None] * 2])
def test_a_data_probe_needs_no_labels(tmp_path, labels):
    write(tmp_path / "test.parquet", labels=labels, image="img")
    probes = PanelSettings(data={"mine": DataProbe(path=str(tmp_path), image_column="img")}, size=4)
    inputs = preflight.read_probes(probes, (1, 4, 4))["mine"]
    assert inputs.shape == (4, 1, 4, 4)
    assert inputs.mean().abs() < 1e-6
    assert (inputs[:, 0, 0, 0].diff() > 0).all()


def test_matched_noise_needs_no_labels(tmp_path):
    write(tmp_path / "train.parquet")
    noise = from_plain(Noise, {"kind": "matched", "data": str(tmp_path)})
    assert preflight.read_statistics([noise], (1, 4, 4)).keys() == {str(tmp_path)}


def test_data_of_another_program_to_train_on(tmp_path, capsys):
    for name in ("train", "val"):
        write(tmp_path / f"{name}.parquet", labels=pa.array([0, 1, 2, 0, 1, None], "uint8"))
    with pytest.raises(DataError, match="says the number of classes: set num_classes"):
        preflight.read_splits(TrainData(path=str(tmp_path)))
    data = TrainData(path=str(tmp_path), num_classes=3, on_bad_row="skip")
    splits = preflight.read_splits(data)
    assert splits["val"].info == splits["train"].info
    assert splits["train"].info.class_names == ("0", "1", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("train.parquet: row group 0, row 5: label is null")
    assert lines[1] == f"{tmp_path}: 1 rows of train are left out"
    assert len(lines) == 4
