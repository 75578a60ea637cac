"""Mutated configs: each is read as it is written, or refused in lines that a user understands."""

from __future__ import annotations

import codecs
import contextlib
import copy
import io
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from precalib_ray import cli
from precalib_ray.config import jobs, load

REPOSITORY = Path(__file__).parents[2]
NUM_CASES = int(os.environ.get("PRECALIB_FUZZ", "300"))
MAX_LINE = 1200
FOREIGN = (
    "Traceback", "pydantic", "yaml.", "<unicode", "<byte", "ArgsKwargs", "Value error", "ctx",
    "typing", "dataclass", "ScalarNode", "tuple", "tag:yaml", "<class", "NoneType", "dictionary",
)  # fmt: skip

WORDS = [
    "", " ", "~", "null", "Null", "yes", "No", "on", "true", "TRUE", "007", "0o17", "010", "0x1F",
    "0b11", "1_000", "1__0", "1e3", "1e-4", "1.0e-4", "1e400", "-1", "+1", "0", ".5", "5.", ".",
    "-", "--", ".inf", "-.inf", ".nan", "nan", "inf", "12:30", "190:20:30.15", "2026-11-25",
    "2001-02-31", "2001-12-14t21:59:43.10-05:00", "9" * 30, "9" * 5000, "0x" + "f" * 5000,
    "1" + "0" * 400, "1." + "3" * 400, "a b", "a: b", "a:b", "#5", "x #5", "[x]", "[", "]", "{x}",
    "{a: 1}", "{a: 1, a: 2}", "{", "'a'", "'a", '"a"', '"a" b', '"\\0"', '"\\ud800"', '"\\x41"',
    "it's", "*a", "&a", "&a b", "!t", "!!int 3", "!!int x", "!!str 3", "!!binary aGk=",
    "!!python/object/apply:os.system [x]", "!!set {a}", "|", ">", "|\n a\n", "? a", "- a", "%a",
    "@a", "`a", "=", "<<", "{<<: {a: 1}}", "{<<: 3}", "a=b", "~/x", "~nobody-here/x", "$HOME/x",
    "${HOME}/x", "${HOME:-x}", "$NOT_SET/x", "$(date)", "sqlite:///~/m.db", "s3://b/{x}",
    "s3://k:s@b/x", "http://h?password=x", "a\nb", "a\tb", "a\rb", "a\0b", "a\x07b", "a\x85b",
    "a\u2028b", "\ufeffa", "ü", "中", "\U0001f600", "\u202e", "²", "٣", "\udcff", "x" * 3000,
    "[" * 50, "[" * 300, "{a: " * 300, "{uniform: [0, 1]}", "{choice: []}", "{choice: [1, a]}",
    "{randint: [0, 1000000000000]}", "{quniform: [0, 1, 1.0e-300]}", "{uniform: [.nan, 1]}",
    "{loguniform: [1e-4, 1e-2]}", "{kind: pink}", "{kind: [a]}", "{kind: no}", "{kind: null}",
    "{? [a] : b}", "{1: x}", "{true: x}", "{null: x}", "{'': x}", "{a.b: 1}", "(", "\\", "\\n",
]  # fmt: skip
KEYS = ["", "x", "0", "²", "9" * 5000, "a b", "kind", "choice", "a\nb", "\udcff", "a." * 70]
VALUES = [
    None, True, False, 0, -1, 3, 2**63, 10**40, 1.5, -0.0, 1e300, float("inf"), float("nan"), "",
    " ", "x", "1", "no", "~/x", "$NOT_SET", "a\nb", "a\0b", "\ud800", "é" * 400, b"bytes", [], [[]],
    [None], [1, 2], ["a"], {}, {"kind": "pink"}, {"kind": ["a"]}, {"a": {}}, {1: 2}, {None: 1},
    {True: 1}, {"": 1}, {"choice": ["x", "x", 1, True]}, {"uniform": [1, 2]}, {"randint": [0, 3]},
    {"uniform": [float("nan"), 1]}, {"choice": [{"kind": "pink"}, {"kind": {"choice": ["blur"]}}]},
]  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    """Job and text of every config of the repository, and of one for every kind and section."""
    for file in sorted((REPOSITORY / "configs").glob("*.yaml")):
        yield file.stem.partition("_")[0], file.read_text()
    variations = (REPOSITORY / "tests/fixtures/variations.yaml").read_text()
    for case in yaml.safe_load(variations).values():
        yield case["job"], yaml.safe_dump(case["config"], sort_keys=False)


SOURCES = [(job, text, yaml.safe_load(text)) for job, text in sources()]


def places(value: Any) -> Iterator[tuple[Any, Any, str]]:
    """Container, key and dotted path of every value within plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key, str(key)
        if isinstance(item, dict | list):
            for container, inner, path in places(item):
                yield container, inner, f"{key}.{path}"


class Mutation:
    """One case: a file's bytes and overrides, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.job, text, content = SOURCES[seed % len(SOURCES)]
        self._content = copy.deepcopy(content)
        mutations: list[Callable[[str], str]] = [
            self._other_data, self._other_scalar, self._other_key, self._other_line,
            self._other_character, self._other_structure,
        ]  # fmt: skip
        self.overrides: list[str] = []
        if self._random.random() < 0.5:
            self.overrides = [self._override() for _ in range(self._random.choice([1, 1, 1, 2, 3]))]
        else:
            for _ in range(self._random.choice([1, 1, 1, 2, 3])):
                text = self._random.choice(mutations)(text)
        self.file = self._encoded(text)

    def _pick(self, text: str) -> tuple[list[str], int]:
        lines = text.splitlines(keepends=True) or ["\n"]
        return lines, self._random.randrange(len(lines))

    def _other_data(self, text: str) -> str:
        container, key, _ = self._random.choice(list(places(self._content)) or [({}, "x", "x")])
        how = self._random.random()
        if how < 0.7 or isinstance(container, list):
            container[key] = copy.deepcopy(self._random.choice(VALUES))
        elif how < 0.85:
            container.pop(key, None)
        else:
            other = self._random.choice([f"{key}x", "kind", "", 1, None, "a.b"])
            container[other] = container.get(key)
        return yaml.safe_dump(self._content, sort_keys=False)

    def _other_scalar(self, text: str) -> str:
        lines, at = self._pick(text)
        head, colon, _ = lines[at].rpartition(":")
        lines[at] = f"{head}{colon} {self._random.choice(WORDS)}\n"
        return "".join(lines)

    def _other_key(self, text: str) -> str:
        lines, at = self._pick(text)
        _, colon, tail = lines[at].partition(":")
        lines[at] = f"{self._random.choice(WORDS)}{colon}{tail}"
        return "".join(lines)

    def _other_line(self, text: str) -> str:
        lines, at = self._pick(text)
        other = self._random.choice([
            lines[at], "", lines[at].lstrip(), f"  {lines[at]}", f"\t{lines[at]}", "---\n", "...\n",
            "%YAML 1.2\n", f"- {lines[at]}", f"{lines[at].rstrip()}{lines[at]}", "name: again\n",
        ])  # fmt: skip
        lines[at : at + self._random.randint(0, 1)] = [other]
        return "".join(lines)

    def _other_character(self, text: str) -> str:
        at = self._random.randrange(len(text) + 1)
        new = self._random.choice([*WORDS, *"{}[],:#&*!|>'\"%@`~$=\\\t\r\n\0\x85\u2028\ufeff"])
        return text[:at] + new + text[at + self._random.randint(0, 2) :]

    def _other_structure(self, text: str) -> str:
        bomb = "a0: &a0 [x, x]\n" + "".join(
            f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 15)
        )
        return self._random.choice([
            f"{text}{bomb}", f"loop: &loop {{<<: *loop}}\n{text}", f"a: &a [*a]\n{text}", text * 2,
            f"{text}---\n{text}", "".join(f"- {line}" for line in text.splitlines(keepends=True)),
            f"base: &base {{seed: 1}}\n<<: *base\n{text}", "[" * 400 + "]" * 400, "", "# nothing\n",
            f"{text}args: {'{a: ' * 70}1{'}' * 70}\n", text + "x: 1\n" * 300, f"? {text}",
        ])  # fmt: skip

    def _override(self) -> str:
        paths = [path for _, _, path in places(self._content)] or ["recipe"]
        path = self._random.choice(paths)
        if self._random.random() < 0.2:
            path = f"{path}.{self._random.choice(KEYS)}"
        return f"{path}={self._random.choice(WORDS)}"

    def _encoded(self, text: str) -> bytes:
        how = self._random.random()
        if how < 0.02:
            return codecs.BOM_UTF8 + text.encode("utf-8", "replace")
        if how < 0.04:
            return text.encode("utf-16", "replace")
        if how < 0.06:
            return text.encode("latin-1", "replace")
        if how < 0.08:
            return text.replace("\n", "\r\n").encode("utf-8", "replace")
        return text.encode("utf-8", "surrogateescape" if how < 0.1 else "replace")


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Undo what a job's command does to its process."""
    factory, path, handler = (
        logging.getLogRecordFactory(), list(sys.path), signal.getsignal(signal.SIGTERM)
    )  # fmt: skip
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        sys.path[:] = path
        signal.signal(signal.SIGTERM, handler)


def printed(job: str, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a job's command with ``--print-config``."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with process_restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([job, "--print-config", *words])
        except SystemExit as error:
            code = int(error.code or 0)
    return code, out.getvalue(), err.getvalue()


def check(mutation: Mutation, file: Path) -> int:
    """Read a mutated config, and what was read from it; returns the exit code."""
    file.write_bytes(mutation.file)
    start = time.process_time()
    code, out, err = printed(mutation.job, str(file), *mutation.overrides)
    assert time.process_time() - start < 10
    if code == 0:
        assert err == ""
        file.write_text(out)
        again = load.load(jobs.config_class(mutation.job), file)
        assert load.to_yaml(again) == out
        return code
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    for line in err.removesuffix("\n").split("\n"):
        assert line.startswith(f"{mutation.job}: ")
        assert line.isprintable()
        assert len(line) <= MAX_LINE
        assert not [word for word in FOREIGN if word in line.replace(str(file), "")], line
    return code


def test_mutated_configs_are_read_as_written_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    codes = []
    for seed in range(NUM_CASES):
        try:
            codes.append(check(Mutation(seed), tmp_path / "config.yaml"))
        except Exception as error:
            error.add_note(f"case {seed}: {Mutation(seed).overrides}")
            raise
    print(f"{NUM_CASES} configs, of them {codes.count(2)} refused")
    assert 0.3 < codes.count(2) / NUM_CASES < 0.97
