"""The two commands of the README, as a newcomer gives them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.conftest import REPOSITORY, Quickstart, run_job

pytestmark = pytest.mark.e2e


def test_quickstart(quickstart: Quickstart) -> None:
    done, folder = quickstart.done, quickstart.folder
    assert done.code == 0, done.err
    assert done.err == ""  # no warning that we could prevent
    assert done.seconds <= 150
    assert (folder / "runs/quickstart/quickstart.png").stat().st_size > 20_000

    (record,) = (folder / "runs/quickstart").glob("pretrain-*/run.json")
    outcome = json.loads(record.read_text())["result"]["outcome"]
    assert outcome["before"]["deviation"] > 0.2
    assert {m["probe"] for m in outcome["after"]["measurements"]} > {"digits", "gaussian"}
    assert outcome["after"]["deviation"] <= 0.005
    assert outcome["progress"]["stop_reason"] == "until_deviation"
    assert not any("digits" in str(r["deviations"]) for r in outcome["progress"]["history"])
    assert outcome["progress"]["seconds"] <= 15

    for text in (
        "AUROC, OOD images",
        "accuracy",
        "ECE",
        "NLL",
        "mlflow ui --backend-store-uri",
    ):
        assert text in done.out
    last = done.out.splitlines()[-1].strip()  # the line that loads the model, run as it is printed
    assert last.startswith("python -c")
    command = last.replace("python", sys.executable, 1)
    loaded = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert "Sequential(" in loaded.stdout

    again = run_job(folder, "quickstart")
    assert again.code == 0
    assert again.out.count("has finished already") == 3
