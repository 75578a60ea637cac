"""The job ``quickstart``: the whole way on one machine, with a twin to compare with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precalib_ray.cluster import session
from precalib_ray.config import base
from precalib_ray.config.jobs import PretrainConfig, QuickstartConfig, TrainConfig
from precalib_ray.data import convert as converters
from precalib_ray.data import parquet
from precalib_ray.errors import ConfigError, Problem
from precalib_ray.registry import publishing
from precalib_ray.report import figures
from precalib_ray.service.pretrain import Pretrained, pretrain
from precalib_ray.service.terminal import console, table
from precalib_ray.service.train import train

_SHAPE, _NUM_CLASSES = (1, 8, 8), 10
_ROWS = (
    ("accuracy", "accuracy", "{:.4f}"),
    ("ECE", "ece", "{:.4f}"),
    ("NLL", "nll", "{:.4f}"),
    ("AUROC, unknown images", "auroc_unknown", "{:.4f}"),
)


def quickstart(config: QuickstartConfig) -> Path:
    """Pre-calibrate, register, pull back, train, and compare with the twin that was not.

    Returns:
        The figure.

    Raises:
        PrecalibError: see its families.
    """
    if config.model.num_classes != _NUM_CLASSES or config.model.input_shape != _SHAPE:
        shown = (config.model.num_classes, list(config.model.input_shape))
        allowed = f"the digits have {_NUM_CLASSES} classes and shape {list(_SHAPE)}"
        raise ConfigError([Problem("model", shown, allowed)])
    started = time.monotonic()
    output = Path(config.output)
    store = f"sqlite:///{output / 'mlflow.db'}"
    data = output / "data"
    if not parquet.split_path(data, "train").exists():
        converters.convert_digits(data)
    with session.connect():
        console.rule("1 of 3: noise pretraining", align="left")
        pretrained = pretrain(pretrain_config(config, data, store))
        name = publishing.default_name(config.model.model_dump())
        alias = f"models:/{name}@{publishing.CANDIDATE}"
        starts: dict[str, dict[str, Any]] = {
            "random": {"kind": "random", "model": config.model.model_dump()},
            "pre-calibrated": {"kind": "registry", "uri": alias},
        }
        outcomes = {}
        for number, (arm, start) in enumerate(starts.items(), start=2):
            console.rule(f"{number} of 3: data training, {arm} start", align="left")
            outcomes[arm] = train(train_config(config, data, store, start)).outcome
    figure = figures.comparison(
        list(outcomes.items()), title="Handwritten digits: confidence and accuracy"
    )
    path = figures.save(figure, output / "quickstart.png")
    _show(pretrained, outcomes)
    console.print(f"figure: {path}")
    console.print(f"everything took {time.monotonic() - started:.0f} s\n")
    console.print("[bold]Look at the runs, the model and its description:[/]")
    console.print(f"  mlflow ui --backend-store-uri {store}", markup=False)
    console.print("[bold]Load the pre-calibrated network, ready to train on your data:[/]")
    console.print(
        f"  python -c 'import precalib_ray; print(precalib_ray.load_pretrained("
        f'"{alias}", tracking_uri="{store}"))\'',
        markup=False,
    )
    return path


def pretrain_config(config: QuickstartConfig, data: Path, store: str) -> PretrainConfig:
    """Noise pretraining until no noise probe shows more than 0.002 above chance."""
    content = {
        **_common(config, store, "pretrain"),
        "model": config.model.model_dump(),
        "noise": {
            "kind": "mixture",
            "parts": [
                {"noise": {"kind": "gaussian"}},
                {"noise": {"kind": "pink", "alpha": 2.0}},
                {"noise": {"kind": "patches"}},
            ],
        },
        "labels": {"kind": "uniform"},
        "batch_size": 128,
        "duration": {"steps": 3000, "until_deviation": 0.002, "patience": 2},
        "probes": {"every": 20, "data": {"digits": {"path": str(data)}}},
    }
    return base.validate(PretrainConfig, content)


def train_config(
    config: QuickstartConfig, data: Path, store: str, start: Mapping[str, Any]
) -> TrainConfig:
    """Data training on the digits; the arms differ in where they start, and in nothing else."""
    content = {
        **_common(config, store, f"train-{start['kind']}"),
        "start": dict(start),
        "data": {"path": str(data)},
        "epochs": config.epochs,
        "batch_size": 64,
        "save_every_epochs": config.epochs,
    }
    return base.validate(TrainConfig, content)


def _common(config: QuickstartConfig, store: str, name: str) -> dict[str, Any]:
    return {
        "name": f"{name}-{base.digest(config, exclude={'output'})[:8]}",
        "storage": config.output,
        "seed": config.seed,
        "tracking": {"uri": store, "experiment": "quickstart"},
    }


def _show(pretrained: Pretrained, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
    before, after = (pretrained.outcome[key] for key in ("before", "after"))
    arms = list(outcomes)
    rows = [
        (
            "initial confidence, digits",
            *(f"{_on_digits(panel) + 1 / _NUM_CLASSES:.4f}" for panel in (before, after)),
        ),
        (
            "initial confidence, worst probe",
            *(f"{panel['deviation'] + 1 / _NUM_CLASSES:.4f}" for panel in (before, after)),
        ),
    ]
    for label, key, form in _ROWS:
        rows.append((label, *(form.format(outcomes[arm]["test"][key]) for arm in arms)))
    title = f"Before training (chance is {1 / _NUM_CLASSES:g}), and on the test digits after it"
    table(title, ("", *arms), rows)


def _on_digits(panel: Mapping[str, Any]) -> float:
    found: float = max(m["deviation"] for m in panel["measurements"] if m["probe"] == "digits")
    return found
