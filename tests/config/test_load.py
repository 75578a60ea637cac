import dataclasses
import hashlib
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from precalib_ray.config import jobs, load
from precalib_ray.config.jobs.convert import ConvertConfig
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.train import TrainConfig
from precalib_ray.core.spec import plain
from tests.config.examples import PRETRAIN, TRAIN, pretraining, refused


def written(tmp_path, content, name="job.yaml"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


# files


def test_missing_file_with_the_nearest_name(tmp_path):
    written(tmp_path, PRETRAIN, "pretrain_mlp.yaml")
    error = refused(load.load, PretrainConfig, tmp_path / "pretrain_mpl.yaml")
    (problem,) = error.problems
    assert (problem.path, problem.value) == ("config file", str(tmp_path / "pretrain_mpl.yaml"))
    assert problem.allowed == "cannot be read"
    assert problem.hint == str(tmp_path / "pretrain_mlp.yaml")
    assert str(error).endswith(f"(did you mean {tmp_path / 'pretrain_mlp.yaml'}?)")


def test_directory_is_no_file(tmp_path):
    assert refused(load.load, PretrainConfig, tmp_path).problems[0].allowed == "cannot be read"


@pytest.mark.parametrize("content", ["a: [1", "a: b: c", "\t- x", "!!python/object:os.system {}"])
def test_not_yaml(content, tmp_path):
    error = refused(load.load, PretrainConfig, written(tmp_path, content))
    (problem,) = error.problems
    assert problem.path == "config file"
    assert problem.allowed.startswith("is not YAML: ")
    assert "\n" not in str(error)


def test_binary_file(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    (problem,) = refused(load.load, PretrainConfig, file).problems
    assert problem.path == "config file"


@pytest.mark.parametrize("content", ["- a\n- b\n", "just words", "3"])
def test_no_mapping(content, tmp_path):
    (problem,) = refused(load.load, PretrainConfig, written(tmp_path, content)).problems
    assert problem.allowed == "must hold a mapping"


def test_empty_file_lacks_everything(tmp_path):
    error = refused(load.load, PretrainConfig, written(tmp_path, ""))
    assert [p.path for p in error.problems] == ["name", "model", "noise", "duration"]
    assert {p.allowed for p in error.problems} == {"is required"}
    assert len(str(error).splitlines()) == 4


# there and back

names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
finite = st.floats(-10, 10, allow_nan=False)
simple_noise = st.one_of(
    st.builds(lambda a, s: {"kind": "pink", "alpha": a, "shift": s}, st.floats(0, 8), finite),
    st.builds(lambda d: {"kind": "student_t", "df": d}, st.floats(2.01, 1e6)),
    st.builds(lambda n: {"kind": "patches", "num_patches": n}, st.integers(1, 255)),
    st.builds(lambda a, b: {"kind": "blur", "min_sigma": min(a, b), "max_sigma": max(a, b)},
              st.floats(0.01, 1000), st.floats(0.01, 1000)),
    st.builds(
        lambda p: {"kind": "matched", "data": p}, st.text(min_size=1).filter(str.isprintable)
    ),
    st.just({"kind": "function", "name": "package.module:draw"}),
)  # fmt: skip
noises = st.recursive(
    simple_noise,
    lambda inner: st.lists(
        st.builds(lambda w, n: {"weight": w, "noise": n}, st.floats(0.01, 10), inner),
        min_size=1, max_size=3,
    ).map(lambda parts: {"kind": "mixture", "parts": parts}),
    max_leaves=4,
)  # fmt: skip
configs = st.builds(
    lambda **fields: {key: value for key, value in fields.items() if value is not None},
    name=names,
    seed=st.none() | st.integers(0, 2**63 - 1),
    model=st.sampled_from([
        {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "init": "he"},
        {"kind": "torchvision", "name": "resnet18", "num_classes": 7, "input_shape": [3, 9, 9],
         "small_stem": True, "args": {"zero_init_residual": True}},
        {"kind": "function", "name": "m:f", "num_classes": 2, "input_shape": [5]},
    ]),
    noise=noises,
    labels=st.none() | st.sampled_from([
        {"kind": "dirichlet", "alpha": 0.3}, {"kind": "fixed", "num_batches": 3},
        {"kind": "smoothed"},
    ]),
    optimizer=st.none() | st.builds(
        lambda lr, b: {"kind": "adamw", "lr": lr, "betas": [b, 0.99]},
        st.floats(1e-9, 1e3), st.floats(0, 0.999),
    ),
    schedule=st.none() | st.just({"kind": "cosine", "warmup_steps": 3}),
    duration=st.builds(
        lambda steps, seconds: {"steps": steps, "seconds": seconds},
        st.integers(1, 10**9), st.none() | st.floats(1e-3, 1e9),
    ),
    trainable=st.none() | st.sampled_from(["head", ["a.*", "b"]]),
    probes=st.none() | st.builds(
        lambda noise, data: {"noise": noise, "data": data},
        st.dictionaries(st.sampled_from(["pink", "a", "mlp"]), simple_noise, min_size=1),
        st.dictionaries(st.sampled_from(["real", "adam"]), st.just({"path": "d"})),
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(content=configs)
def test_there_and_back(content, tmp_path_factory):
    config = load.validate(PretrainConfig, content)
    file = written(tmp_path_factory.getbasetemp(), load.to_yaml(config))
    again = load.load(PretrainConfig, file)
    assert again == config
    assert load.to_yaml(again) == load.to_yaml(config)
    assert load.digest(again) == load.digest(config)


def test_a_config_does_not_change():
    config = pretraining()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3


# digests


def test_digest_is_of_the_resolved_config():
    digest = load.digest(pretraining())
    assert len(digest) == 16
    assert set(digest) <= set(string.hexdigits)
    assert digest == load.digest(pretraining(**dict(reversed(PRETRAIN.items()))))
    assert digest == load.digest(pretraining("seed=0", "noise.scale=1", "batch_size=128"))


def test_digest_changes_with_every_field():
    changed = ["seed=1", "noise.scale=2", "noise.kind=pink", "probes.every=11", "name=y",
               "model.depth=4", "duration.steps=101", "trainable=head",
               "compute.precision=bf16"]  # fmt: skip
    digests = {load.digest(pretraining(*([change] if change else []))) for change in ["", *changed]}
    assert len(digests) == len(changed) + 1


def test_digest_leaves_out_where_and_on_what_a_job_runs():
    elsewhere = pretraining(
        "storage=s3://b/r", "scaling.num_workers=2", "tracking.experiment=e",
        "on_save_error=continue", "promote={tolerance: 0.1}",
    )  # fmt: skip
    assert load.digest(elsewhere) == load.digest(pretraining())
    assert load.digest(pretraining("name=b")) != load.digest(pretraining())
    assert set(load.identity(elsewhere)) == set(plain(elsewhere)) - {
        "storage", "scaling", "tracking", "on_save_error", "promote",
    }  # fmt: skip


def test_digest_is_of_added_fields_where_they_are_set():
    plain_data = {"path": "p", "on_bad_row": "error"}
    assert load.identity(load.validate(TrainConfig, TRAIN))["data"] == plain_data | {
        "augmentation": {"crop_padding": 0, "flip": False}
    }
    data = {"path": "p", "num_classes": None, "image_column": "image"}
    digests = [load.digest(load.validate(TrainConfig, TRAIN | {"data": d})) for d in (
        {"path": "p"}, data, {"path": "p", "num_classes": 3}, {"path": "p", "label_column": "y"},
        {"path": "p", "class_names": ["a", "b", "c"]},
    )]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    probed = {"probes": {"data": {"mine": {"path": "p"}}}}
    assert load.identity(pretraining(**probed))["probes"]["data"] == {
        "mine": {"path": "p", "split": "test", "held_out": True}
    }


NOT_IDENTITY = {
    "pretrain": {"storage", "tracking", "scaling", "on_save_error", "promote"},
    "train": {"storage", "tracking", "scaling", "on_save_error"},
    "search": {"storage", "tracking", "trials", "register_best", "register_seeds", "promote"},
    "quickstart": {"output"},
}
"""Of the jobs whose digest names something; changing one orphans runs that were begun."""


@pytest.mark.parametrize("job", NOT_IDENTITY)
def test_fields_that_are_no_part_of_a_digest(job):
    assert jobs.config_class(job).not_identity == NOT_IDENTITY[job]


def test_digest_is_the_same_in_every_release():
    """Runs that were begun are found by it: it changes only with the meaning of a config."""
    config = load.validate(ConvertConfig, {"source": {"kind": "digits"}, "output": "d"})
    assert load.to_yaml(config) == (
        "source:\n  kind: digits\noutput: d\nval_fraction: 0.1\nseed: 0\n"
    )
    expected = '{"output": "d", "seed": 0, "source": {"kind": "digits"}, "val_fraction": 0.1}'
    assert load.digest(config) == hashlib.sha256(expected.encode()).hexdigest()[:16]
