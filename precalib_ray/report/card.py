"""The card of a registered version: what it is, how it was made, how to load it, what it is not.

Markdown for the version's description, and one HTML file that asks nothing of the network.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from precalib_ray.config.jobs import TOLERANCE
from precalib_ray.report import snippets

MAX_DESCRIPTION = 5000
"""Characters of a description that MLflow's database takes."""

_MAX_ROWS = 12  # of the Markdown table; the HTML has all
_PLAIN = {"shift": 0.0, "scale": 1.0}  # what need not be said of a noise
_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True)
class Card:
    """The same content twice."""

    markdown: str
    html: str


@dataclass(frozen=True)
class Made:
    """How a checkpoint came to be, where that is known."""

    recipe: Mapping[str, Any]
    """The resolved config of the pretraining job."""
    recipe_yaml: str
    """The same, as a user would write it."""
    progress: Mapping[str, Any]
    hardware: Mapping[str, Any] | None


def write(
    *,
    uri: str,
    spec: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    held_out: Collection[str] = (),
    made: Made | None = None,
    figures: Sequence[tuple[str, bytes]] = (),
    versions: Mapping[str, str],
    digests: Mapping[str, str],
) -> Card:
    """The card of a pre-calibrated checkpoint.

    Args:
        uri: ``models:/NAME/VERSION``.
        spec: the model's.
        before: what the panel measured of the untrained network, as ``PanelResult.to_json`` gives.
        after: and of the checkpoint.
        held_out: probes that the stopping rule did not see.
        made: None for a checkpoint of which nothing but the files is known.
        figures: captions and PNG files.
        versions: of the software that made it, by name.
        digests: of config, weights and data, by name.
    """
    rows = _rows(before, after, held_out)
    content = {
        "uri": uri,
        "title": uri.removeprefix("models:/").replace("/", ", version "),
        "architecture": spec.get("name", "perceptron"),
        "shape": " × ".join(map(str, spec["input_shape"])),
        "num_classes": spec["num_classes"],
        "before": before["deviation"],
        "after": after["deviation"],
        "worst": after["worst"],
        "tolerance": TOLERANCE,
        "far": after["deviation"] > TOLERANCE,
        "rows": rows,
        "num_rows": len(rows),
        "largest": max(1e-9, *(max(row["before"], row["after"]) for row in rows)),
        "made": _made(made) if made else None,
        "missed": _missed(made.recipe, made.progress) if made else None,
        "training": snippets.training(uri, spec),
        "own": snippets.ours(uri),
        "needs": snippets.needs(spec),
        "prediction": snippets.prediction(uri, spec),
        "serving": snippets.serving(uri),
        "request": snippets.request(spec),
        "versions": dict(versions),
        "digests": dict(digests),
        "figures": [
            (caption, "data:image/png;base64," + base64.b64encode(png).decode())
            for caption, png in figures
        ],
    }
    return Card(_markdown(content), _environment.get_template("card.html.j2").render(content))


def in_words(recipe: Mapping[str, Any]) -> str:
    """Noise, labels and optimizer of a recipe, in a sentence."""
    optimizer, labels = recipe["optimizer"], recipe["labels"]
    text = f"{_noise(recipe['noise'])}; {_labels(labels, recipe['model']['num_classes'])}; "
    text += f"{optimizer['kind']} at learning rate {optimizer['lr']:g}"
    if recipe["schedule"]["kind"] != "constant":
        text += f" with {recipe['schedule']['kind']} decay"
    text += f", batches of {recipe['batch_size']}"
    if recipe["head_scale"] != 1:
        text += f"; the last layer scaled by {recipe['head_scale']:g} before the first step"
    if recipe["trainable"] != "all":
        text += f"; trained were only: {_list(recipe['trainable'])}"
    return text + f"; seed {recipe['seed']}"


def _markdown(content: Mapping[str, Any]) -> str:
    """The description, with as much as a description may hold."""
    template = _environment.get_template("card.md.j2")
    worst = sorted(content["rows"], key=lambda row: row["after"], reverse=True)[:_MAX_ROWS]
    short = {**content, "rows": [row for row in content["rows"] if row in worst]}
    texts = [
        template.render(content, brief=False),
        template.render(content, brief=True),
        template.render(short, brief=True),
    ]
    return next((text for text in texts if len(text) <= MAX_DESCRIPTION), texts[-1])[
        :MAX_DESCRIPTION
    ]


def _rows(
    before: Mapping[str, Any], after: Mapping[str, Any], held_out: Collection[str]
) -> list[dict[str, Any]]:
    untrained = {(m["probe"], m["mode"]): m["deviation"] for m in before["measurements"]}
    return [
        {
            "probe": m["probe"],
            "held_out": m["probe"] in held_out,
            "mode": m["mode"],
            "before": untrained[m["probe"], m["mode"]],
            "after": m["deviation"],
            "class_bias": m["class_bias"],
        }
        for m in after["measurements"]
    ]


def _made(made: Made) -> dict[str, Any]:
    progress = made.progress
    return {
        "words": in_words(made.recipe),
        "stop": _stop(made.recipe, progress),
        "recipe_yaml": made.recipe_yaml.strip(),
        "steps": progress["step"],
        "samples": progress["samples"],
        "seconds": progress["seconds"],
        "probe_seconds": progress["evaluation_seconds"],
        "hardware": _hardware(made.hardware),
    }


def _noise(spec: Mapping[str, Any]) -> str:
    if spec["kind"] == "mixture":
        weights = {part["weight"] for part in spec["parts"]}
        parts = [
            _named(part["noise"]) + ("" if len(weights) == 1 else f" (weight {part['weight']:g})")
            for part in spec["parts"]
        ]
        return f"noise: a mixture of {_list(parts)}"
    return f"noise: {_named(spec)}"


def _named(spec: Mapping[str, Any]) -> str:
    said = [
        f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in spec.items()
        if key != "kind" and _PLAIN.get(key) != value
    ]
    return str(spec["kind"]).replace("_", " ") + (f" ({', '.join(said)})" if said else "")


def _labels(spec: Mapping[str, Any], num_classes: int) -> str:
    if spec["kind"] == "uniform":
        return f"targets: 1/{num_classes} for each class"
    return f"labels: {_named(spec)}"


def _list(items: str | Sequence[str]) -> str:
    if isinstance(items, str):
        return items
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _stop(recipe: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    target = recipe["duration"]["until_deviation"]
    if progress["stop_reason"] == "until_deviation":
        return f"stopped once no probe that it may see was more than {target:g} above chance"
    return f"stopped by the limit in {progress['stop_reason']}"


def _missed(recipe: Mapping[str, Any], progress: Mapping[str, Any]) -> float | None:
    """The deviation that was asked for and not reached."""
    target: float | None = recipe["duration"]["until_deviation"]
    return None if progress["stop_reason"] == "until_deviation" else target


def _hardware(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "not recorded"
    threads = ""
    if found["threads"]:
        threads = f", {found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    workers = f"{found['num_workers']} × " if found["num_workers"] > 1 else ""
    return f"{workers}{found['device']}{threads}"
