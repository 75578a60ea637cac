import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.search import SearchConfig
from precalib_ray.config.jobs.train import TrainConfig
from precalib_ray.core.data_training import TrainData
from precalib_ray.core.dataset import DatasetInfo, Split
from precalib_ray.core.models import Model
from precalib_ray.core.noise import Noise
from precalib_ray.core.probes import DataProbe, PanelSettings
from precalib_ray.core.spec import from_plain
from precalib_ray.data import parquet
from precalib_ray.data.codec import encode_png
from precalib_ray.errors import ConfigError, DataError
from precalib_ray.runs import preflight, starting_point
from precalib_ray.runs import trials as trials_of

USER = "tests.core.user_functions"


def model(name="resnet18", shape=(3, 32, 32), **more):
    kind = "function" if ":" in name else "torchvision"
    return {"kind": kind, "name": name, "num_classes": 10, "input_shape": shape} | more


def pretraining(spec, **more):
    content = {"name": "x", "model": spec, "noise": {"kind": "gaussian"}, "duration": {"steps": 1}}
    return load.validate(PretrainConfig, content | more)


def check_model(spec, prefix="", **more):
    preflight.check_pretraining(pretraining(spec, **more), prefix=prefix)


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
    with pytest.raises(ConfigError, match=r"^recipe\.model\.input_shape: \[1, 32, 32\]: "):
        check_model(model(shape=(1, 32, 32)), "recipe.")


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


def user(name, shape=(12,), num_classes=10):
    name = f"tests.core.user_models:{name}"
    return {"kind": "function", "name": name, "num_classes": num_classes, "input_shape": shape}


def small_resnet(**args):
    return model("resnet18", (3, 32, 32), args=args)


NORM = {
    "kind": "mlp", "num_classes": 10, "input_shape": (12,), "depth": 1, "width": 4,
    "batch_norm": True,
}  # fmt: skip
INFO = DatasetInfo(10, tuple("abcdefghij"), (1, 3, 4), mean=(0.5,), std=(0.2,))
TWO_WORKERS = {"batch_size": 4, "scaling": {"num_workers": 2}}
ONE_EACH = TWO_WORKERS | {"batch_size": 3}


@pytest.mark.parametrize(
    ("spec", "more", "problem"),
    [
        (NORM, ONE_EACH, "batch_size: 3: .*gets 1 sample: Expected more than 1 .*mean 4"),
        (small_resnet(), ONE_EACH, "batch_size: 3: .*gets 1 sample: Expected more than 1 value"),
        (
            NORM,
            {
                "batch_size": 7, "scaling": {"num_workers": [1, 4]},
                "checkpoints": {"every_steps": 1},
            },
            "batch_size: 7: .*gets 1 sample: .*mean 8",
        ),
        (user("Squeezed"), ONE_EACH, r"batch_size: 3: .*its output is \(10,\), not \(batch, 10\)"),
        (user("Ghost"), {"batch_size": 7}, "batch_size: 7: .*gets 7 samples: Expected more"),
        (
            model("googlenet", (3, 64, 64), args={"aux_logits": True}), {},
            "model: 'googlenet': .*its output is GoogLeNetOutputs",
        ),
        (user("OtherClasses"), {}, r"model: .*its output is \(32, 9\), not \(batch, 10\)"),
        (user("Dictionary"), {}, "model: .*its output is dict"),
        (user("NotANumber"), {}, "model: .*gets 32 samples: its loss is NaN or infinite"),
        (user("InPlace"), {}, "model: .*modified by an inplace operation"),
        (user("Detached"), {}, "model: .*does not require grad"),
        (user("Doubles"), {}, "model.*must have the same dtype"),
        (user("NoParameters"), {}, "model: "),
        (user("Unused"), {"trainable": ["spare.*"]}, "trainable: .*does not require grad"),
        (user("Unused"), TWO_WORKERS, "scaling.num_workers: 2: .*spare.weight, one of 2, has none"),
        (
            user("Views", (3, 2, 2)), {"compute": {"channels_last": True}},
            "compute.channels_last: True: .*view size is not compatible",
        ),
        (
            user("Scattered"), {"compute": {"precision": "bf16"}},
            "compute.precision: 'bf16': .*BFloat16|dtype",
        ),
        (user("Offset"), {"head_scale": 0.0}, "head_scale: 0.0: .*the logits are not 0"),
        (user("Matrix"), {"trainable": "head"}, "trainable: 'head': .*depend on matrix too"),
    ],
)  # fmt: skip
def test_what_a_worker_would_refuse(spec, more, problem):
    before = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=f"^{problem}") as caught:
        check_model(spec, **more)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        (NORM, TWO_WORKERS),
        (NORM, ONE_EACH | {"duration": {"steps": 0}}),  # nothing is trained
        (
            NORM,
            ONE_EACH | {
                "scaling": {"num_workers": 2, "use_gpu": True},
                "compute": {"sync_batch_norm": True},
            },
        ),
        (NORM, {"compute": {"channels_last": True, "precision": "bf16", "compile": True}}),
        (small_resnet(), TWO_WORKERS),
        (user("Squeezed"), TWO_WORKERS),
        (user("Ghost"), {"batch_size": 8}),
        (user("Unused"), {}),
        (user("Views", (3, 2, 2)), {}),
        (user("Scattered"), {}),
        (user("Offset"), {}),  # no setting needs its last layer
        (user("Distilled"), {"head_scale": 0.0, "trainable": "head"}),
        (user("Branches"), {}),
        (user("Computes"), {}),
        (user("Skips"), {}),
        (user("Skips"), {"scaling": {"use_gpu": True}}),  # nothing is computed, so it is not known
        (user("Logarithm"), {}),
    ],
)  # fmt: skip
def test_what_a_worker_would_accept(spec, more):
    before = torch.random.get_rng_state()
    check_model(spec, **more)
    assert torch.equal(torch.random.get_rng_state(), before)


def data_training(spec, sizes, **more):
    """Check data training from a model, on splits of these sizes."""
    splits = {
        name: Split(torch.zeros(n, 1, 3, 4, dtype=torch.uint8), torch.zeros(n).long(), INFO)
        for name, n in sizes.items()
    }
    content = {
        "name": "x", "data": {"path": "d"}, "start": {"kind": "random", "model": spec},
        "num_unknown": 0,
    }  # fmt: skip
    config = load.validate(TrainConfig, content | more)
    starting_point.check(config, config.start.model, splits)


def test_the_smallest_part_of_a_small_data_set():
    two = {"scaling": {"num_workers": 2}}
    with pytest.raises(ConfigError, match=r"^batch_size: 128: .*gets 1 sample: Expected more"):
        data_training(NORM, {"train": 3, "val": 10}, **two)
    data_training(NORM, {"train": 4, "val": 10}, **two)


def test_the_smallest_batch_of_an_evaluation():
    with pytest.raises(ConfigError, match=r"^start.model: .*1 sample at once: .*is \(10,\), not"):
        data_training(user("Squeezed"), {"train": 300, "val": 257})
    with pytest.raises(ConfigError, match=r"^start.model: .*1 sample at once: .*is \(10,\), not"):
        data_training(user("Squeezed"), {"train": 300, "val": 64}, scaling={"num_workers": 50})
    data_training(user("Squeezed"), {"train": 300, "val": 258})


def test_a_zeroed_head_needs_a_head():
    sizes = {"train": 4, "val": 4}
    with pytest.raises(ConfigError, match=r"^start\.kind: 'zero_head': .*the logits are not 0"):
        data_training(user("Offset"), sizes, start={"kind": "zero_head", "model": user("Offset")})
    data_training(user("Offset"), sizes)


def test_a_probe_of_one_image(tmp_path):
    images, info = torch.zeros(1, 1, 3, 4, dtype=torch.uint8), INFO
    parquet.write_split(parquet.split_path(tmp_path, "test"), images, torch.tensor([0]), info=info)
    probes = from_plain(PanelSettings, {"data": {"mine": {"path": str(tmp_path)}}})
    with pytest.raises(ConfigError, match=r"^probes\.data\.mine: .*single image: .*Expected more"):
        preflight.read_probes(probes, from_plain(Model, NORM))
    assert len(preflight.read_probes(probes, from_plain(Model, NORM | {"batch_norm": False}))) == 1


def search(spec, references=("untrained",), trials=1, **recipe):
    """Check a search."""
    recipe = {"noise": {"kind": "gaussian"}, "duration": {"steps": 1}, "model": spec} | recipe
    content = {
        "name": "x", "objective": "deviation", "recipe": recipe, "references": references,
        "trials": {"num_workers": trials},
    }  # fmt: skip
    trials_of.check(load.validate(SearchConfig, content))


def test_the_models_of_a_search():
    with pytest.raises(ConfigError, match=r"^recipe\.head_scale: 0\.5: .*the logits are not 0"):
        search(user("Offset"), head_scale={"uniform": [0.5, 1.0]})
    with pytest.raises(ConfigError, match=r"^references: 'zero_head': .*the logits are not 0"):
        search(user("Offset"), references=("untrained", "zero_head"))
    search(user("Offset"))
    with pytest.raises(ConfigError, match=r"^recipe\.batch_size: .*gets 1 sample: Expected more"):
        search(NORM, trials=2, batch_size={"choice": [8, 3, 4]})
    search(NORM, trials=2, batch_size={"choice": [8, 4]})


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
    model = from_plain(Model, NORM | {"input_shape": (1, 4, 4)})
    inputs = preflight.read_probes(probes, model)["mine"]
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
