"""A version in the hands of people who have never heard of us: the card's lines, as printed, where
there is nothing but torch, torchvision, safetensors and MLflow.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core import checkpoint
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.registry import tracking
from precalib_ray.report import snippets
from precalib_ray.runs.publish import publish
from tests.registry import bare

pytestmark = pytest.mark.server

BATCHES = (1, 2, 64)
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "input_shape": [1, 8, 8], "depth": 3, "batch_norm": True},
    "resnet18": {
        "kind": "torchvision", "name": "resnet18", "input_shape": [1, 32, 32], "small_stem": True,
    },
    "mobilenet_v3_small": {
        "kind": "torchvision", "name": "mobilenet_v3_small", "input_shape": [3, 32, 32],
    },
    "convnext_tiny": {"kind": "torchvision", "name": "convnext_tiny", "input_shape": [3, 32, 32]},
    "vit_b_16": {
        "kind": "torchvision", "name": "vit_b_16", "input_shape": [3, 32, 32],
        "args": {"image_size": 32},
    },
}  # fmt: skip
SERVED = "mlp"


class Registry:
    """A SQLite registry with one version of each model, and what each should answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.cards: dict[str, list[str]] = {}
        for name, model in MODELS.items():
            self._publish(name, model)

    def _publish(self, name: str, model: dict[str, Any]) -> None:
        config = load.validate(
            PretrainConfig,
            {
                "name": name,
                "model": {"num_classes": 10, **model},
                "noise": {"kind": "gaussian"},
                "duration": {"steps": 0},
                "probes": {"noise": {"gaussian": {"kind": "gaussian"}}, "size": 2, "stop_size": 2},
                "tracking": {"register_as": name},
            },
        )
        pretraining = Pretraining(config)
        outcome = pretraining.run()
        directory = self.folder / "checkpoints" / name
        pretraining.write(directory, outcome)
        run = tracking.Run(uri=self.uri, experiment="e", name=name, tags={})
        assert publish(config, directory, outcome, run).uri == f"models:/{name}/1"
        network = checkpoint.load_model(directory).eval()
        inputs = torch.randn(64, *model["input_shape"])
        with torch.no_grad():
            torch.save({"inputs": inputs, "logits": network(inputs)}, self.folder / f"{name}.pt")
        description = run.client.get_model_version(name, "1").description
        self.cards[name] = re.findall(r"```(?:python|bash)\n(.*?)\n```", description, re.DOTALL)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.make(tmp_path_factory.mktemp("bare") / "venv")


def environment(binaries: Path, registry: Registry) -> dict[str, str]:
    return {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(registry.folder),
        "MLFLOW_TRACKING_URI": registry.uri,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }


def test_the_environment_is_bare(binaries: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json, sys; "
        "print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
    )
    absent = ("precalib_ray", "ray", "timm", "optuna", "rich", "torchmetrics", "pytest", "pip")
    present = ("torch", "torchvision", "safetensors", "mlflow")
    found = subprocess.run(
        [binaries / "python", "-c", code, *absent, *present],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout) == list(present)


_CHECK = """
import json, sys, time
import numpy as np, torch
for name, (training, prediction) in json.load(open(sys.argv[1])).items():
    known = torch.load(name + ".pt", weights_only=True)
    inputs, logits = known["inputs"], known["logits"]
    began = time.time()
    space = {}
    exec(training, space)  # the card's lines, as printed
    model = space["model"]
    assert all(module.training for module in model.modules()), name
    torch.nn.functional.cross_entropy(model(inputs[:4]), torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters()), name
    space = {}
    exec(training, space)  # once more: the pass above moved BatchNorm's statistics
    with torch.no_grad():
        answers = space["model"].eval()(inputs)
    assert torch.allclose(answers, logits, atol=1e-5), (name, "trainable")
    space = {}
    exec(prediction, space)
    assert space["logits"].shape == (64, 10)
    assert space["same"].shape == (64, 10)
    for batch in json.loads(sys.argv[2]):
        exported = space["exported"](inputs[:batch]).detach()
        predicted = space["predictor"].predict(inputs[:batch].numpy())
        assert torch.allclose(exported, logits[:batch], atol=1e-4), (name, batch)
        assert np.allclose(predicted, logits[:batch], atol=1e-4), (name, batch)
    print(name, "%.1f s" % (time.time() - began), flush=True)
assert "precalib_ray" not in sys.modules
"""


def test_ten_lines_give_the_network_back_and_mlflow_predicts(
    registry: Registry, binaries: Path
) -> None:
    lines = {name: card[1:3] for name, card in registry.cards.items()}
    (registry.folder / "lines.json").write_text(json.dumps(lines))
    for name, (training, _) in lines.items():
        assert len([line for line in training.splitlines() if line]) <= 15, name
        assert f"models:/{name}/1" in training
    done = subprocess.run(
        [binaries / "python", "-c", _CHECK, "lines.json", json.dumps(BATCHES)],
        cwd=registry.folder, env=environment(binaries, registry), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(MODELS)


def test_a_version_is_served(registry: Registry, binaries: Path) -> None:
    serving, request = registry.cards[SERVED][3:5]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serving, request = (text.replace(str(snippets.PORT), port) for text in (serving, request))
    assert "127.0.0.1" in serving
    variables = environment(binaries, registry)
    log = registry.folder / "serving.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            serving, shell=True, cwd=registry.folder, env=variables, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).close()
                break
            except OSError:
                time.sleep(0.3)
        answered = subprocess.run(
            [binaries / "python", "-c", request],
            cwd=registry.folder, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout == "(2, 10)\n"
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.kill()
        server.wait()
