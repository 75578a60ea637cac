"""What ``register`` and ``promote`` measure: every image of a data probe, not one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pytorch
import pytest
import torch
from torch import nn

from precalib_ray.config import load
from precalib_ray.config.jobs.promote import PromoteConfig
from precalib_ray.config.jobs.register import RegisterConfig
from precalib_ray.core import checkpoint
from precalib_ray.core.head import find_head, scale_head
from precalib_ray.core.models import Model
from precalib_ray.core.probes import Panel, PanelResult
from precalib_ray.core.spec import from_plain
from precalib_ray.data import convert
from precalib_ray.jobs.promote import promote
from precalib_ray.jobs.register import register
from precalib_ray.registry.gate import Gate

MLP = {"kind": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "depth": 2, "width": 8}
RESNET = {
    "kind": "torchvision", "name": "resnet18", "num_classes": 10, "input_shape": [3, 16, 16],
    "small_stem": True,
}  # fmt: skip
SIZE = 70  # two chunks


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    convert.convert_digits(folder)
    return str(folder)


Measured = list[tuple[dict[str, tuple[int, ...]], PanelResult]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The shape of every probe's inputs, and the result, of each measurement."""
    seen: Measured = []
    measure = Panel.measure

    def spy(self: Panel, model: nn.Module, *, limit: int | None = None) -> PanelResult:
        result = measure(self, model, limit=limit)
        seen.append(({p.name: tuple(p.inputs.shape) for p in self.probes}, result))
        return result

    monkeypatch.setattr(Panel, "measure", spy)
    return seen


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log models pickled: an export of a ResNet takes ten times as long as all of the rest."""
    log_model = mlflow.pytorch.log_model

    def pickled(model: nn.Module, **arguments: Any) -> object:
        arguments |= {"serialization_format": "pickle", "input_example": None}
        return log_model(model, **arguments)

    monkeypatch.setattr(mlflow.pytorch, "log_model", pickled)


@pytest.mark.usefixtures("without_export", "one_thread")
@pytest.mark.parametrize("spec", [MLP, RESNET], ids=lambda spec: spec["kind"])
def test_number_of_images(
    spec: dict[str, Any], digits: str, store: str, measured: Measured, tmp_path: Path
) -> None:
    settings: Model = from_plain(Model, spec)  # type: ignore[type-abstract]
    modes = 1 if settings.kind == "mlp" else 2  # of BatchNorm
    model = settings.build(seed=0)
    scale_head(find_head(model, settings), 0.0)  # at chance: the gate lets it
    checkpoint.save(tmp_path / "checkpoint", model=model, settings=settings, metrics={})
    probes = {
        "size": SIZE,
        "noise": {"white": {"kind": "gaussian"}},
        "data": {"digits": {"path": digits, "split": "test"}},
    }
    shape = (SIZE, *settings.input_shape)
    expected = {"white": shape, "digits": shape}

    registered = register(
        load.validate(
            RegisterConfig,
            {
                "path": str(tmp_path / "checkpoint"),
                "probes": probes,
                "tracking": {"uri": store, "register_as": "m"},
            },
        )
    )
    assert registered.model_uri == "models:/m/1"
    assert registered.measured is not None
    assert [shapes for shapes, _ in measured] == [expected, expected]  # it, and an untrained one
    assert registered.measured.num_forwards == 2 * modes * SIZE
    assert {m.probe for m in registered.measured.measurements} == {"white", "digits"}
    untrained = measured[1][1]
    for m in untrained.measurements:  # of SIZE answers, several classes
        counts = [share * SIZE for share in m.classes]
        assert counts == pytest.approx([round(count) for count in counts])
        assert sum(counts) == pytest.approx(SIZE)
    assert any(0 < share < 1 for m in untrained.measurements for share in m.classes)

    measured.clear()
    config = {"name": "m", "version": "1", "probes": probes, "tracking": {"uri": store}}
    assert promote(load.validate(PromoteConfig, config)) == "1"
    ((shapes, result),) = measured
    assert shapes == expected
    assert result.num_forwards == 2 * modes * SIZE
    assert result.deviation == pytest.approx(0, abs=1e-6)
    assert Gate("m", tracking_uri=store).champion() == "1"
