"""YAML files: what is read as it is written, and what is refused."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from precalib_ray.config import document, jobs, load
from precalib_ray.core.spec import hints, plain
from precalib_ray.errors import ConfigError
from tests.config.examples import PRETRAIN, refused
from tests.config.test_help import parts

REST = """
model: {kind: mlp, num_classes: 10, input_shape: [1, 8, 8]}
noise: {kind: gaussian}
duration: {steps: 100}
"""


def read(tmp_path: Path, text: str | bytes, job: str = "pretrain") -> Any:
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load.load(jobs.config_class(job), file)


def told(tmp_path: Path, text: str | bytes, job: str = "pretrain") -> list[str]:
    lines = str(refused(read, tmp_path, text, job)).splitlines()
    return [line.replace(str(tmp_path), "") for line in lines]


def pretrain(fields: str) -> str:
    return f"name: x\n{fields}\n{REST}"


# text


@pytest.mark.parametrize(
    "word",
    [
        "no",
        "on",
        "TRUE",
        "007",
        "0x1F",
        "1_000",
        "1e3",
        "1.10",
        "2026-11-25",
        "12.5",
        "0o17",
        "089",
    ],
)
def test_text_is_as_it_is_written(word: str, tmp_path: Path) -> None:
    fields = f"name: {word}\ntracking: {{experiment: {word}, tags: {{a: {word}, {word}: b}}}}"
    config = read(tmp_path, f"{fields}\n{REST}trainable: [{word}]\n")
    assert config.name == config.tracking.experiment == word
    assert config.tracking.tags == {"a": word, word: "b"}
    assert config.trainable == [word]


def test_text_that_only_yaml_reads_as_something_else(tmp_path: Path) -> None:
    tracking = 'tracking: {tags: {time: 12:30, f: .inf, m: "<<", d: "~", e: =, n: .nan}}'
    assert read(tmp_path, pretrain(tracking)).tracking.tags == {
        "time": "12:30", "f": ".inf", "m": "<<", "d": "~", "e": "=", "n": ".nan",
    }  # fmt: skip
    assert read(tmp_path, "name: m\nversion: 1.10", "promote").version == "1.10"
    assert read(tmp_path, "{source: {kind: idx, path: 007, class_names: [no, 1]}, output: 1e3}",
                "convert").source.class_names == ["no", "1"]  # fmt: skip


@pytest.mark.parametrize("null", ["null", "~", "Null", ""])
def test_null_is_no_text(null: str, tmp_path: Path) -> None:
    assert told(tmp_path, pretrain(f"tracking:\n  experiment: {null}\n  uri: {null}\n")) == [
        f"tracking.experiment: {null!r}: is null in YAML; quote it if it is text (line 3)"
    ]
    assert read(tmp_path, pretrain(f"tracking:\n  uri: {null}\n")).tracking.uri is None


# numbers and bools


def test_numbers(tmp_path: Path) -> None:
    fields = "optimizer: {kind: adam, lr: 1e-4, weight_decay: .5}\nseed: 1_000\nbatch_size: 0x10"
    config = read(tmp_path, pretrain(fields + "\nhead_scale: 0o0\n").replace("0o0", "2."))
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.5)
    assert (config.seed, config.batch_size, config.head_scale) == (1000, 16, 2.0)
    assert read(tmp_path, pretrain("scaling: {use_gpu: yes}")).scaling.use_gpu is True


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ("seed: 010", "seed: '010': is octal in YAML; write it decimal (line 2)"),
        ("seed: 12:30", "seed: '12:30': is minutes and seconds in YAML; write it decimal (line 2)"),
        ("head_scale: 1:30.5", "head_scale: '1:30.5': is minutes and seconds in YAML"),
        ("seed: yes", "seed: 'yes': must be a valid integer"),
        ("seed: true", "seed: 'true': must be a valid integer"),
        ("head_scale: on", "head_scale: 'on': must be a valid number"),
        ("seed: 2026-11-25", "seed: '2026-11-25': must be a valid integer"),
        ("head_scale: .nan", "head_scale: nan: must be a finite number"),
        ("duration: {seconds: .inf}", "duration.seconds: inf: must be a finite number"),
        ("duration: {seconds: 1e400}", "duration.seconds: inf: must be a finite number"),
        ("seed: " + "9" * 5000, "seed: '9999"),
        ("scaling: {num_workers: [1, 010]}", "scaling.num_workers.1: '010': is octal"),
    ],
)
def test_numbers_that_are_something_else(fields: str, line: str, tmp_path: Path) -> None:
    rest = REST.replace("duration", "x-duration") if "duration" in fields else REST
    (found, *_) = told(tmp_path, f"name: x\n{fields}\n{rest}")
    assert found.startswith(line)
    assert len(found) < 300


FREE = """
name: x
model: {{kind: function, name: "m:f", num_classes: 10, input_shape: [3, 8, 8], args: {args}}}
noise: {{kind: gaussian}}
duration: {{steps: 100}}
"""


@pytest.mark.parametrize("word", ["on", "No", "2026-11-25", "1e-4", "0o17", "089", "010", "12:30"])
def test_what_yaml_reads_in_two_ways_is_refused_where_no_type_decides(
    word: str, tmp_path: Path
) -> None:
    (line,) = told(tmp_path, FREE.format(args=f"{{a: [{word}]}}"))
    assert line.startswith(f"model.args.a.0: '{word}': is ")
    assert line.endswith("quote it if it is text (line 3)")
    config = read(tmp_path, FREE.format(args=f"{{a: ['{word}', true, 1.0e-4, 3, a b]}}"))
    assert config.model.args == {"a": [word, True, 1e-4, 3, "a b"]}
    assert read(tmp_path, load.to_yaml(config)) == config


@pytest.mark.parametrize("key", ["1", "true", "null", "2026-11-25", "[a]", "''", "? [a]\n  "])
def test_keys_are_text(key: str, tmp_path: Path) -> None:
    (line, *_) = told(tmp_path, FREE.format(args=f"{{a: {{{key}: 1}}}}"))
    assert line.startswith("model.args.a: ")
    assert "a key must be text" in line


def test_numbers_of_a_search(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "configs" / "search_mlp.yaml").read_text()
    config = read(tmp_path, text.replace("[1.0e-4, 1.0e-2]", "[1e-4, 1e-2]"), "search")
    assert config == read(tmp_path, text, "search")
    recipe = read(tmp_path, text.replace("init: he", "init: {choice: [he, default]}"), "search")
    assert recipe.recipe["model"]["init"] == {"choice": ["he", "default"]}
    (line, *_) = told(tmp_path, text.replace("size: 256", "size: 0400"), "search")
    assert line.startswith("recipe.probes.size: '0400': is octal in YAML; write it decimal")
    for recipe in ("{uniform: [0, 1]}", "{randint: [0, 3]}"):
        (line,) = told(tmp_path, f"name: x\nrecipe: {recipe}", "search")
        assert line == "recipe: 0: must be a mapping"


# structure


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("seed: 1\nbatch_size: 2\nseed: 3", ["seed: '3': is given twice, in lines 2 and 4"]),
        ("probes:\n  size: 64\n  every: 3\n  'size': 65",
         ["probes.size: '65': is given twice, in lines 3 and 5"]),
        ("probes:\n  data:\n    a: {path: x}\n    b: {path: y}\n    a: {path: z}",
         ["probes.data.a: '{...}': is given twice, in lines 4 and 6"]),
        ("seed: 1\n" * 3 + "batch_size: 3\n" * 2,
         ["seed: '1': is given twice, in lines 2 and 3",
          "batch_size: '3': is given twice, in lines 5 and 6"]),
        ("compute: {compile: true, compile: false}",
         ["compute.compile: 'false': is given twice, in line 2"]),
        ("trainable: [a]\nlabels:\n  kind: hard\n  kind: uniform",
         ["labels.kind: 'uniform': is given twice, in lines 4 and 5"]),
        ("a: &a {seed: 1}\n<<: *a\n<<: *a", ["<<: '{...}': is given twice, in lines 3 and 4"]),
    ],
)  # fmt: skip
def test_keys_are_unique(text: str, lines: list[str], tmp_path: Path) -> None:
    assert told(tmp_path, pretrain(text)) == lines


def test_keys_of_free_mappings_and_of_lists_are_unique(tmp_path: Path) -> None:
    assert told(tmp_path, FREE.format(args="{a: [{b: 1, b: 1}]}")) == [
        "model.args.a.0.b: '1': is given twice, in line 3"
    ]
    text = "noise: {kind: mixture, parts: [{noise: {kind: pink}, weight: 1, weight: 2}]}"
    assert told(tmp_path, f"name: x\n{text}\nduration: {{}}\nduration: {{}}") == [
        "duration: '{...}': is given twice, in lines 3 and 4",
        "noise.parts.0.weight: '2': is given twice, in line 2",
    ]


def test_merges_and_aliases(tmp_path: Path) -> None:
    text = pretrain("""
probes:
  noise: {a: &pink {kind: pink, alpha: 2}, b: {<<: *pink, alpha: 3}, c: {<<: [*pink], scale: 2}}
""")
    noise = read(tmp_path, text).probes.noise
    assert [(n.kind, n.alpha, n.scale) for n in noise.values()] == [
        ("pink", 2, 1), ("pink", 3, 1), ("pink", 2, 2),
    ]  # fmt: skip
    file = tmp_path / "job.yaml"
    config = load.load(jobs.config_class("pretrain"), file, ["probes.noise.a.scale=5"])
    assert [n.scale for n in config.probes.noise.values()] == [5, 1, 2]
    (line,) = told(tmp_path, pretrain("compute: {<<: 3}"))
    assert line == "compute.<<: '3': must be a mapping, or a list of mappings (line 2)"


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (BOMB, "holds more than 50,000 values, with those of aliases"),
        (MERGES, "holds more than 50,000 values, with those of aliases"),
        ("a: &a [*a]", "is nested more than 60 deep"),
        ("a: &a {<<: *a}", "is nested more than 60 deep"),
        ("a: &a {b: *a}", "is nested more than 60 deep"),
        ("[" * 100_000, "is not YAML: line 1, column 62: it is nested more than 60 deep"),
        ("{a: " * 5000, "it is nested more than 60 deep"),
        ("- " * 5000, "it is nested more than 60 deep"),
        ("x" * 300_000, "is larger than 256 KiB"),
        ("a: !x 3", "is not YAML: line 1, column 4: only the tag !!str is allowed"),
        ("a: !!binary aGk=", "only the tag !!str is allowed"),
        ("!!set {a, b}", "only the tag !!str is allowed"),
        ("!x a: 1", "only the tag !!str is allowed"),
        ("a: !!python/object/apply:os.system [x]", "only the tag !!str is allowed"),
        ("name: x\n---\nname: y", "expected a single document in the stream"),
        ("name: x\n\tseed: 1", "is not YAML: line 2, column 1: "),
        ("name: *x", "is not YAML: line 1, column 7: found undefined alias 'x'"),
        ("a: &x 1\nb: &x 2", "found duplicate anchor 'x'"),
        ("name: a\0b", "is not YAML: position 7: special characters are not allowed"),
        ("name: \xe9".encode("latin-1"), "is not YAML: position 6: "),
        ("false", "must hold a mapping"),
        ("''", "must hold a mapping"),
        ("[]", "must hold a mapping"),
        ("0", "must hold a mapping"),
    ],
)  # fmt: skip
def test_refused_as_a_whole(text: str | bytes, what: str, tmp_path: Path) -> None:
    (line,) = told(tmp_path, text)
    assert what in line
    assert len(line) < 300


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings_and_line_ends(encoding: str, tmp_path: Path) -> None:
    text = pretrain("tracking: {experiment: größe 中}").replace("\n", "\r\n")
    assert read(tmp_path, text.encode(encoding)).tracking.experiment == "größe 中"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_file_is_an_empty_config(text: str, tmp_path: Path) -> None:
    assert told(tmp_path, text, "sync") == ["name: None: is required"]


def test_many_problems_are_counted(tmp_path: Path) -> None:
    lines = told(tmp_path, pretrain("".join(f"k{n}: 1\n" for n in range(1000))))
    assert len(lines) == 51
    assert lines[-1] == "and 950 more problems"


def test_a_key_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    assert told(tmp_path, pretrain('"a\\nb\\e": 3'))[0].startswith("a\\nb\\x1b: 3: ")


# paths

PATHS = {
    "BenchmarkConfig.recipe", "ConvertConfig.output", "DataProbe.path", "FromCheckpoint.path",
    "FromFolder.path", "FromFolder.test_path", "FromFolder.val_path", "FromIdx.path",
    "FromParquet.path", "FromTorchvision.root", "Matched.data", "QuickstartConfig.output",
    "RegisterConfig.path", "Server.uri", "Stored.storage", "TrackingChanges.uri", "TrainData.path",
}  # fmt: skip
NO_PATHS = {"FromRegistry.uri", "Stored.name"}
"""Their help speaks of a folder or a model's URI, and their patterns allow neither ~ nor $."""


def test_every_path_is_marked() -> None:
    found = set().union(*(parts(jobs.config_class(job)) for job in jobs.NAMES))
    sections = {base for section in found for base in section.__mro__ if is_dataclass(base)}
    words = re.compile(r"director|folder|data set|tracking server|^config of|models:/", re.I)
    marked, described = set(), set()
    for section in sections:
        for name in vars(section).get("__annotations__", {}):
            field = section.__dataclass_fields__.get(name)
            if field is None or "str" not in str(field.type) or "dict" in str(field.type):
                continue
            path = f"{section.__name__}.{name}"
            marked |= {path} if field.metadata.get("path") else set()
            described |= {path} if words.search(field.metadata.get("description", "")) else set()
    assert marked == PATHS
    assert described - NO_PATHS == PATHS


@pytest.mark.parametrize("written", ["~/x", "$HOME/x", "${HOME}/x"])
def test_paths_are_expanded_wherever_they_come_from(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    text = pretrain(f"storage: {written}\nprobes:\n  data:\n    a:\n      path: {written}\n")
    words = [f"storage={written}", f"probes.data.a.path={written}", "name=x"]
    words += [f"{key}={yaml.safe_dump(PRETRAIN[key], default_flow_style=True).strip()}"
              for key in ("model", "noise", "duration")]  # fmt: skip
    cls = jobs.config_class("pretrain")
    from_file, from_words = read(tmp_path, text), load.load(cls, None, words)
    python = load.validate(cls, PRETRAIN | {
        "storage": written, "probes": {"data": {"a": {"path": written}}},
    })  # fmt: skip
    assert from_file == from_words == python
    assert python.storage == python.probes.data["a"].path == "/home/u/x"
    assert load.digest(python) == load.digest(load.validate(cls, plain(python)))
    config = load.load(jobs.config_class("sync"), None, ["name=x", "tracking.uri=sqlite:///~/m.db"])
    assert config.tracking.uri == "sqlite:////home/u/m.db"


def test_a_path_that_cannot_be_expanded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    text = "start: {kind: checkpoint, path: $NOT_SET/a}\ndata: {path: ~nobody-here}\nname: x"
    assert sorted(told(tmp_path, text, "train")) == [
        "data.path: '~nobody-here': there is no such home folder; write ./~nobody-here for a "
        "folder of this name",
        "start.path: '$NOT_SET': this environment variable is not set, or empty",
    ]
    with pytest.raises(ConfigError, match="must not be empty"):
        load.validate(jobs.config_class("convert"), {"source": {"kind": "idx", "path": ""},
                                                     "output": "x"})  # fmt: skip


# there and back


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3)
        ),
        max_leaves=5,
    )
)
def test_what_is_written_is_read(value: Any) -> None:
    free = (hints(jobs.config_class("search"))["recipe"].__args__[0].__args__[1],)
    assert document.read_file(document.dump({"a": value}).encode(), free) == {"a": value}
