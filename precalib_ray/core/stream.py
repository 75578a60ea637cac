"""The endless, stateless sequence of noise batches.

Sample i of step s is a pure function of (seed, s, i): not of world size, rank, batch size,
restarts or earlier draws. Samples are drawn in blocks of fixed size, each from a generator
seeded with (seed, s, block); a rank whose shard begins or ends inside a block draws that block
whole and keeps its part. Blocks make seeding cheap next to drawing, and make distributions that
work on a batch (Fourier transforms, mixtures) bit-identical for every sharding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from precalib_ray.core.labels import Labels
from precalib_ray.core.noise import Noise, Statistics
from precalib_ray.core.seeding import LABELS, NOISE, mix

BLOCK_ELEMENTS = {"cpu": 2**15, "cuda": 2**22}
"""Approximate number of values in a block, by device: enough to make seeding it cheap, few enough
that a block drawn for a part of it costs little. Part of the definition of the stream."""

MAX_BLOCK = 32
"""Maximum number of samples in a block."""


def shard(batch_size: int, rank: int, world_size: int) -> slice:
    """The contiguous part of the global batch that a rank works on; sizes differ by at most 1."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def block_size(input_shape: Sequence[int], device: torch.device) -> int:
    """Samples per generator seed: a power of two, and a function of shape and kind of device."""
    wanted = BLOCK_ELEMENTS[device.type] / math.prod(input_shape)
    return int(min(MAX_BLOCK, 2 ** max(0, math.ceil(math.log2(wanted)))))


class NoiseStream:
    """Batches of noise inputs and targets for one rank, drawn on the device where they are used."""

    def __init__(
        self,
        noise: Noise,
        labels: Labels,
        *,
        seed: int,
        batch_size: int,
        input_shape: Sequence[int],
        num_classes: int,
        statistics: Mapping[str, Statistics] | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """``batch_size`` counts the samples of all ranks; ``statistics`` are those that ``noise``
        needs, by data set.
        """
        self._fill = noise.sampler(statistics)
        self._labels = labels
        self._seed = seed
        self._batch_size = batch_size
        self._num_classes = num_classes
        self._shard = shard(batch_size, rank, world_size)
        self._device = torch.device(device)
        self._generator = torch.Generator(self._device)
        size = block_size(input_shape, self._device)
        start, stop = self._shard.start, self._shard.stop
        self._inputs = torch.empty((stop - start, *input_shape), device=self._device)
        # (block, where it is drawn, where its part goes if it is not drawn in place, that part)
        self._plan: list[tuple[int, Tensor, Tensor | None, slice]] = []
        spare = torch.empty((size, *input_shape), device=self._device)
        for block in range(start // size, -(-stop // size)):
            low, high = max(start, block * size), min(stop, (block + 1) * size)
            place = self._inputs[low - start : high - start]
            kept = slice(low - block * size, high - block * size)
            whole = high - low == size
            self._plan.append((block, place if whole else spare, None if whole else place, kept))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (b, *input_shape) float32 and targets of this rank for a step.

        The inputs lie in memory that the next call overwrites.
        """
        step = self._labels.source_step(step)
        prefix = mix(self._seed, NOISE, step)
        for block, target, place, kept in self._plan:
            self._fill(target, self._generator.manual_seed(mix(prefix, block)))
            if place is not None:
                place.copy_(target[kept])
        self._generator.manual_seed(mix(self._seed, LABELS, step))
        targets = self._labels.draw(
            self._batch_size,
            self._num_classes,
            generator=self._generator,
            device=self._device,
        )
        return self._inputs, targets[self._shard]
