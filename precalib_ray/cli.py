"""The command line: ``precalib JOB``, ``python -m precalib_ray JOB`` and ``jobs/JOB.py``."""

from __future__ import annotations

import argparse
import errno
import io
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precalib_ray import result_line
from precalib_ray.config import help as help_text
from precalib_ray.config import jobs, load
from precalib_ray.config.sections import JobConfig
from precalib_ray.core.importing import load_function
from precalib_ray.errors import InterruptedRunError, PrecalibError, StorageError, one_line
from precalib_ray.registry.secrets import guard_logs, redact
from precalib_ray.runs.console import activity, stage

_USAGE_ERROR = 2
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
"""What a file system refuses, whoever writes: our code, or a library in its temporary folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    """``precalib JOB ...``; ends the process with the exit code of the job."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    module = Path(sys.argv[0]).name == "__main__.py"
    program = "python -m precalib_ray" if module else "precalib"
    if words and words[0] in jobs.NAMES:
        run(words[0], words[1:], program=f"{program} {words[0]}", name=words[0])
        return
    asked = words[:1] in (["-h"], ["--help"])
    out = sys.stdout if asked else sys.stderr
    print(f"usage: {program} JOB [CONFIG] [path=value ...]\n\njobs:", file=out)
    for job in jobs.NAMES:
        print(f"  {job:<12}{_summary(jobs.config_class(job))}", file=out)
    print(f"\n{program} JOB --help lists the fields of a job's config.", file=out)
    sys.exit(0 if asked else _USAGE_ERROR)


def run_script(file: str) -> None:
    """``python jobs/JOB.py ...``, for the script of a job."""
    script = Path(file)
    # Python puts the script's folder first, where "train" is a job and not the user's module.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != script.resolve().parent]
    run(script.stem, sys.argv[1:], program=f"python jobs/{script.name}", name=script.name)


def run(job: str, arguments: Sequence[str], *, program: str, name: str) -> None:
    """Parse the command line, read the config, run the job; exits with the job's exit code.

    The job's function is imported, with Ray and MLflow, only after the config was found valid.
    A user's mistake prints lines without a traceback; a defect of ours shows its traceback.
    """
    config_class = jobs.config_class(job)
    given = _parser(config_class, program).parse_args(arguments)
    file, overrides = given.config, list(given.overrides)
    overrides += [f.override for f in config_class.flags if getattr(given, f.name)]
    if file is not None and "=" in file and not _is_config(file):
        file, overrides = None, [file, *overrides]
    sys.path.insert(0, os.getcwd())  # where the user's own functions are
    guard_logs()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot encode ends no job
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: with a checkpoint
    try:
        config = load.load(config_class, file, overrides)
        if given.print_config:
            print(load.to_yaml(config), end="")
            return
        with activity(lambda: f"{job}: still running"):
            with stage("importing libraries"):
                function = load_function(f"precalib_ray.jobs.{job}:{job}")
            result = function(config)
        result_line.emit(job, result)
    except PrecalibError as error:
        if error.model_uri is not None:
            result_line.emit(job, error)
        for line in redact(str(error)).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _MACHINE:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            sys.exit(1)
        print(f"{name}: {redact(one_line(error))}", file=sys.stderr)
        sys.exit(StorageError.exit_code)
    except Exception:  # a defect of ours
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; the same command resumes from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(InterruptedRunError.exit_code)


def _is_config(word: str) -> bool:
    """Whether a word with ``=`` is the path of a file; without one, overrides make a config."""
    return Path(word).suffix in (".yaml", ".yml") and Path(word).is_file()


def _parser(config_class: type[JobConfig], program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_summary(config_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_fields(config_class),
    )
    parser.add_argument("config", nargs="?", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="override a field")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and exit"
    )
    for flag in config_class.flags:
        kind: dict[str, Any] = (
            {"choices": [flag.choice]} if flag.choice else {"action": "store_true"}
        )
        parser.add_argument(flag.name, dest=flag.name, help=f"the same as {flag.override}", **kind)
    return parser


def _summary(config_class: type[JobConfig]) -> str:
    return (config_class.__doc__ or "").partition("\n")[0]


def _fields(config_class: type[JobConfig]) -> str:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    lines = ["fields of the config, each also an override (path=value):"]
    for line in help_text.describe(config_class):
        if not line.type:  # one of the kinds to choose from
            lines += ["", *textwrap.wrap(f"  {line.path}: {line.meaning}", width)]
            continue
        head = f"  {line.path}: {line.type}"
        if line.default:
            head += " (required)" if line.default == "required" else f" = {line.default}"
        lines += textwrap.wrap(head, width, subsequent_indent=" " * 6)
        lines += textwrap.wrap(" " * 6 + line.meaning, width, subsequent_indent=" " * 6)
    return "\n".join(lines)
