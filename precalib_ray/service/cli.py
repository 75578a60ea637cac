"""The command line that all jobs share."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precalib_ray.config import base
from precalib_ray.config.catalog import JOBS
from precalib_ray.core.importing import load_function
from precalib_ray.errors import InterruptedRunError, PrecalibError
from precalib_ray.registry.secrets import guard_logs, redact

MODULE = "__main__.py"
"""The script, where the package itself is run."""


def main(job: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, read the config, run the job; ends the process with its exit code.

    The job's function is imported, with Ray and MLflow, only after the config has been found good.

    A user's mistake is told in lines and ends with the code of its family; a defect of ours shows
    its traceback.
    """
    config_class, function = JOBS[job]
    script = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog=f"python -m precalib_ray {job}" if script == MODULE else f"python jobs/{script}",
        description=(config_class.__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_fields(config_class),
    )
    parser.add_argument("config", nargs="?", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="override a field")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and end"
    )
    for flag in config_class.flags:
        kind: dict[str, Any] = (
            {"choices": [flag.choice]} if flag.choice else {"action": "store_true"}
        )
        parser.add_argument(flag.name, dest=flag.name, help=f"the same as {flag.override}", **kind)
    given = parser.parse_args(arguments)
    file, overrides = given.config, list(given.overrides)
    overrides += [f.override for f in config_class.flags if getattr(given, f.name)]
    if file is not None and "=" in file:  # overrides alone make a config too
        file, overrides = None, [file, *overrides]
    script = job if script == MODULE else script
    sys.path.insert(0, os.getcwd())  # where the user's own functions are
    guard_logs()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: with a checkpoint
    try:
        config = base.load(config_class, file, overrides)
        if given.print_config:
            print(base.to_yaml(config), end="")
            return
        load_function(function)(config)
    except PrecalibError as error:
        for line in redact(str(error)).splitlines():
            print(f"{script}: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # a defect of ours
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            f"{script}: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(InterruptedRunError.exit_code)


def _fields(config_class: type[base.Strict]) -> str:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    lines = ["fields of the config, each also an override (path=value):"]
    for path, type_name, default, meaning in base.describe(config_class):
        if not type_name:  # one of the kinds to choose from
            lines += ["", *textwrap.wrap(f"  {path}: {meaning}", width)]
            continue
        head = f"  {path}: {type_name}"
        if default:
            head += " (required)" if default == "required" else f" = {default}"
        lines += textwrap.wrap(head, width, subsequent_indent=" " * 6)
        lines += textwrap.wrap(" " * 6 + meaning, width, subsequent_indent=" " * 6)
    return "\n".join(lines)
