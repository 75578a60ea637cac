"""Small pretraining runs, and what child processes of the tests do."""

import contextlib
import os
import sys
from dataclasses import asdict

import torch
import torch.distributed as dist

from precalib_ray.config.base import validate
from precalib_ray.config.jobs import PretrainConfig
from precalib_ray.core.pretraining import Pretraining


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
    return validate(PretrainConfig, content | changes).model_dump()


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

    def look(progress, _metrics):
        if progress.step in (10, 1000):
            sizes.append(resident_mib())

    run = Pretraining(recipe(
        model={"kind": "mlp", "num_classes": 10, "input_shape": [64], "depth": 2, "width": 64},
        duration={"steps": 1000},
        probes={"size": 16, "stop_size": 8, "every": 5, "max_share": 1.0},
        checkpoints={"every_steps": 1},
    ))  # fmt: skip
    run.run(save=lambda p: look(p, {}) or "")
    print(*sizes)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
