import json
import string
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from precalib_ray.config import base
from precalib_ray.config.jobs import ConvertConfig, PretrainConfig, QuickstartConfig, TrainConfig
from precalib_ray.errors import ConfigError

MINIMAL = {
    "name": "x",
    "model": {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8]},
    "noise": {"kind": "gaussian"},
    "duration": {"steps": 100},
}


def written(tmp_path, content, name="job.yaml"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def refused(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert caught.value.exit_code == 2
    return caught.value


# files


def test_missing_file_with_the_nearest_name(tmp_path):
    written(tmp_path, MINIMAL, "pretrain_mlp.yaml")
    error = refused(base.load, PretrainConfig, tmp_path / "pretrain_mpl.yaml")
    (problem,) = error.problems
    assert (problem.path, problem.value) == ("config file", str(tmp_path / "pretrain_mpl.yaml"))
    assert problem.allowed == "cannot be read"
    assert problem.hint == str(tmp_path / "pretrain_mlp.yaml")
    assert str(error).endswith(f"(did you mean {tmp_path / 'pretrain_mlp.yaml'}?)")


def test_directory_is_no_file(tmp_path):
    assert refused(base.load, PretrainConfig, tmp_path).problems[0].allowed == "cannot be read"


@pytest.mark.parametrize("content", ["a: [1", "a: b: c", "\t- x", "!!python/object:os.system {}"])
def test_not_yaml(content, tmp_path):
    error = refused(base.load, PretrainConfig, written(tmp_path, content))
    (problem,) = error.problems
    assert problem.path == "config file"
    assert problem.allowed.startswith("is not YAML: ")
    assert "\n" not in str(error)


def test_binary_file(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    (problem,) = refused(base.load, PretrainConfig, file).problems
    assert problem.path == "config file"


@pytest.mark.parametrize("content", ["- a\n- b\n", "just words", "3"])
def test_no_mapping(content, tmp_path):
    (problem,) = refused(base.load, PretrainConfig, written(tmp_path, content)).problems
    assert problem.allowed == "must hold a mapping"


def test_empty_file_lacks_everything(tmp_path):
    error = refused(base.load, PretrainConfig, written(tmp_path, ""))
    assert [p.path for p in error.problems] == ["name", "model", "noise", "duration"]
    assert {p.allowed for p in error.problems} == {"is required"}
    assert len(str(error).splitlines()) == 4


def test_overrides_alone():
    config = base.load(
        PretrainConfig, None,
        ["name=x", "model={kind: mlp, num_classes: 3, input_shape: [4]}", "noise.kind=pink",
         "duration.steps=5"],
    )  # fmt: skip
    assert (config.noise.kind, config.noise.alpha) == ("pink", 1.0)
    assert config.model.input_shape == (4,)


# overrides


def load(*overrides, **changes):
    content = yaml.safe_load(yaml.safe_dump(MINIMAL | changes))
    for override in overrides:
        base._apply(content, override)
    return base.validate(PretrainConfig, content)


def test_override_of_a_kind_drops_the_settings_of_the_old_one():
    noise = {"kind": "pink", "alpha": 2.0, "scale": 3.0}
    config = load("noise.kind=gaussian", noise=noise)
    assert config.noise.model_dump() == {"kind": "gaussian", "shift": 0.0, "scale": 1.0}
    config = load("noise.kind=pink", noise=noise)  # the same kind keeps them
    assert (config.noise.alpha, config.noise.scale) == (2.0, 3.0)
    config = load("noise.kind=student_t", "noise.df=7", noise=noise)
    assert config.noise.df == 7
    config = load("optimizer.kind=sgd", optimizer={"kind": "adam", "betas": [0.5, 0.6]})
    assert config.optimizer.kind == "sgd"


def test_override_into_a_list():
    parts = [{"noise": {"kind": "gaussian"}}, {"noise": {"kind": "pink"}, "weight": 3}]
    noise = {"kind": "mixture", "parts": parts}
    config = load("noise.parts.1.noise.alpha=2", "noise.parts.0.weight=9", noise=noise)
    assert [part.weight for part in config.noise.parts] == [9, 3]
    assert config.noise.parts[1].noise.alpha == 2
    config = load("noise.parts.1={noise: {kind: uniform}}", noise=noise)
    assert [part.noise.kind for part in config.noise.parts] == ["gaussian", "uniform"]
    assert load("model.input_shape.0=3").model.input_shape == (3, 8, 8)


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
    with pytest.raises(ConfigError) as caught:
        load(override, noise={"kind": "mixture", "parts": parts})
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == (path, value)
    assert allowed in problem.allowed


def test_values_are_yaml():
    config = load("seed=7", "compute.channels_last=true", "compute.clip_norm=null", "name='12'")
    assert (config.seed, config.compute.channels_last, config.name) == (7, True, "12")
    assert load("storage=s3://bucket/a=b").storage == "s3://bucket/a=b"


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
    config = base.validate(PretrainConfig, content)
    file = written(tmp_path_factory.getbasetemp(), base.to_yaml(config))
    again = base.load(PretrainConfig, file)
    assert again == config
    assert base.to_yaml(again) == base.to_yaml(config)
    assert base.digest(again) == base.digest(config)


def test_a_config_does_not_change():
    config = load()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


# digests


def test_digest_is_of_the_resolved_config():
    digest = base.digest(load())
    assert len(digest) == 16
    assert set(digest) <= set(string.hexdigits)
    assert digest == base.digest(load(**dict(reversed(MINIMAL.items()))))
    assert digest == base.digest(load("seed=0", "noise.scale=1", "batch_size=128"))


def test_digest_changes_with_every_field():
    changed = ["seed=1", "noise.scale=2", "noise.kind=pink", "probes.every=11", "name=y",
               "model.depth=4", "duration.steps=101", "trainable=head",
               "compute.precision=bf16"]  # fmt: skip
    digests = {base.digest(load(*([change] if change else []))) for change in ["", *changed]}
    assert len(digests) == len(changed) + 1


def test_digest_leaves_out_what_it_is_told_to():
    one, two = load("name=a", "scaling.max_failures=9"), load("name=b")
    assert base.digest(one) != base.digest(two)
    assert base.digest(one, exclude={"name", "scaling"}) == base.digest(
        two, exclude={"name", "scaling"}
    )


def test_digest_is_the_same_in_every_release():
    """Runs that were begun are found by it: it changes only with the meaning of a config."""
    config = base.validate(ConvertConfig, {"source": {"kind": "digits"}, "output": "d"})
    assert base.to_yaml(config) == (
        "source:\n  kind: digits\noutput: d\nval_fraction: 0.1\nseed: 0\n"
    )
    expected = '{"output": "d", "seed": 0, "source": {"kind": "digits"}, "val_fraction": 0.1}'
    import hashlib

    assert base.digest(config) == hashlib.sha256(expected.encode()).hexdigest()[:16]


# describe


def all_paths(cls, prefix=""):
    """Every field that a config may hold, found another way: from pydantic's JSON schema."""
    schema = cls.model_json_schema()

    def walk(node, path, seen):
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            if name in seen:
                return
            seen = (*seen, name)
            node = schema["$defs"][name]
        for member in (*node.get("oneOf", ()), *node.get("anyOf", ())):
            yield from walk(member, path, seen)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield from walk(node[key], path, seen)
        tagged = "const" in node.get("properties", {}).get("kind", {})
        for name, inner in node.get("properties", {}).items():
            if name == "kind" and tagged:
                yield f"{path}.kind={inner['const']}"
                continue
            here = f"{path}.{name}" if path else name
            yield here
            if not here.endswith((".parts.noise", "probes.noise")):  # (as noise)
                yield from walk(inner, here, seen)

    return set(walk(schema, prefix, ()))


@pytest.mark.parametrize("cls", [PretrainConfig, TrainConfig, ConvertConfig, QuickstartConfig])
def test_describe_lists_every_field(cls):
    described = list(base.describe(cls))
    assert {path for path, *_ in described} == all_paths(cls)
    for path, type_name, default, meaning in described:
        assert meaning, path
        assert type_name or "kind=" in path
        assert "PydanticUndefined" not in default
        assert "Annotated" not in type_name
        assert "typing" not in type_name


def test_describe_tells_bounds_and_defaults():
    described = {path: rest for path, *rest in base.describe(PretrainConfig)}
    assert described["name"][:2] == ["str", "required"]
    assert described["seed"][:2] == ["int >= 0 < 9223372036854775808", "0"]
    assert described["duration.seconds"][:2] == ["float|null > 0", "null"]
    assert described["compute.precision"][:2] == ["fp32|bf16", '"fp32"']
    assert described["trainable"][:2] == ["all|head|list of str", '"all"']
    assert described["labels"][:2][1] == "kind: hard"
    assert described["optimizer.betas"][:2] == ["list of float", "[0.9, 0.999]"]
    order = [path for path, *_ in base.describe(PretrainConfig)]
    assert order.index("noise.scale") < order.index("noise.kind=gaussian")
    assert order.count("noise.scale") == 1


# a config of our own: the paths of problems in every kind of nesting


class Left(base.Strict):
    kind: Literal["left"]
    size: int = Field(1, ge=1)


class Right(base.Strict):
    kind: Literal["right"]
    length: int = Field(1, ge=1)


Side = Annotated[Left | Right, Field(discriminator="kind")]


class Nested(base.Strict):
    side: Side
    named: dict[str, Side] = Field({})
    several: list[Side] = Field([])
    inner: Left | None = None


def test_paths_of_problems():
    content = {
        "side": {"kind": "left", "sise": 1},
        "named": {"left": {"kind": "left", "size": 0}, "right": {"kind": "left", "size": "a"},
                  "size": {"kind": "righ"}, "other": {"kind": "right", "lenght": 2}},
        "several": [{"kind": "left"}, {"kind": "right", "length": 0}, {"size": 3}],
        "inner": {"kind": "left", "size": -1},
    }  # fmt: skip
    problems = {p.path: p.hint for p in refused(base.validate, Nested, content).problems}
    assert problems == {
        "side.sise": "size",
        "named.left.size": "",
        "named.right.size": "",
        "named.size.kind": "right",
        "named.other.lenght": "length",
        "several.1.length": "",
        "several.2": "",
        "inner.size": "",
    }


def test_contradictions_come_with_the_path_of_their_part():
    noise = {"kind": "mixture", "parts": [
        {"noise": {"kind": "gaussian"}},
        {"noise": {"kind": "blur", "min_sigma": 4, "max_sigma": 2}},
    ]}  # fmt: skip
    probes = {"noise": {"blur": {"kind": "patches", "min_size": 0.5, "max_size": 0.4}}}
    content = MINIMAL | {"noise": noise, "probes": probes}
    problems = refused(base.validate, PretrainConfig, content).problems
    assert [(p.path, p.value) for p in problems] == [
        ("noise.parts.1.noise.max_sigma", 2.0),
        ("probes.noise.blur.max_size", 0.4),
    ]


def test_strict_is_the_base_of_all_parts():
    def parts(cls, seen):
        for field in cls.model_fields.values():
            for part in base._parts(field.annotation):
                if part not in seen:
                    seen.add(part)
                    parts(part, seen)
        return seen

    found = parts(PretrainConfig, set()) | parts(TrainConfig, set()) | parts(ConvertConfig, set())
    assert len(found) > 35
    assert all(issubclass(part, base.Strict) and issubclass(part, BaseModel) for part in found)


def test_override_of_one_field_keeps_the_rest_of_a_default():
    content = {
        "name": "a",
        "model": {"kind": "mlp", "num_classes": 3, "input_shape": [4]},
        "noise": {"kind": "gaussian"},
        "duration": {"steps": 9},
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in content.items()]
    config = base.load(
        PretrainConfig, None, [*overrides, "optimizer.lr=0.5", "probes.noise.pink.alpha=2"]
    )
    assert (config.optimizer.kind, config.optimizer.lr) == ("adam", 0.5)
    assert list(config.probes.noise) == ["gaussian", "pink", "patches"]
    assert config.probes.noise["pink"].alpha == 2
    other = base.load(PretrainConfig, None, [*overrides, "optimizer.kind=sgd"])
    assert other.optimizer.momentum == 0
