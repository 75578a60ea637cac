"""The command line: usage, help, exit codes, and the result line."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from precalib_ray import cli, result_line
from precalib_ray.config import help as help_text
from precalib_ray.config import jobs
from precalib_ray.errors import GateError
from precalib_ray.jobs import convert as convert_job
from precalib_ray.runs import console

REPOSITORY = Path(__file__).parents[1]
MLP = str(REPOSITORY / "configs" / "pretrain_mlp.yaml")
CONVERT = ["convert", "source.kind=digits"]


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a job's process does to itself."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/precalib"])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv(result_line.VARIABLE, raising=False)
    handler, factory = signal.getsignal(signal.SIGTERM), logging.getLogRecordFactory()
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.setLogRecordFactory(factory)


def ended(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert isinstance(error.value.code, int)
    return error.value.code


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_usage(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(asked) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("usage: precalib JOB [CONFIG] [path=value ...]\n")
    lines = [line.split(maxsplit=1) for line in shown.out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == jobs.NAMES
    for name, summary in lines:
        assert f"{jobs.config_class(name).__doc__}".startswith(summary)


@pytest.mark.parametrize("arguments", [[], ["pretrian"], ["pretrian", "--help"], ["jobs"]])
def test_no_such_job(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: precalib JOB")
    assert "  pretrain " in shown.err


def test_programs_by_which_it_is_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended("sync", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: precalib sync ")
    monkeypatch.setattr(sys, "argv", ["/somewhere/precalib_ray/__main__.py"])
    assert ended("sync", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: python -m precalib_ray sync ")
    monkeypatch.setattr(sys, "argv", ["jobs/sync.py", "--help"])
    with pytest.raises(SystemExit):
        cli.run_script("jobs/sync.py")
    assert capsys.readouterr().out.startswith("usage: python jobs/sync.py ")


def test_a_module_of_the_user_that_is_named_like_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(
        "import torch\n"
        "def noise(shape, generator, device):\n"
        "    return torch.full(shape, torch.nan)\n"
    )
    script = REPOSITORY / "jobs" / "pretrain.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(script.parent)  # as ``python jobs/pretrain.py`` does
    monkeypatch.delitem(sys.modules, "train", raising=False)
    override = "noise={kind: function, name: 'train:noise'}"
    monkeypatch.setattr(sys, "argv", [str(script), MLP, override])
    with pytest.raises(SystemExit):
        cli.run_script(str(script))
    monkeypatch.delitem(sys.modules, "train")
    assert "it gives values that are NaN or infinite" in capsys.readouterr().err


def test_every_job_has_a_script_and_a_function() -> None:
    scripts = {file.stem for file in (REPOSITORY / "jobs").glob("*.py")}
    modules = {file.stem for file in (REPOSITORY / "precalib_ray" / "jobs").glob("[!_]*.py")}
    assert scripts == modules == set(jobs.NAMES)


HELP = """
import os, sys
from precalib_ray.cli import main
try:
    main([sys.argv[1], "--help"])
except SystemExit as error:
    code = error.code
heavy = [name for name in ("torch", "ray", "mlflow", "numpy", "pyarrow") if name in sys.modules]
print(code, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("job", jobs.NAMES)
def test_help_is_quick_and_complete(job: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", HELP, job],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.stderr == "0\n"  # and none of the heavy modules
    assert seconds <= 1.0
    shown = " ".join(done.stdout.split())
    for line in help_text.describe(jobs.config_class(job)):
        head = f"{line.path}: {line.type}" if line.type else f"{line.path}: {line.meaning}"
        assert " ".join(head.split()) in shown
        assert " ".join(line.meaning.split()) in shown
    for flag in jobs.config_class(job).flags:
        assert f"{flag.name} " in shown


def test_print_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["noise.kind=pink", "scaling.num_workers=2"]
    cli.main(["pretrain", MLP, *overrides, "--print-config"])
    first = capsys.readouterr()
    assert first.err == ""
    file = tmp_path / "printed.yaml"
    file.write_text(first.out)
    cli.main(["pretrain", str(file), "--print-config"])
    assert capsys.readouterr().out == first.out


def test_a_file_whose_path_looks_like_an_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lr=1e-3"
    folder.mkdir()
    (folder / "sync.yaml").write_text("name: x\n")
    cli.main(["sync", "lr=1e-3/sync.yaml", "--print-config"])
    assert "name: x\n" in capsys.readouterr().out
    (tmp_path / "name=y").write_text("name: x\n")
    cli.main(["sync", "name=y", "--print-config"])
    assert "name: y\n" in capsys.readouterr().out


def test_a_flag_is_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["promote", "name=m", "--rollback", "--print-config"])
    assert "rollback: true\n" in capsys.readouterr().out
    cli.main(["promote", "name=m", "--print-config"])
    assert "rollback: false\n" in capsys.readouterr().out


def test_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("pretrain", MLP, "batch_sise=3", "noise.kind=pnk") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sorted(shown.err.splitlines()) == [
        "pretrain: batch_sise: 3: there is no such field (did you mean batch_size?)",
        "pretrain: noise.kind: 'pnk': must be one of blur, function, gaussian, laplace, matched, "
        "mixture, patches, pink, rademacher, student_t, uniform (did you mean pink?)",
    ]


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, "convert: interrupted; the same command resumes from the last"),
        (RuntimeError("http://bob:secret@host"), 1, "RuntimeError: http://***@host"),
    ],
)
def test_what_a_job_may_raise(
    error: BaseException,
    code: int,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr(convert_job, "convert", fail)
    assert ended(*CONVERT, "output=d") == code
    said = capsys.readouterr().err
    assert shown in said
    assert "secret" not in said
    assert ("Traceback" in said) == (code == 1)  # a defect of ours


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_no_defect(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise OSError(number, os.strerror(number), "/tmp/drawn.png")

    monkeypatch.setattr(convert_job, "convert", fail)
    assert ended(*CONVERT, "output=d") == 3
    said = capsys.readouterr().err
    assert said == f"convert: [Errno {number}] {os.strerror(number)}: '/tmp/drawn.png'\n"


def test_a_job_says_something_at_once_and_all_along(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SILENCE_S", 0.1)
    monkeypatch.setattr(console, "_TICK_S", 0.02)
    monkeypatch.setattr(convert_job, "convert", lambda config: time.sleep(0.3))
    assert cli.main([*CONVERT, "output=d"]) is None
    first, *_, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("importing libraries ...", "convert: still running")


def test_a_name_that_standard_output_cannot_encode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    cli.main([*CONVERT, f"output={tmp_path}/é"])
    sys.stdout.flush()
    assert f"{tmp_path}/\\xe9/test.parquet: ".encode() in written.getvalue()


def result_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("precalib-result ")]


def test_the_result_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main([*CONVERT, f"output={tmp_path / 'one'}"])
    assert result_lines(capsys.readouterr().out) == []
    monkeypatch.setenv("PRECALIB_RESULT", "1")
    cli.main([*CONVERT, f"output={tmp_path / 'two'}"])
    (line,) = result_lines(capsys.readouterr().out)
    assert json.loads(line.removeprefix("precalib-result ")) == {
        "job": "convert", "model_uri": None,
    }  # fmt: skip
    assert (tmp_path / "two" / "test.parquet").exists()


def test_the_result_line_names_the_version(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Registered:
        model_uri = "models:/m/3"

    result_line.emit("register", Registered())
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("PRECALIB_RESULT", "1")
    result_line.emit("register", Registered())
    out = capsys.readouterr().out
    assert out == 'precalib-result {"job": "register", "model_uri": "models:/m/3"}\n'


def test_the_result_line_of_a_job_that_registered_and_then_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(config: object) -> None:
        error = GateError("not close enough")
        error.model_uri = "models:/m/2"
        raise error

    monkeypatch.setattr(convert_job, "convert", refused)
    monkeypatch.setenv("PRECALIB_RESULT", "1")
    assert ended(*CONVERT, "output=d") == GateError.exit_code
    (line,) = result_lines(capsys.readouterr().out)
    assert '"model_uri": "models:/m/2"' in line


def test_no_result_line_of_a_job_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECALIB_RESULT", "1")
    assert ended("pretrain", MLP, "seed=-1") == 2
    assert ended("convert", "source={kind: idx, path: no/such}", "output=d") == 3
    assert result_lines(capsys.readouterr().out) == []
