"""The job ``quickstart``: all steps on one machine, with a control to compare with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precalib_ray.calibration.metrics import METRICS
from precalib_ray.cluster import session
from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.quickstart import NUM_CLASSES, QuickstartConfig
from precalib_ray.config.jobs.train import FromRandom, FromRegistry, StartSettings, TrainConfig
from precalib_ray.config.sections import Tracking
from precalib_ray.core.data_training import TrainData
from precalib_ray.core.labels import Uniform
from precalib_ray.core.noise.gaussian import Gaussian
from precalib_ray.core.noise.mixture import Mixture, Part
from precalib_ray.core.noise.patches import Patches
from precalib_ray.core.noise.pink import Pink
from precalib_ray.core.phases.training import OOD_METRIC, Outcome
from precalib_ray.core.probes import DataProbe, PanelResult, ProbeSettings
from precalib_ray.core.stopping import Duration
from precalib_ray.data import convert as converters
from precalib_ray.data import parquet
from precalib_ray.jobs.pretrain import Pretrained, pretrain
from precalib_ray.jobs.train import train
from precalib_ray.registry import publishing
from precalib_ray.report.figures import style
from precalib_ray.report.figures.training import comparison
from precalib_ray.runs.console import console, stage, table

_SHOWN = {name: METRICS[name].label for name in ("accuracy", "ece", "nll")} | {
    OOD_METRIC: "AUROC, OOD images"
}
_NOISES = (Gaussian(), Pink(alpha=2.0), Patches())


def quickstart(config: QuickstartConfig) -> Pretrained:
    """Pre-calibrate, register, pull back, train, and compare with the control.

    Raises:
        PrecalibError: any of its subclasses.
    """
    config = load.validate(QuickstartConfig, config)
    started = time.monotonic()
    output = Path(config.output)
    store = f"sqlite:///{output / 'mlflow.db'}"
    data = output / "data"
    if not parquet.split_path(data, "train").exists():
        converters.convert_digits(data)
    with session.connect(stage):
        console.rule("1 of 3: noise pretraining", align="left")
        pretrained = pretrain(pretrain_config(config, data, store))
        name = publishing.default_name(config.model)
        alias = f"models:/{name}@{publishing.CANDIDATE}"
        starts: dict[str, StartSettings] = {
            "random": FromRandom(model=config.model),
            "pre-calibrated": FromRegistry(uri=alias),
        }
        outcomes = {}
        for number, (arm, start) in enumerate(starts.items(), start=2):
            console.rule(f"{number} of 3: data training, {arm} start", align="left")
            outcomes[arm] = train(train_config(config, data, store, start)).outcome
    figure = comparison(list(outcomes.items()), title="Handwritten digits: confidence and accuracy")
    path = style.save(figure, output / "quickstart.png")
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
    return pretrained


def pretrain_config(config: QuickstartConfig, data: Path, store: str) -> PretrainConfig:
    """Noise pretraining until no noise probe shows more than 0.002 above chance."""
    return PretrainConfig(
        **_common(config, store, "pretrain"),
        model=config.model,
        noise=Mixture(parts=[Part(noise=noise) for noise in _NOISES]),
        labels=Uniform(),
        batch_size=128,
        duration=Duration(steps=3000, until_deviation=0.002, patience=2),
        probes=ProbeSettings(every=20, data={"digits": DataProbe(path=str(data))}),
    )


def train_config(
    config: QuickstartConfig, data: Path, store: str, start: StartSettings
) -> TrainConfig:
    """Data training on the digits; the arms differ only in their start."""
    return TrainConfig(
        **_common(config, store, f"train-{start.kind}"),
        start=start,
        data=TrainData(path=str(data)),
        epochs=config.epochs,
        batch_size=64,
        save_every_epochs=config.epochs,
    )


def _common(config: QuickstartConfig, store: str, name: str) -> dict[str, Any]:
    return {
        "name": f"{name}-{load.digest(config)[:8]}",
        "storage": config.output,
        "seed": config.seed,
        "tracking": Tracking(uri=store, experiment="quickstart"),
    }


def _show(pretrained: Pretrained, outcomes: Mapping[str, Outcome]) -> None:
    panels = (pretrained.outcome.before, pretrained.outcome.after)
    chance = 1 / NUM_CLASSES
    rows = [
        ("initial confidence, digits", *(f"{_on_digits(p) + chance:.4f}" for p in panels)),
        ("initial confidence, worst probe", *(f"{p.deviation + chance:.4f}" for p in panels)),
    ]
    for name, label in _SHOWN.items():
        scores = (outcome.splits["test"][name] for outcome in outcomes.values())
        rows.append((label, *(f"{score:.4f}" for score in scores)))
    title = f"Before training (chance is {chance:g}), and on the test digits after it"
    table(title, ("", *outcomes), rows)


def _on_digits(panel: PanelResult) -> float:
    return max(m.deviation for m in panel.measurements if m.probe == "digits")
