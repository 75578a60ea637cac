"""The gate measures, whatever tags say, and its champion is always there."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from precalib_ray.core import checkpoint
from precalib_ray.core.head import find_head, scale_head
from precalib_ray.core.models import Model
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.probes import Panel, PanelSettings, Probe
from precalib_ray.errors import GateError, TrackingError
from precalib_ray.registry import publishing, tracking
from precalib_ray.registry.gate import CHAMPION, Gate

pytestmark = pytest.mark.server

SETTINGS = MLP(num_classes=5, input_shape=(1, 6, 6), width=16, batch_norm=True, init="he")


def panel_of(settings: Model) -> Panel:
    return PanelSettings(size=32).panel(settings.input_shape, images={}, statistics={})


def version(store: str, name: str, folder: Path, *, head: float, **tags: str) -> str:
    """Register a network whose last layer is scaled: 0 is at chance."""
    model = SETTINGS.build(seed=0)
    layers = find_head(model, SETTINGS)
    scale_head(layers, head)
    with torch.no_grad():
        layers["head"].bias.zero_()  # type: ignore[union-attr, operator]
    directory = checkpoint.save(
        folder / f"{head}", model=model, settings=SETTINGS, metrics={"head": head}
    )
    run = tracking.Run(uri=store, experiment="gate", name="r", tags={})
    found = publishing.publish(run, directory, name=name, tags=tags)
    run.end("FINISHED")
    return found


def test_a_champion_is_measured_and_can_be_gone_back_from(store: str, tmp_path: Path) -> None:
    name = f"gate-{uuid.uuid4().hex[:6]}"
    good = version(store, name, tmp_path, head=1e-3)
    gate = Gate(name, tracking_uri=store)
    assert gate.champion() is None
    with pytest.raises(GateError, match=f"{name} has no champion"):
        gate.rollback()
    decision = gate.promote(good, tolerance=0.005, panel_of=panel_of)
    assert decision.champion_result is None
    assert {m.mode for m in decision.result.measurements} == {"running", "batch"}
    assert gate.champion() == good

    # Its tags say that it is at chance; its weights do not.
    tampered = version(store, name, tmp_path, head=50.0, **{"precalib.deviation": "0.0001"})
    with pytest.raises(GateError) as refused:
        gate.promote(tampered, tolerance=0.005, panel_of=panel_of)
    message = str(refused.value)
    assert "is above the tolerance 0.005; and deviation" in message
    assert f"that of the champion, version {good}" in message
    for probe in ("gaussian", "pink", "patches"):
        for mode in ("running", "batch"):
            assert f"  {probe}/{mode}: 0." in message
    assert gate.champion() == good

    # Within tolerance, and worse than the champion.
    worse = version(store, name, tmp_path, head=1e-2)
    with pytest.raises(GateError, match="is worse than") as refused:
        gate.promote(worse, tolerance=0.05, panel_of=panel_of)
    assert "tolerance" not in str(refused.value)

    same = version(store, name, tmp_path / "again", head=1e-3)
    gate.promote(same, tolerance=0.005, panel_of=panel_of)  # as good is good enough
    better = version(store, name, tmp_path, head=1e-4)
    gate.promote(better, tolerance=0.005, panel_of=panel_of)
    gate.promote(better, tolerance=0.005, panel_of=panel_of)  # which it is already
    assert gate.champion() == better

    assert gate.rollback() == (better, same)
    assert gate.rollback() == (same, good)
    with pytest.raises(GateError, match=f"no champion before models:/{name}/{good} is known"):
        gate.rollback()
    assert gate.champion() == good
    gate.promote(better, tolerance=0.005, panel_of=panel_of)
    assert gate.rollback() == (better, good)

    events = [(e.action, e.before, e.to, e.decision) for e in gate.audit_log()]
    assert events == [
        ("promote", None, good, "accepted"),
        ("promote", good, tampered, "refused"),
        ("promote", good, worse, "refused"),
        ("promote", good, same, "accepted"),
        ("promote", same, better, "accepted"),
        ("rollback", better, same, "accepted"),
        ("rollback", same, good, "accepted"),
        ("promote", good, better, "accepted"),
        ("rollback", better, good, "accepted"),
    ]
    refusal = gate.audit_log()[1]
    assert refusal.deviation is not None
    assert refusal.deviation > 0.3
    assert refusal.champion_deviation is not None
    assert refusal.champion_deviation < 0.005
    assert refusal.tolerance == 0.005
    assert "@" in refusal.who
    assert gate.was_champion(good)
    assert not gate.was_champion(tampered)


def test_readers_always_find_a_champion(tmp_path: Path) -> None:
    store, name = f"sqlite:///{tmp_path / 'mlflow.db'}", "readers"
    one = version(store, name, tmp_path, head=1e-3)
    other = version(store, name, tmp_path / "again", head=1e-3)
    gate = Gate(name, tracking_uri=store)
    gate.promote(one, tolerance=0.005, panel_of=panel_of)
    seen: list[str] = []
    ended = threading.Event()

    def read() -> None:
        client = MlflowClient(tracking_uri=store)
        while not ended.is_set():
            try:
                seen.append(str(client.get_model_version_by_alias(name, CHAMPION).version))
            except Exception as error:
                seen.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        gate.promote(other, tolerance=0.005, panel_of=panel_of)
        gate.rollback()
    ended.set()
    reader.join()
    assert set(seen) <= {one, other}
    assert len(seen) > 10


def test_a_version_that_is_gone_is_not_gone_back_to(tmp_path: Path) -> None:
    store, name = f"sqlite:///{tmp_path / 'mlflow.db'}", "gone"
    versions = [version(store, name, tmp_path / str(i), head=1e-3) for i in range(3)]
    gate = Gate(name, tracking_uri=store)
    for number in versions:
        gate.promote(number, tolerance=0.005, panel_of=panel_of)
    client = MlflowClient(tracking_uri=store)
    client.delete_model_version(name, versions[1])
    assert gate.rollback() == (versions[2], versions[0])
    client.set_registered_model_alias(name, CHAMPION, versions[2])  # by hand
    assert gate.rollback() == (versions[2], versions[0])

    # A champion that was found to be bad, and deleted: the alias goes with it.
    gate.promote(versions[2], tolerance=0.005, panel_of=panel_of)
    client.delete_model_version(name, versions[2])
    assert gate.champion() is None
    assert gate.rollback() == (None, versions[0])
    assert gate.champion() == versions[0]


def test_confidence_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    store, name = f"sqlite:///{tmp_path / 'mlflow.db'}", "nan"
    number = version(store, name, tmp_path, head=1e-3)
    gate = Gate(name, tracking_uri=store)
    nothing = Panel([Probe("nan", torch.full((4, 1, 6, 6), float("nan")))])
    with pytest.raises(GateError, match="its confidence is NaN"):
        gate.promote(number, tolerance=0.9, panel_of=lambda settings: nothing)
    with pytest.raises(TrackingError, match="models:/unknown: "):
        Gate("unknown", tracking_uri=store)
