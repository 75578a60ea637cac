from pathlib import Path

import pytest

from precalib_ray.config import jobs, load
from precalib_ray.config.jobs.convert import ConvertConfig, Source
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.train import StartSettings, TrainConfig
from precalib_ray.core.labels import Labels
from precalib_ray.core.losses import Loss
from precalib_ray.core.models import Model
from precalib_ray.core.noise import Noise
from precalib_ray.core.optimizers import Optimizer
from precalib_ray.core.spec import default
from precalib_ray.errors import ConfigError
from tests.config.examples import PRETRAIN, RESNET, TRAIN

NEEDED = {"steps": 1000, "until_deviation": 0.01}
"""A duration that probes must be able to end."""


def model(**changes):
    return {"model": RESNET | changes}


BAD = {
    "model name": (
        model(name="resnet81"), "model.name", "resnet81", "is not the name of a torchvision",
        "resnet18 or resnet152 or resnet101",
    ),
    "model name, nothing near": (
        model(name="qqqqqq"), "model.name", "qqqqqq", "is not the name of a torchvision", "",
    ),
    "one class": (
        model(num_classes=1), "model.num_classes", 1, "must be greater than or equal to 2", "",
    ),
    "small stem": (
        model(name="vgg11", small_stem=True), "model.small_stem", True,
        "only for ResNets, not for vgg11", "",
    ),
    "small stem of flat inputs": (
        model(input_shape=[12], small_stem=True), "model.input_shape", [12], "[C, H, W]", "",
    ),
    "reserved weights": (
        model(args={"weights": "DEFAULT"}), "model.args.weights", "DEFAULT",
        "is set by precalib_ray", "",
    ),
    "reserved num_classes": (
        model(args={"num_classes": 3}), "model.args.num_classes", 3, "is set by precalib_ray", "",
    ),
    "reserved pretrained": (
        model(args={"pretrained": True}), "model.args.pretrained", True,
        "is set by precalib_ray", "",
    ),
    "shape": (
        model(input_shape=[3, 32]), "model.input_shape", [3, 32], "[C, H, W] or [D]", "",
    ),
    "no pixels": (
        model(input_shape=[3, 32, 0]), "model.input_shape.2", 0, "must be >= 1", "",
    ),
    "model kind": (
        model(kind="torchvison"), "model.kind", "torchvison",
        "must be one of function, mlp, timm, torchvision", "torchvision",
    ),
    "function without colon": (
        {"model": {"kind": "function", "name": "f", "num_classes": 2, "input_shape": [3]}},
        "model.name", "f", "should match pattern", "",
    ),
    "batch smaller than workers": (
        {"batch_size": 2, "scaling": {"num_workers": 3}}, "batch_size", 2,
        "must be >= scaling.num_workers, 3", "",
    ),
    "batch smaller than the most workers": (
        {"batch_size": 2, "scaling": {"num_workers": [1, 3]}, "checkpoints": {"every_steps": 9}},
        "batch_size", 2, "must be >= scaling.num_workers, 3", "",
    ),
    **{
        f"workers {value}": (
            {"scaling": {"num_workers": value}}, "scaling.num_workers", value,
            "must be a whole number from 1 to 100,000, or two of them: [min, max]", "",
        )
        for value in (0, 1.5, "two", True, None, [3, 2], [0, 2], [1], [1, 2, 3], ["a", 2])
    },
    "elastic without checkpoints": (
        {"scaling": {"num_workers": [1, 2]}}, "scaling.num_workers", [1, 2],
        "needs checkpoints.every_steps", "",
    ),
    "elastic by labels": (
        {"scaling": {"num_workers": [1, 2], "labels": {"zone": "a"}}}, "scaling.labels",
        {"zone": "a"}, "must be left out where num_workers is [min, max]", "",
    ),
    "elastic and strict": (
        {"scaling": {"num_workers": [1, 2], "placement": "STRICT_SPREAD"}}, "scaling.placement",
        "STRICT_SPREAD", "must be left out where num_workers is [min, max]", "",
    ),
    "placement": (
        {"scaling": {"placement": "SPRAED"}}, "scaling.placement", "SPRAED",
        "must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD", "SPREAD",
    ),
    "accelerators of CPUs": (
        {"scaling": {"accelerator_type": "H100"}}, "scaling.accelerator_type", "H100",
        "needs use_gpu", "",
    ),
    "a label's name": (
        {"scaling": {"labels": {"zo ne": "a"}}}, "scaling.labels.zo ne", "zo ne",
        "is not the name of a label", "",
    ),
    "a label's value": (
        {"scaling": {"labels": {"zone": "in()"}}}, "scaling.labels.zone", "in()",
        "must be a label's value", "",
    ),
    "soft targets, loss of ids": (
        {"labels": {"kind": "uniform"}, "loss": {"kind": "focal"}}, "loss.kind", "focal",
        "soft targets of labels.kind=uniform; use cross_entropy or kl_div", "",
    ),
    "ids, loss of soft targets": (
        {"loss": {"kind": "kl_div"}}, "loss.kind", "kl_div",
        "class ids of labels.kind=hard; use cross_entropy or focal", "",
    ),
    "smoothed twice": (
        {"labels": {"kind": "smoothed"}, "loss": {"kind": "cross_entropy", "label_smoothing": 0.1}},
        "loss.label_smoothing", 0.1, "labels.kind=smoothed smooths already", "",
    ),
    "deviation that every model reaches": (
        {"duration": NEEDED | {"until_deviation": 0.9}}, "duration.until_deviation", 0.9,
        "must be < 1 - 1/K = 0.9", "",
    ),
    "all probes held out": (
        {"duration": NEEDED, "probes": {"noise": {}, "data": {"real": {"path": "d"}}}},
        "duration.until_deviation", 0.01, "is never measured: all probes are held out", "",
    ),
    "first probing after the end": (
        {"duration": NEEDED | {"steps": 9}}, "duration.until_deviation", 0.01,
        "is never measured: the first probing would be at step 10 or later, and the run ends at 9",
        "",
    ),
    "first probing unaffordable": (
        {"duration": NEEDED | {"samples": 12800}, "probes": {"max_share": 0.001}},
        "duration.until_deviation", 0.01,
        "first probing would be at step 501 or later, and the run ends at 100; raise",
        "",
    ),
    "typo in a section": (
        {"probes": {"everry": 3}}, "probes.everry", 3, "there is no such field", "every",
    ),
    "typo at the top": (
        {"lables": {"kind": "hard"}}, "lables", {"kind": "hard"}, "there is no such field",
        "labels",
    ),
    "typo in a kind's setting": (
        {"noise": {"kind": "pink", "alfa": 2}}, "noise.alfa", 2, "there is no such field", "alpha",
    ),
    "another kind's setting": (
        {"noise": {"kind": "gaussian", "df": 3}}, "noise.df", 3, "allowed here: ", "",
    ),
    "noise kind": (
        {"noise": {"kind": "pnik"}}, "noise.kind", "pnik",
        "must be one of blur, function, gaussian", "pink",
    ),
    "no kind": ({"noise": {"alpha": 1}}, "noise", {"alpha": 1}, "needs a kind", ""),
    "probe's setting": (
        {"probes": {"noise": {"pink": {"kind": "pink", "alpha": 9}}}}, "probes.noise.pink.alpha", 9,
        "must be less than or equal to 8", "",
    ),
    "mixture's part": (
        {"noise": {"kind": "mixture", "parts": [{"noise": {"kind": "pink", "alpa": 1}}]}},
        "noise.parts.0.noise.alpa", 1, "there is no such field", "alpha",
    ),
    "no parts": (
        {"noise": {"kind": "mixture", "parts": []}}, "noise.parts", [], "at least 1 item", "",
    ),
    "negative seed": ({"seed": -1}, "seed", -1, "must be greater than or equal to 0", ""),
    "no batch": ({"batch_size": 0}, "batch_size", 0, "must be greater than or equal to 1", ""),
    "word for a number": (
        {"batch_size": "many"}, "batch_size", "many", "must be a valid integer", "",
    ),
    "rate": (
        {"optimizer": {"kind": "sgd", "lr": 0}}, "optimizer.lr", 0, "must be greater than", "",
    ),
    "beta": (
        {"optimizer": {"kind": "adam", "betas": [0.9, 1.0]}}, "optimizer.betas.1", 1.0,
        "must be >= 0 and < 1", "",
    ),
    "Nesterov without momentum": (
        {"optimizer": {"kind": "sgd", "nesterov": True}}, "optimizer.nesterov", True,
        "needs a momentum > 0", "",
    ),
    "infinite shift": (
        {"noise": {"kind": "gaussian", "shift": float("inf")}}, "noise.shift", float("inf"),
        "must be a finite number", "",
    ),
    "precision": (
        {"compute": {"precision": "fp16"}}, "compute.precision", "fp16",
        "must be one of fp32, bf16", "bf16",
    ),
    "synchronized BatchNorm on CPUs": (
        {"compute": {"sync_batch_norm": True}}, "compute.sync_batch_norm", True,
        "needs scaling.use_gpu", "",
    ),
    "decay without an end": (
        {"duration": {"seconds": 9}, "schedule": {"kind": "cosine"}}, "schedule.kind", "cosine",
        "needs duration.steps or samples", "",
    ),
    "duration without an end": (
        {"duration": {}}, "duration", {}, "needs at least one of steps, samples, seconds", "",
    ),
    "patience for nothing": (
        {"duration": {"steps": 3, "patience": 2}}, "duration.patience", 2,
        "has no effect without until_deviation", "",
    ),
    "stop_size": (
        {"probes": {"size": 10, "stop_size": 20}}, "probes.stop_size", 20, "must be <= size, 10",
        "",
    ),
    "no probes": (
        {"probes": {"noise": {}}}, "probes", {}, "needs at least one probe", "",
    ),
    "two probes of one name": (
        {"probes": {"data": {"pink": {"path": "d"}}}}, "probes.data.pink", "pink",
        "is the name of a noise probe too", "",
    ),
    "a probe that MLflow could not name": (
        {"probes": {"data": {"a+b": {"path": "d"}}}}, "probes.data.a+b", "a+b",
        "may hold letters, digits", "",
    ),
    "keys in storage": (
        {"storage": "s3://KEY:SECRET@bucket/runs"}, "storage", "(not shown)",
        "must hold no user, password or key", "",
    ),
    "a password that looks like a variable": (
        {"storage": "s3://KEY:pa$ecret@bucket/runs"}, "storage", "(not shown)",
        "must hold no user, password or key", "",
    ),
    "a password with a slash": (
        {"tracking": {"uri": "postgresql://user:pa/ss@host/db"}}, "tracking.uri", "(not shown)",
        "must hold no user, password or key", "",
    ),
    "a password in a query": (
        {"tracking": {"uri": "postgresql://h/d?user=u&password=p"}}, "tracking.uri",
        "(not shown)", "must hold no user, password or key", "",
    ),
    "name": ({"name": "a/b"}, "name", "a/b", "should match pattern", ""),
    "trainable": ({"trainable": "haed"}, "trainable", "haed", "must be one of all, head", "head"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_pretraining(case):
    changes, path, value, allowed, hint = BAD[case]
    with pytest.raises(ConfigError) as caught:
        load.validate(PretrainConfig, PRETRAIN | changes)
    (problem,) = caught.value.problems
    assert (problem.path, problem.value, problem.hint) == (path, value, hint)
    assert allowed in problem.allowed
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: {value!r}: ")
    assert line.endswith(f"(did you mean {hint}?)") == bool(hint)


@pytest.mark.parametrize("field", PRETRAIN)
def test_missing(field):
    content = {key: value for key, value in PRETRAIN.items() if key != field}
    with pytest.raises(ConfigError) as caught:
        load.validate(PretrainConfig, content)
    assert str(caught.value) == f"{field}: None: is required"


def test_several_problems_are_told_at_once_one_in_a_line():
    content = PRETRAIN | {
        "seed": -1, "compute": {"precision": "fp8", "clip_norm": 0}, "probes": {"every": 0},
        "model": RESNET | {"name": "resnet19"}, "noise": {"kind": "pink", "alfa": 1}, "lables": 3,
    }  # fmt: skip
    del content["duration"]
    with pytest.raises(ConfigError) as caught:
        load.validate(PretrainConfig, content)
    lines = str(caught.value).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "compute.clip_norm", "compute.precision", "duration", "lables", "model.name", "noise.alfa",
        "probes.every", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "path", "allowed", "hint"),
    [
        ({"loss": {"kind": "kl_div"}}, "loss.kind", "does not take class ids", ""),
        ({"start": {"kind": "registry", "uri": "models:/x"}}, "start.uri", "match pattern", ""),
        ({"start": {"kind": "randm", "model": RESNET}}, "start.kind", "must be one of", "random"),
        (
            {"start": {"kind": "zero_head", "model": RESNET | {"name": "resnet81"}}},
            "start.model.name", "is not the name", "resnet18 or resnet152 or resnet101",
        ),
        (
            {"data": {"path": "p", "augmentation": {"flipp": True}}}, "data.augmentation.flipp",
            "there is no such field", "flip",
        ),
        ({"batch_size": 1, "scaling": {"num_workers": 2}}, "batch_size", "must be >= ", ""),
        ({"epochs": 0}, "epochs", "must be greater", ""),
    ],
)  # fmt: skip
def test_bad_training(changes, path, allowed, hint):
    with pytest.raises(ConfigError) as caught:
        load.validate(TrainConfig, TRAIN | changes)
    (problem,) = caught.value.problems
    assert (problem.path, problem.hint) == (path, hint)
    assert allowed in problem.allowed


@pytest.mark.parametrize(
    "uri", ["models:/resnet18-k10-precalibrated@champion", "models:/a.b/12", "models:/x@a-b"]
)
def test_registry_uris(uri):
    start = {"kind": "registry", "uri": uri}
    assert load.validate(TrainConfig, TRAIN | {"start": start}).start.uri == uri


def test_bad_conversion():
    source = {"kind": "folder", "path": "p", "shape": [32, 32]}
    with pytest.raises(ConfigError) as caught:
        load.validate(ConvertConfig, {"source": source, "output": "o", "val_fraction": 1})
    assert {p.path for p in caught.value.problems} == {"source.shape", "val_fraction"}
    assert "source.shape: [32, 32]: must have 3 items" in str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            {"kind": "folder", "path": "p", "shape": [2, 8, 8]},
            "source.shape.0: 2: must be 1 (gray) or 3 (RGB)",
        ),
        (
            {"kind": "parquet", "path": "p", "shape": [3, 0, 8]},
            "source.shape.1: 0: must be >= 1",
        ),
        (
            {"kind": "parquet", "path": "p", "class_names": ["a", "b"], "num_classes": 3},
            "source.num_classes: 3: must be the number of class_names, 2",
        ),
        (
            {"kind": "parquet", "path": "p", "class_names": ["a", "b", "a"]},
            "source.class_names: ['a', 'b', 'a']: must differ from one another",
        ),
        (
            {"kind": "parquet", "path": "p", "label_column": "image"},
            "source.label_column: 'image': is the column of the images",
        ),
        (
            {"kind": "parquet", "path": "p", "num_classes": 1},
            "source.num_classes: 1: must be greater than or equal to 2",
        ),
    ],
)
def test_sources_refused(source, problem):
    with pytest.raises(ConfigError) as caught:
        load.validate(ConvertConfig, {"source": source, "output": "o"})
    assert str(caught.value) == problem


def test_good_ones_are_let_through():
    """The border of what is refused above."""
    good = [
        {"batch_size": 3, "scaling": {"num_workers": 3}},
        {"batch_size": 3, "scaling": {"num_workers": [1, 3]}, "checkpoints": {"every_steps": 1}},
        {"scaling": {"num_workers": [2, 2], "placement": "SPREAD"},
         "checkpoints": {"every_steps": 1}},
        {"scaling": {"num_workers": 2, "placement": "STRICT_SPREAD", "use_gpu": True,
         "accelerator_type": "H100", "labels": {"ray.io/market-type": "!in(spot, x)"}}},
        {"labels": {"kind": "uniform"}, "loss": {"kind": "kl_div"}},
        {"labels": {"kind": "balanced"}, "loss": {"kind": "focal"}},
        {"duration": NEEDED | {"steps": 10}, "probes": {"max_share": 1.0}},
        {"duration": NEEDED | {"until_deviation": 0.89}},
        {"duration": {"seconds": 5, "until_deviation": 0.01}},
        {"duration": NEEDED,
         "probes": {"noise": {}, "data": {"real": {"path": "d", "held_out": False}}}},
        model(small_stem=True),
        {"optimizer": {"kind": "sgd", "nesterov": True, "momentum": 0.9}},
        {"trainable": ["layer4.*", "fc.*"]},
    ]  # fmt: skip
    for changes in good:
        load.validate(PretrainConfig, PRETRAIN | changes)


def test_what_is_refused_as_unaffordable_is_so():
    """The check's first step and that of the schedule agree, for a model without BatchNorm."""
    from precalib_ray.core.loop import Progress
    from precalib_ray.core.phases.pretraining import Pretraining

    probes = {"max_share": 0.001, "every": 1, "stop_size": 64}
    for steps, fits in ((500, True), (499, False)):
        content = PRETRAIN | {"duration": NEEDED | {"steps": steps}, "probes": probes}
        free = content | {"duration": {"steps": steps}}
        phase = Pretraining(load.validate(PretrainConfig, free))
        due = []
        for step in range(1, steps + 1):
            phase.progress = Progress(step=step)
            due.append(phase.evaluates_now())
        assert any(due) == fits
        if fits:
            load.validate(PretrainConfig, content)
        else:
            with pytest.raises(ConfigError, match="is never measured"):
                load.validate(PretrainConfig, content)


KINDS = {
    Noise: {
        "gaussian", "uniform", "rademacher", "laplace", "student_t", "pink", "blur", "patches",
        "matched", "mixture", "function",
    },
    Model: {"mlp", "torchvision", "timm", "function"},
    Labels: {"hard", "balanced", "uniform", "dirichlet", "smoothed", "fixed"},
    Loss: {"cross_entropy", "focal", "kl_div"},
    Optimizer: {"sgd", "adam", "adamw"},
    StartSettings: {"registry", "checkpoint", "random", "zero_head"},
    Source: {"digits", "torchvision", "idx", "folder", "parquet"},
}  # fmt: skip
"""What a YAML may name, and may go on to name in every release."""


@pytest.mark.parametrize("family", KINDS, ids=lambda family: family.__name__)
def test_kinds(family):
    assert set(family.members) == KINDS[family]
    for kind, member in family.members.items():
        assert member.kind == kind
        assert default(member.__dataclass_fields__["kind"]) == kind
        assert issubclass(member, family)
        assert member.__doc__


def test_labels_and_losses_that_go_together():
    fits = {
        (labels, loss)
        for labels in Labels.members
        for loss in Loss.members
        if not refuses({"labels": {"kind": labels} | NEEDS.get(labels, {}), "loss": {"kind": loss}})
    }
    ids, soft = ("hard", "balanced", "fixed"), ("uniform", "dirichlet", "smoothed")
    assert fits == {
        *((labels, loss) for labels in ids for loss in ("cross_entropy", "focal")),
        *((labels, loss) for labels in soft for loss in ("cross_entropy", "kl_div")),
    }


NEEDS = {"fixed": {"num_batches": 2}}


def refuses(changes):
    try:
        load.validate(PretrainConfig, PRETRAIN | changes)
    except ConfigError:
        return True
    return False


def test_jobs():
    assert jobs.NAMES == [
        "benchmark", "convert", "pretrain", "promote", "quickstart", "register", "search", "sync",
        "train",
    ]  # fmt: skip
    config = load.validate(PretrainConfig, PRETRAIN)
    assert jobs.name_of(config) == "pretrain"
    with pytest.raises(ValueError, match="is the config of no job"):
        jobs.name_of(config.scaling)


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=lambda f: f.name
)
def test_configs_of_the_repository_load(file):
    assert load.load(jobs.config_class(file.stem.partition("_")[0]), file).name
