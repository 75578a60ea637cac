"""Small engines and pretraining runs, and what child processes of the tests do."""

import contextlib
import os
import sys
from dataclasses import asdict

import torch
import torch.distributed as dist

from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.load import validate
from precalib_ray.core.engine import Compute, Engine, Optimization
from precalib_ray.core.head import select_trainable
from precalib_ray.core.loop import Host
from precalib_ray.core.losses import Loss
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.optimizers import Optimizer, Schedule
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.core.spec import from_plain

K = 4


def make_engine(
    model=None, *, optimizer=None, loss=None, schedule=None, num_steps=None, trainable="all",
    **compute,
):  # fmt: skip
    """An engine of a tiny perceptron on 6 numbers, or of another model of K classes."""
    if model is None:
        architecture = MLP(num_classes=K, input_shape=(6,), depth=2, width=16)
        model = architecture.build(seed=0)
        select_trainable(model, architecture, trainable)
    settings = Optimization(
        optimizer=from_plain(Optimizer, optimizer or {"kind": "sgd", "lr": 0.1}),
        loss=from_plain(Loss, loss or {"kind": "cross_entropy"}),
        schedule=from_plain(Schedule, schedule or {}),
        trainable=trainable,
        compute=Compute(**compute),
    )
    return Engine(model, settings, num_steps=num_steps)


def batches(step, size=8, shape=(6,)):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(size, *shape, generator=generator)
    return inputs, torch.randint(K, (size,), generator=generator)


def recipe(**changes):
    """A recipe of a tiny perceptron, with the given sections replaced."""
    content = {
        "name": "test",
        "model": {
            "kind": "mlp", "num_classes": 4, "input_shape": [3, 2, 2], "depth": 2, "width": 24
        },
        "noise": {"kind": "gaussian"},
        "labels": {"kind": "balanced"},
        "batch_size": 16,
        "optimizer": {"kind": "adam", "lr": 0.01},
        "duration": {"steps": 20},
        "probes": {"size": 16, "stop_size": 8, "every": 5, "max_share": 1.0},
    }  # fmt: skip
    return validate(PretrainConfig, content | changes)


class Callbacks(Host):
    """A host whose methods are given as functions."""

    def __init__(self, **methods):
        vars(self).update(methods)


def weights(run):
    return {key: value.clone() for key, value in run.engine.model.state_dict().items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def comparable(progress):
    """Progress without what a clock or a folder decides."""
    ignored = ("seconds", "evaluation_seconds", "last_good")
    return {key: value for key, value in asdict(progress).items() if key not in ignored}


def train_as_rank(rank, world_size, rendezvous, changes, out):
    """Train as one of several processes; rank 0 saves weights and progress."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    try:
        run = Pretraining(recipe(**changes))
        run.run()
        if rank == 0:
            torch.save({"weights": weights(run), "progress": comparable(run.progress)}, out)
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def print_memory():
    """Resident size after 10 and after 1,000 steps."""
    sizes = []

    def save(progress):
        if progress.step in (10, 1000):
            sizes.append(resident_mib())
        return ""

    run = Pretraining(recipe(
        model={"kind": "mlp", "num_classes": 10, "input_shape": [64], "depth": 2, "width": 64},
        duration={"steps": 1000},
        probes={"size": 16, "stop_size": 8, "every": 5, "max_share": 1.0},
        checkpoints={"every_steps": 1},
    ))  # fmt: skip
    run.run(Callbacks(save=save))
    print(*sizes)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
