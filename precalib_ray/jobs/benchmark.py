"""The job ``benchmark``: ratios from one run on one machine, the minimum of repeats."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from precalib_ray.cluster import session
from precalib_ray.config import load
from precalib_ray.config.jobs.benchmark import BenchmarkConfig
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.labels import Hard
from precalib_ray.core.noise import Noise
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.core.recipe import Recipe
from precalib_ray.core.spec import required
from precalib_ray.core.stream import NoiseStream
from precalib_ray.jobs.pretrain import pretrain
from precalib_ray.runs.console import console, stage, table

_SHAPES = ((256, (3, 32, 32)), (128, (1, 28, 28)), (64, (3, 224, 224)))
_DRAWS = 30


def benchmark(config: BenchmarkConfig) -> dict[str, float]:
    """Measure and print; returns the ratios by name."""
    config = load.validate(BenchmarkConfig, config)
    return drawing(config) | ray_cost(config)


def drawing(config: BenchmarkConfig) -> dict[str, float]:
    """Time to draw a batch of each noise, relative to ``torch.randn`` of the same size.

    Noises with required settings are left out.
    """
    noises = {kind: cls() for kind, cls in Noise.members.items() if not required(cls)}
    ratios: dict[str, float] = {}
    shown: dict[str, list[str]] = {kind: [] for kind in noises}
    for batch_size, shape in _SHAPES:
        for kind, noise in noises.items():
            stream = NoiseStream(
                noise, Hard(), seed=0, batch_size=batch_size, input_shape=shape, num_classes=10
            )
            best = plain = float("inf")
            for step in range(_DRAWS * config.repeats):
                plain = min(plain, _seconds(partial(torch.randn, batch_size, *shape)))
                best = min(best, _seconds(partial(stream.batch, step)))
            ratios[f"drawing/{kind}/{batch_size}x{'x'.join(map(str, shape))}"] = best / plain
            shown[kind].append(f"{best / plain:.2f}")
    table(
        "Drawing a batch, relative to torch.randn of the same size",
        ("noise", *(f"{size} x {list(shape)}" for size, shape in _SHAPES)),
        [(kind, *row) for kind, row in shown.items()],
    )
    return ratios


def ray_cost(config: BenchmarkConfig) -> dict[str, float]:
    """Steps per second inside ``pretrain`` with one worker, relative to a plain process."""
    overrides = [
        f"duration={{steps: {config.steps}}}",
        f"scaling.cpus_per_worker={config.cpus}",
        "tracking.offline=true",
        "probes.data={}",
    ]
    plain, on_ray = [], []
    for repeat in range(config.repeats):
        with tempfile.TemporaryDirectory() as folder:
            job = load.load(
                PretrainConfig, config.recipe, [*overrides, f"storage={folder}", f"name=r{repeat}"]
            )
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                plain.append(pool.submit(_plain, job, config.cpus).result())
            with session.connect(stage):
                progress = pretrain(job).outcome.progress
            on_ray.append(progress.step / progress.seconds)
    ratio = max(on_ray) / max(plain)
    table(
        f"Steps per second of {config.recipe}, {config.cpus} CPU, best of {config.repeats}",
        ("plain process", "on Ray", "ratio"),
        [(f"{max(plain):.2f}", f"{max(on_ray):.2f}", f"{ratio:.3f}")],
    )
    console.print(f"plain: {_shown(plain)}; on Ray: {_shown(on_ray)}", style="dim")
    return {"ray/steps_per_second": ratio}


def _plain(recipe: Recipe, num_threads: int) -> float:
    """Steps per second of a pretraining in a process without Ray."""
    torch.set_num_threads(num_threads)
    progress = Pretraining(recipe).run().progress
    return progress.step / progress.seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
