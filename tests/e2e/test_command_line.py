"""What is refused, how it is said, and that it costs no cluster."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.promote import PromoteConfig
from precalib_ray.config.jobs.sync import SyncConfig
from precalib_ray.errors import ConfigError
from precalib_ray.jobs.sync import sync
from tests.e2e.conftest import CLASSES, REPOSITORY, Finished

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
MLP = str(REPOSITORY / "configs" / "pretrain_mlp.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_good_and_prints_one_that_reads_back(
    path: Path, tmp_path: Path
) -> None:
    cls = CLASSES[path.stem.partition("_")[0]]
    config = load.load(cls, path)
    printed = tmp_path / "printed.yaml"
    printed.write_text(load.to_yaml(config))
    assert load.load(cls, printed) == config


def test_the_published_recipe_is_the_published_one() -> None:
    config = load.load(PretrainConfig, REPOSITORY / "configs" / "pretrain_paper.yaml")
    assert config.noise.kind == "gaussian"
    assert config.labels.kind == "hard"
    assert config.duration.samples == 5 * 50_000
    assert (config.optimizer.kind, config.optimizer.lr) == ("sgd", 0.1)
    assert config.optimizer.momentum == 0.9  # type: ignore[union-attr]


def test_a_version_is_given_by_number() -> None:
    config = load.load(PromoteConfig, None, ["name=m", "version=3"])
    assert config.version == "3"


def test_a_run_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such run in"):
        sync(SyncConfig(name="nope", storage=str(tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
def test_print_config(job: Callable[..., Finished]) -> None:
    printed = job("pretrain", MLP, "noise.kind=pink", "--print-config")
    assert printed.code == 0
    assert "kind: pink" in printed.out
    assert printed.err == ""


def test_help(in_process: Callable[..., Finished]) -> None:
    helped = in_process("pretrain", "--help")
    assert helped.code == 0
    for text in ("duration.until_deviation: float|null > 1e-06 = null", "noise.kind=pink"):
        assert text in helped.out


@pytest.mark.e2e
@pytest.mark.alone
def test_problems_are_told_one_per_line_before_ray_starts(job: Callable[..., Finished]) -> None:
    refused = job("pretrain", MLP, "batch_sise=3", "optimizer.lr=-1", "noise.kind=pnk")
    assert refused.code == 2
    assert refused.out == ""
    lines = refused.err.splitlines()
    assert len(lines) == 3
    assert "pretrain.py: batch_sise: 3: there is no such field (did you mean batch_size?)" in lines
    assert any(line.startswith("pretrain.py: optimizer.lr: -1: must be greater") for line in lines)
    assert any("noise.kind: 'pnk'" in line and "(did you mean pink?)" in line for line in lines)
    assert refused.seconds < 10  # a cluster alone takes longer


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("model={kind: torchvision, name: resnet18, num_classes: 10, input_shape: [1, 28, 28]}", 2,
         r"model.input_shape: [1, 28, 28]: the model refuses inputs of shape (1, 28, 28); "
         r"it takes (3, 32, 32)"),
        ("noise={kind: function, name: 'no_such_module:noise'}", 2,
         "noise: 'no_such_module:noise': module 'no_such_module' does not import"),
        ("noise={kind: function, name: 'torch:zeros_like'}", 2, "noise: 'torch:zeros_like':"),
        ("trainable=[nothing.*]", 2, "trainable: ['nothing.*']: 'nothing.*' matches no parameter"),
        ("storage=/dev/null/runs", 2, "storage: '/dev/null/runs': cannot be written"),
        ("probes.data={real: {path: no/such}}", 3, "no/such/test.parquet"),
        ("noise={kind: matched, data: no/such}", 3, "no/such/train.parquet"),
    ],
)  # fmt: skip
def test_what_only_code_and_data_can_tell(
    in_process: Callable[..., Finished], override: str, code: int, message: str
) -> None:
    refused = in_process("pretrain", MLP, override)
    assert refused.code == code
    assert message in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.server
def test_mlflow_that_is_away_is_told_within_seconds(in_process: Callable[..., Finished]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound and not listening: connections are refused
        refused = in_process("pretrain", MLP, f"tracking.uri=http://127.0.0.1:{port}")
    assert refused.code == 4
    assert f"no MLflow server answers at http://127.0.0.1:{port}" in refused.err
    assert "tracking.offline=true" in refused.err
    assert refused.seconds < 15  # ten, and what comes before


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes requests and never answers."""
    released = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            released.wait(30)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    released.set()
    server.shutdown()


@pytest.mark.server
def test_an_mlflow_that_never_answers_is_given_up(silent_server: str) -> None:
    from precalib_ray.errors import TrackingError
    from precalib_ray.registry.server import require_reachable

    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127") as error:
        require_reachable(silent_server)
    assert 4 < time.monotonic() - started < 10
    assert "timed out" in str(error.value)


@pytest.mark.parametrize(
    ("host", "said"), [("127.0.0.1:1", "no user, password or key"), ("[::1", "is not a URI")]
)
def test_a_password_in_a_config_is_refused_and_not_shown(host: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"tracking.uri: .*{said}") as error:
        load.load(PretrainConfig, MLP, [f"tracking.uri='http://bob:secret@{host}'"])
    assert "secret" not in str(error.value)
