"""What a registry may hold to harm whoever pulls from it: refused, nothing executed, and why."""

from __future__ import annotations

import http.server
import json
import pickle
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from mlflow.tracking import MlflowClient

import precalib_ray
from precalib_ray.core import checkpoint
from precalib_ray.core.models.mlp import MLP
from precalib_ray.errors import CheckpointError, PrecalibError, TrackingError
from precalib_ray.registry import loading

pytestmark = pytest.mark.server

SETTINGS = MLP(num_classes=3, input_shape=(4,), depth=1, width=4)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return checkpoint.save(
        tmp_path / "extra_files",
        model=SETTINGS.build(seed=0),
        settings=SETTINGS,
        metrics={},
        trainer_state={"optimizer": {}, "progress": {}},
    )


def register(directory: Path, store: str) -> str:
    """A version whose files lie where somebody else may have changed them."""
    client = MlflowClient(tracking_uri=store)
    client.create_registered_model("planted")
    client.create_model_version("planted", source=directory.parent.as_uri())
    return "models:/planted/1"


def pulled(directory: Path) -> torch.nn.Module:
    """Through a registry, as a downstream team gets it."""
    store = f"sqlite:///{directory.parent / 'mlflow.db'}"
    return precalib_ray.load_pretrained(register(directory, store), tracking_uri=store)


def test_the_checkpoint_loads_unharmed(directory: Path) -> None:
    weights = pulled(directory).state_dict()
    expected = SETTINGS.build(seed=0).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_pickle_in_place_of_the_weights(directory: Path, tmp_path: Path, form: str) -> None:
    mark = tmp_path / "executed"
    file = directory / checkpoint.MODEL_FILE
    if form == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(Bomb(mark), file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated, or of another"):
        pulled(directory)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated, or of another"):
        precalib_ray.load_pretrained(str(directory))
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_not_even_fetched(directory: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save(Bomb(mark), directory / checkpoint.STATE_FILE)
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    (directory / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w')")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    loading.pull(register(directory, store), tmp_path / "pulled", tracking_uri=store)
    found = {path.name for path in (tmp_path / "pulled").rglob("*")}
    assert found == {checkpoint.MODEL_FILE, checkpoint.SPEC_FILE, checkpoint.METRICS_FILE}
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # what the test feeds to torch
@pytest.mark.parametrize("form", ["pickle", "torch.save", "zip"])
def test_a_pickle_in_the_trainer_state(directory: Path, tmp_path: Path, form: str) -> None:
    mark = tmp_path / "executed"
    file = directory / checkpoint.STATE_FILE
    if form == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    elif form == "torch.save":
        torch.save({"optimizer": Bomb(mark)}, file)
    else:  # a good archive whose pickle was exchanged
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                evil = name.endswith("data.pkl")
                archive.writestr(name, pickle.dumps(Bomb(mark), 2) if evil else content)
    with pytest.raises(
        CheckpointError, match=r"trainer_state\.pt: truncated, or not written by precalib_ray"
    ):
        checkpoint.load_trainer_state(directory)
    assert not mark.exists()
    # That it would have gone off:
    if form == "torch.save":
        torch.load(file, weights_only=False)
        assert mark.exists()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"kind": "function", "name": "os:system"}, r"built by code, 'os:system', .*trust_code"),
        ({"kind": "function", "name": "os:system", "args": {"command": "touch executed"}},
         r"built by code, 'os:system', .*trust_code"),
        ({"kind": "pickle", "name": "resnet18"}, r"unknown kind 'pickle'"),
        ({"kind": "torchvision", "name": "os:system"}, r"'os:system': is not the name of a torch"),
        ({"kind": "torchvision", "name": "raft_large"}, r"'raft_large': is not the name"),
        ({"kind": "torchvision", "name": "fasterrcnn_resnet50_fpn"}, r"is not the name of a torch"),
        ({"kind": "torchvision", "name": "resnet18", "args": {"weights": "DEFAULT"}},
         r"args\.weights: 'DEFAULT': is set by precalib_ray"),
        ({"kind": "timm", "name": "hf_hub:somebody/something"}, r"'hf_hub:.*is not the name of"),
        ({"kind": "timm", "name": "resnet18", "args": {"checkpoint_path": "/etc/passwd"}},
         r"args\.checkpoint_path: '/etc/passwd': is set by"),
        ({"kind": "mlp", "depth": "import os"}, r"cannot be built"),
        ({"kind": ["mlp"]}, r"unknown kind"),
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_names_what_it_should_not(
    directory: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(directory)
    description = json.loads((directory / checkpoint.SPEC_FILE).read_text())
    description["model"] = {"num_classes": 3, "input_shape": [4], **spec}
    (directory / checkpoint.SPEC_FILE).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=reason) as error:
        pulled(directory)
    assert checkpoint.SPEC_FILE in str(error.value)
    assert not (directory / "executed").exists()


@pytest.mark.parametrize("uri", ["models:/../1", "models:/a/../../1", "models:/a@../b", "models:/"])
def test_uris_that_leave_their_place(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        loading.pull(uri, tmp_path / "x", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").iterdir())


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers as an MLflow server does, and lists artifacts that lie elsewhere."""

    files: list[dict[str, Any]]
    """In the folder of the checkpoint."""
    inside: list[dict[str, Any]]
    """In the folders of that folder."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        version = {
            "name": "evil", "version": "1", "source": "mlflow-artifacts:/evil", "run_id": "r",
            "status": "READY",
        }  # fmt: skip
        if parts.path.endswith("/model-versions/get"):
            answer: Any = {"model_version": version}
        elif parts.path.endswith("/model-versions/get-download-uri"):
            answer = {"artifact_uri": "mlflow-artifacts:/evil"}
        elif parts.path.endswith("/mlflow-artifacts/artifacts"):
            asked = parse_qs(parts.query).get("path", [""])[0]
            answer = {"files": self.files if asked.endswith("extra_files") else self.inside}
        else:
            answer = {"harm": True}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hostile() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _file(path: str, *, is_dir: bool = False) -> dict[str, Any]:
    return {"path": path, "is_dir": is_dir, "file_size": 14}


GOOD = [_file(checkpoint.MODEL_FILE), _file(checkpoint.SPEC_FILE)]


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        ([*GOOD, _file("../../escaped")], []),
        ([*GOOD, _file("..%2f..%2fescaped")], []),
        ([*GOOD, _file("/tmp/escaped-of-precalib-test")], []),
        ([_file("../../model.safetensors"), _file("../../model.json")], []),
        (GOOD, [_file("../../../escaped"), _file("x")]),
        (GOOD, [_file("escaped", is_dir=True)]),
        ([_file(checkpoint.MODEL_FILE, is_dir=True), _file(checkpoint.SPEC_FILE)], []),
        ([*GOOD, _file("escaped"), _file("sub", is_dir=True)], []),
    ],
)
def test_artifacts_do_not_escape_their_directory(
    hostile: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[dict[str, Any]],
    inside: list[dict[str, Any]],
) -> None:
    monkeypatch.setattr(Hostile, "files", files, raising=False)
    monkeypatch.setattr(Hostile, "inside", inside, raising=False)
    target = tmp_path / "a" / "b" / "pulled"

    def load() -> None:
        loading.pull("models:/evil/1", target, tracking_uri=hostile)
        checkpoint.load_model(target)  # the files that it may fetch hold nothing of use

    with pytest.raises(PrecalibError):
        load()
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {target / checkpoint.MODEL_FILE, target / checkpoint.SPEC_FILE}
    assert not Path("/tmp/escaped-of-precalib-test").exists()
