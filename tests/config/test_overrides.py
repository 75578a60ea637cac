import json

import pytest

from precalib_ray.config import jobs, load
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


TEXTS = [
    "007", "1e3", "0x1F", "1_000", "12:30", "2026-11-25", "no", "on", "true", "null", "~", ".inf",
    "a: b", "#5", "x #5", "[x]", "[x", "{x}", "{a: 1}", "*anchor", "&x", "&x 'a'", "!tag",
    "!!int 3", "|", "| a", ">", "- a", "? a", "%a", "@a", "`a", "=", "a=b=c", "<<", "it's", "'",
    '"', '"a" b', "'a' 'b'", "a ", " a", "a\nb", "a\tb", "ü 中 \U0001f600", "\\n", "C:\\new",
    "$HOME", "a,b", "'a' # b", "{choice: [a, b]}", "---", "...", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_stands(text):
    words = [f"tracking.experiment={text}", f"tracking.tags.owner={text}"]
    tracking = pretraining(*words).tracking
    assert (tracking.experiment, tracking.tags) == (text, {"owner": text})


@pytest.mark.parametrize(
    ("word", "text"),
    [("'12'", "12"), ('"x"', "x"), ("'it''s'", "it's"), ('"a\\nb"', "a\nb"), ("'\"a\"'", '"a"'),
     ("'null'", "null"), ("' '", " ")],
)  # fmt: skip
def test_text_may_be_quoted_as_in_yaml(word, text):
    assert pretraining(f"tracking.experiment={word}").tracking.experiment == text


@pytest.mark.parametrize("name", ["007", "1e3", "no", "null", "2026-11-25", "1_000", "0o17"])
def test_names_paths_and_choices_are_text(name):
    config = pretraining(f"name={name}", f"storage={name}", f"tracking.register_as='{name}'")
    assert config.name == config.storage == config.tracking.register_as == name
    for word in ("version=010", "version=1.10", f"version={name}"):
        promote = load.load(jobs.config_class("promote"), None, ["name=m", word])
        assert promote.version == word.removeprefix("version=")
    for override in ("labels.kind=no", "name=", "name=x\n"):
        (problem,) = refused(pretraining, override).problems
        assert problem.value == override.partition("=")[2]


def test_paths_of_the_shell():
    config = pretraining("storage=s3://b/{x}", "probes.data.a.path=/a/b #c")
    assert (config.storage, config.probes.data["a"].path) == ("s3://b/{x}", "/a/b #c")


@pytest.mark.parametrize("word", ["", "~", "Null", "NULL", "null "])
def test_what_may_be_null_or_text_is_refused(word):
    (problem,) = refused(pretraining, f"tracking.uri={word}").problems
    assert (problem.path, problem.value) == ("tracking.uri", word)
    assert problem.allowed == "may be null or text: write null, or quote it if it is text"
    assert pretraining("tracking.uri=null", tracking={"uri": "x"}).tracking.uri is None
    assert pretraining("tracking.uri='null'").tracking.uri == "null"


def test_text_or_a_list():
    assert pretraining("trainable=head").trainable == "head"
    assert pretraining("trainable=[layers.*, no, 1]").trainable == ["layers.*", "no", "1"]
    assert refused(pretraining, "trainable=[a").problems[0].value == "[a"
    words = ["source={kind: idx, path: 007}", "source.class_names=[no, 0123]", "output=1_000"]
    config = load.load(jobs.config_class("convert"), None, words)
    assert (config.source.path, config.output) == ("007", "1_000")
    assert config.source.class_names == ["no", "0123"]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("seed=", "is empty; write null for no value"),
        ("duration.samples=", "is empty; write null for no value"),
        ("promote= ", "is empty; write null for no value"),
        ("seed=5 # six", "is not a YAML value"),
        ("compute={compile: true} # x", "is not a YAML value"),
        ("seed=!!float 5", "is not a YAML value"),
        ("seed=*a", "is not a YAML value"),
        ("seed=010", "is octal in YAML; write it decimal"),
        ("seed=1:30", "is minutes and seconds in YAML; write it decimal"),
        ("seed=yes", "must be a valid integer"),
        ("head_scale=nan", "must be a finite number"),
        ("duration.seconds=1e999", "must be a finite number"),
        ("model.input_shape.²=3", "must be an index below 3"),
        ("model.input_shape." + "1" * 5000 + "=3", "must be an index below 3"),
        ("model.input_shape.٣=3", "must be an index below 3"),
        ("seed=" + "9" * 5000, "is a number of more than 300 characters"),
        ("seed=0x" + "f" * 5000, "is a number of more than 300 characters"),
        ("compute=" + "[" * 5000, "is not a YAML value"),
        ("a." * 100 + "b=1", "has more than 60 names"),
        ("duration={steps: 1, steps: 2}", "is given twice"),
        ("noise={kind: pink, kind: blur}", "is given twice"),
    ],
    ids=lambda text: text[:30],
)
def test_values_that_are_no_text(override, allowed):
    (problem,) = refused(pretraining, override).problems
    assert problem.allowed.startswith(allowed)
    assert len(str(problem)) < 500


@pytest.mark.parametrize("word", ["", "a: b: c", "[", "5 # x", "no", "010", "2026-11-25"])
def test_a_field_that_does_not_exist_is_what_is_told(word):
    (problem,) = refused(pretraining, f"trackin.x={word}").problems
    assert (problem.path, problem.hint) == ("trackin", "tracking")


def test_numbers_are_read_as_they_are_written():
    config = pretraining("optimizer.lr=1e-4", "seed=0x10", "duration.steps=1_000", "head_scale=.5")
    assert (config.optimizer.lr, config.seed, config.duration.steps) == (1e-4, 16, 1000)
    assert config.head_scale == 0.5


def test_keys_of_a_mapping_may_hold_dots():
    scaling = pretraining("scaling.labels.ray.io/zone=no", "scaling.labels.disk=!in(a, b)").scaling
    assert scaling.labels == {"ray.io/zone": "no", "disk": "!in(a, b)"}
    assert pretraining("tracking.tags.a.b=c=d").tracking.tags == {"a.b": "c=d"}
    probes = {"noise": {"a.b": {"kind": "pink"}, "c": {"kind": "pink"}}}
    noise = pretraining("probes.noise.a.b.alpha=2", probes=probes).probes.noise
    assert (noise["a.b"].alpha, noise["c"].alpha) == (2, 1)
    probes["noise"]["a"] = {"kind": "pink"}
    (problem,) = refused(pretraining, "probes.noise.a.b.alpha=2", probes=probes).problems
    assert problem.allowed == "may mean a and a.b; change the file instead"


BASE = ["noise.kind=pink", "duration.steps=3", "model.num_classes=3", "model.input_shape=[4]"]


def test_a_field_is_text_before_its_kind_is_known():
    words = ["name=x", *BASE, "model.name=007", "model.kind=function"]
    (problem,) = refused(load.load, PretrainConfig, None, words).problems
    assert (problem.path, problem.value) == ("model.name", "007")
    words = ["source.path=007", "source.kind=idx", "output=x"]
    assert load.load(jobs.config_class("convert"), None, words).source.path == "007"


def test_a_recipe_of_a_search_is_read_by_the_types_of_pretraining():
    words = [
        "model.kind=function", "model.name=m:f", "model.args={a: '1e-4'}",
        "trainable={choice: [head, [no, a]]}", "probes.noise={no: {kind: blur}}",
        "optimizer.lr={choice: [1e-4, {uniform: [1e-3, 1e-2]}]}", "optimizer.kind=sgd",
    ]  # fmt: skip
    cls = jobs.config_class("search")
    overrides = ["name=007", "objective=deviation", *(f"recipe.{word}" for word in BASE + words)]
    recipe = load.load(cls, None, overrides).recipe
    assert recipe["trainable"] == {"choice": ["head", ["no", "a"]]}
    assert recipe["model"]["args"] == {"a": "1e-4"}
    assert list(recipe["probes"]["noise"]) == ["no"]
    assert recipe["optimizer"]["lr"]["choice"][1] == {"uniform": [1e-3, 1e-2]}
    (problem,) = refused(load.load, cls, None, [*overrides, "recipe.noise.kind=no"]).problems
    assert (problem.path, problem.value) == ("recipe.noise.kind", "no")


def test_a_kind_keeps_what_earlier_overrides_have_set():
    noise = {"kind": "gaussian", "scale": 3.0}
    config = pretraining("noise.alpha=2", "noise.kind=pink", noise=noise)
    assert (config.noise.alpha, config.noise.scale) == (2, 1)
    overrides = ["noise.kind=pink", "noise.alpha=2", "noise.kind=gaussian"]
    assert refused(pretraining, *overrides).problems[0].path == "noise.alpha"


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
