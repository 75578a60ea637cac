"""A recipe in words. Noises and label schemes are worded from their kind and fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from precalib_ray.core.labels import Labels, Uniform
from precalib_ray.core.noise import Noise
from precalib_ray.core.noise.mixture import Mixture
from precalib_ray.core.recipe import Recipe
from precalib_ray.core.spec import Family, default

_COMMON = {field.name for field in dataclasses.fields(Noise)}
"""Fields that every noise has; shown only where they differ from their defaults."""


def in_words(recipe: Recipe) -> str:
    """Noise, labels and optimizer of a recipe, in a sentence."""
    optimizer = recipe.optimizer
    text = f"noise: {_named(recipe.noise)}; {_targets(recipe.labels, recipe.model.num_classes)}; "
    text += f"{optimizer.kind} at learning rate {optimizer.lr:g}"
    if recipe.schedule.kind != "constant":
        text += f" with {recipe.schedule.kind} decay"
    text += f", batches of {recipe.batch_size}"
    if recipe.head_scale != 1:
        text += f"; the last layer scaled by {recipe.head_scale:g} before the first step"
    if recipe.trainable != "all":
        text += f"; only {_list(recipe.trainable)} trained"
    return text + f"; seed {recipe.seed}"


def _targets(labels: Labels, num_classes: int) -> str:
    if isinstance(labels, Uniform):
        return f"targets: 1/{num_classes} for each class"
    return f"labels: {_named(labels)}"


def _named(member: Family) -> str:
    """Kind and fields: ``pink (alpha 1.5)``."""
    if isinstance(member, Mixture):
        return f"a mixture of {_list(_parts(member))}"
    shown = [
        f"{field.name} {_value(getattr(member, field.name))}"
        for field in dataclasses.fields(member)  # type: ignore[arg-type]
        if field.name not in _COMMON or _is_changed(member, field)
    ]
    return member.kind.replace("_", " ") + (f" ({', '.join(shown)})" if shown else "")


def _parts(mixture: Mixture) -> list[str]:
    equal = len({part.weight for part in mixture.parts}) == 1
    return [
        _named(part.noise) + ("" if equal else f" (weight {part.weight:g})")
        for part in mixture.parts
    ]


def _is_changed(member: Family, field: dataclasses.Field[Any]) -> bool:
    return field.name != "kind" and getattr(member, field.name) != default(field)


def _value(value: Any) -> str:
    if isinstance(value, Family):
        return _named(value)
    return f"{value:g}" if isinstance(value, int | float) else f"{value}"


def _list(items: str | Sequence[str]) -> str:
    if isinstance(items, str):
        return items
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
