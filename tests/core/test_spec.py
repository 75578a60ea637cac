"""Settings: declared once, read by every boundary."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch

from precalib_ray.config import jobs, load
from precalib_ray.config.jobs import convert, train
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core import labels, losses, optimizers
from precalib_ray.core.models.function import Function as FunctionModel
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.models.timm import Timm
from precalib_ray.core.models.torchvision import Torchvision
from precalib_ray.core.noise import (
    Noise,
    blur,
    draw,
    gaussian,
    laplace,
    matched,
    mixture,
    patches,
    pink,
    rademacher,
    student_t,
    uniform,
)
from precalib_ray.core.noise import function as noise_function
from precalib_ray.core.spec import Family, Section, default, from_plain, plain, required, setting
from precalib_ray.errors import ConfigError
from tests.core.runs import recipe

SMALL = MLP(num_classes=3, input_shape=(4,), depth=1)
MEMBERS: list[Family] = [
    gaussian.Gaussian(shift=-1.0, scale=2.0),
    uniform.Uniform(scale=0.5),
    rademacher.Rademacher(),
    laplace.Laplace(),
    student_t.StudentT(df=9.0),
    pink.Pink(alpha=2.0),
    blur.Blur(max_sigma=9.0),
    patches.Patches(num_patches=3),
    matched.Matched(data="somewhere"),
    noise_function.Function(name="module:f"),
    mixture.Mixture(
        parts=[
            mixture.Part(noise=pink.Pink()),
            mixture.Part(
                weight=3.0, noise=mixture.Mixture(parts=[mixture.Part(noise=laplace.Laplace())])
            ),
        ]
    ),
    labels.Hard(),
    labels.Balanced(),
    labels.Uniform(),
    labels.Dirichlet(alpha=0.5),
    labels.Smoothed(epsilon=0.3),
    labels.Fixed(num_batches=3),
    losses.CrossEntropy(label_smoothing=0.1),
    losses.KLDivergence(),
    losses.Focal(gamma=1.0),
    optimizers.SGD(momentum=0.9, nesterov=True),
    optimizers.Adam(betas=(0.8, 0.9)),
    optimizers.AdamW(lr=0.1, weight_decay=0.5),
    SMALL,
    MLP(num_classes=3, input_shape=(3, 2, 2), batch_norm=True, init="he"),
    Torchvision(
        num_classes=3, input_shape=(1, 32, 32), name="resnet18", small_stem=True,
        args={"groups": 1},
    ),
    Torchvision(num_classes=3, input_shape=(3, 224, 224), name="googlenet"),
    Timm(num_classes=3, input_shape=(3, 64, 64), name="resnet18", args={"drop_rate": 0.1}),
    FunctionModel(
        num_classes=3, input_shape=(12,), name="tests.core.user_functions:with_dropout",
        args={"width": 5},
    ),
    train.FromRegistry(uri="models:/m@champion", trust_code=True),
    train.FromCheckpoint(path="somewhere"),
    train.FromRandom(model=SMALL),
    train.FromZeroHead(model=SMALL),
    convert.FromDigits(),
    convert.FromTorchvision(name="MNIST", download=True),
    convert.FromIdx(path="somewhere", class_names=["a", "b"]),
    convert.FromFolder(path="somewhere", test_path="elsewhere", shape=(3, 8, 8)),
    convert.FromParquet(path="somewhere", class_names=("a", "b"), shape=(3, 8, 8)),
]  # fmt: skip


def family_of(member: Any) -> Any:
    return next(base for base in type(member).__mro__ if Family in base.__bases__)


def name_of(member: Any) -> str:
    return f"{family_of(member).__name__}-{member.kind}"


every_member = pytest.mark.parametrize("member", MEMBERS, ids=name_of)


def test_every_member_of_every_family_is_listed() -> None:
    here = {type(member) for member in MEMBERS}
    families = Family.__subclasses__()
    assert {family.__name__ for family in families} >= {"Noise", "Labels", "Loss", "Optimizer"}
    for family in families:
        assert family.members
        for kind, member in family.members.items():
            assert default(member.__dataclass_fields__["kind"]) == kind
            if member.__module__.startswith("precalib_ray."):
                assert member in here


@every_member
def test_a_member_is_restored_from_plain_data(member: Any) -> None:
    content = json.loads(json.dumps(plain(member)))
    assert content["kind"] == member.kind
    restored = from_plain(family_of(member), content)
    assert restored == member
    assert type(restored) is type(member)
    assert plain(restored) == content
    assert load.validate(family_of(member), content) == member


@every_member
def test_sparse_data_holds_the_kind_and_what_differs(member: Any) -> None:
    sparse = json.loads(json.dumps(plain(member, sparse=True)))
    assert from_plain(family_of(member), sparse) == member
    assert load.validate(family_of(member), sparse) == member
    for name, value in sparse.items():
        field = type(member).__dataclass_fields__[name]
        assert name == "kind" or plain(default(field)) != value, name
    assert sparse["kind"] == member.kind
    assert sparse.keys() >= set(required(type(member)))


def test_sparse_keeps_the_kinds_within() -> None:
    whole = recipe(optimizer={"kind": "adam"}, probes={"noise": {"a": {"kind": "gaussian"}}})
    sparse = plain(whole, sparse=True)
    assert sparse["noise"] == {"kind": "gaussian"}
    assert sparse["probes"] == {"noise": {"a": {"kind": "gaussian"}}}
    assert "optimizer" not in sparse  # is the default
    assert "compute" not in sparse
    assert (
        load.validate(PretrainConfig, sparse) == whole == from_plain(PretrainConfig, plain(whole))
    )


@dataclass(frozen=True, kw_only=True)
class Grown(Section):
    """A section that got fields after configs had digests."""

    old: int = setting(1, description="a field of the first version")
    new: int = setting(2, added=True, description="a later one")
    nested: tuple[Grown, ...] = setting((), added=True, description="others")


def test_a_field_that_was_added_is_identity_only_where_it_is_set() -> None:
    assert plain(Grown()) == {"old": 1, "new": 2, "nested": []}
    assert plain(Grown(), identity=True) == {"old": 1}
    grown = Grown(new=3, nested=(Grown(), Grown(new=4)))
    assert plain(grown, identity=True) == {
        "old": 1, "new": 3, "nested": [{"old": 1}, {"old": 1, "new": 4}],
    }  # fmt: skip
    assert plain(grown, sparse=True, identity=True) == {"new": 3, "nested": [{}, {"new": 4}]}
    assert load.validate(Grown, plain(grown, identity=True)) == grown


@every_member
def test_unknown_fields_and_kinds_are_refused(member: Any) -> None:
    family, content = family_of(member), plain(member)
    with pytest.raises(TypeError, match="no_such_field"):
        from_plain(family, content | {"no_such_field": 1})
    with pytest.raises(ConfigError, match=r"no_such_field"):
        load.validate(family, content | {"no_such_field": 1})
    with pytest.raises(KeyError, match="no_such_kind"):
        from_plain(family, content | {"kind": "no_such_kind"})
    with pytest.raises(ConfigError, match=r"kind: 'no_such_kind': must be one of"):
        load.validate(family, content | {"kind": "no_such_kind"})
    for name in required(type(member)):
        without = {key: value for key, value in content.items() if key != name}
        with pytest.raises(TypeError, match=name):
            from_plain(family, without)
        with pytest.raises(ConfigError, match=f"{name}: None: is required"):
            load.validate(family, without)


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Those of Noise, as they were after the test; what pydantic compiled before is dropped."""
    monkeypatch.setattr(Noise, "members", dict(Noise.members))
    load._adapter.cache_clear()
    yield Noise.members
    load._adapter.cache_clear()


def test_a_member_is_registered_by_being_written(members: dict[str, Any]) -> None:
    assert "checkers" not in members

    @dataclass(frozen=True, kw_only=True)
    class Checkers(Noise):
        """Alternating -1 and +1."""

        kind: Literal["checkers"] = "checkers"
        offset: int = setting(0, ge=0, le=1, description="where +1 is")

        def fill(self, out: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            flat = (torch.arange(out[0].numel()) + self.offset) % 2 * 2.0 - 1
            return out.copy_(flat.view(out.shape[1:]))

    assert members["checkers"] is Checkers
    config = load.validate(
        PretrainConfig,
        {
            "name": "n", "model": plain(SMALL), "duration": {"steps": 1},
            "noise": {"kind": "mixture", "parts": [{"noise": {"kind": "checkers", "offset": 1}}]},
        },
    )  # fmt: skip
    assert isinstance(config.noise, mixture.Mixture)
    assert config.noise.parts[0].noise == Checkers(offset=1)
    drawn = draw(config.noise, (2, 4), generator=torch.Generator())
    assert drawn.tolist() == [[1, -1, 1, -1]] * 2
    assert load.validate(PretrainConfig, plain(config)) == config
    wrong = plain(replace(config, noise=Checkers(offset=2)))
    with pytest.raises(ConfigError, match=r"^noise\.offset: 2: must be less than or equal to 1$"):
        load.validate(PretrainConfig, wrong)


def test_lists_tuples_and_mappings_of_settings_are_restored() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Job(Section):
        noise: Noise = setting(description="of the inputs")
        sizes: tuple[int, ...] = setting((1, 2), description="a tuple")
        by_name: dict[str, optimizers.Optimizer] = setting(factory=dict, description="a mapping")

    job = Job(noise=pink.Pink(), sizes=(3,), by_name={"a": optimizers.SGD(lr=2.0)})
    assert plain(job, sparse=True) == {
        "noise": {"kind": "pink"}, "sizes": [3], "by_name": {"a": {"kind": "sgd", "lr": 2.0}},
    }  # fmt: skip
    assert from_plain(Job, plain(job)) == job


def test_settings_are_read_without_torch_ray_and_mlflow() -> None:
    """``--help`` must not wait for them."""
    code = f"""
import sys
from precalib_ray.config import jobs
for name in {jobs.NAMES}:
    jobs.config_class(name)
    loaded = {{"torch", "ray", "mlflow"}} & sys.modules.keys()
    assert not loaded, f"{{name}} imports {{loaded}}"
print(*jobs.NAMES)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == jobs.NAMES
    assert {"pretrain", "train", "search"} <= set(jobs.NAMES)


def test_core_and_calibration_import_torch_alone() -> None:
    """Of what is not in the standard library: import-linter sees no lazy imports at run time."""
    code = """
import pkgutil, sys
import precalib_ray.calibration, precalib_ray.core
for package in (precalib_ray.calibration, precalib_ray.core):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
banned = {"ray", "mlflow", "pydantic", "pyarrow", "matplotlib", "rich", "torchvision", "timm"}
assert not banned & sys.modules.keys(), banned & sys.modules.keys()
assert "precalib_ray.core.phases.training" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
