"""Seeds as pure functions of their purpose, so that no generator state is ever saved."""

from __future__ import annotations

NOISE, LABELS, DROPOUT, INITIALIZATION, ORDER, AUGMENTATION = range(6)
"""Purpose tags, hashed after the run's seed."""

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers to a 63-bit seed; each prefix chain is a SplitMix64 step.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    state = 0
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1
