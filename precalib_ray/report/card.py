"""The card of a registered version: what it is, how it was made, how to load it, its limits.

Markdown for the version's description, and one HTML file that loads nothing from the network.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from precalib_ray.config.sections import TOLERANCE
from precalib_ray.core.hardware import Hardware
from precalib_ray.core.models import Model
from precalib_ray.core.probes import PanelResult
from precalib_ray.core.progress import Progress
from precalib_ray.core.recipe import Recipe
from precalib_ray.report import snippets
from precalib_ray.report.wording import in_words

__all__ = ["MAX_DESCRIPTION", "Card", "Provenance", "in_words", "write"]

MAX_DESCRIPTION = 5000
"""Characters of a description that MLflow's database stores."""

_MAX_ROWS = 12  # of the Markdown table; the HTML has all
_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True)
class Card:
    """The same content in two formats."""

    markdown: str
    html: str


@dataclass(frozen=True)
class Provenance:
    """How a checkpoint was made."""

    recipe: Recipe
    recipe_yaml: str
    """The recipe as a user would write it."""
    progress: Progress[Any]
    hardware: Hardware | None

    @property
    def in_words(self) -> str:
        """Noise, labels and optimizer, in a sentence."""
        return in_words(self.recipe)

    @property
    def stop(self) -> str:
        """The reason for stopping, in words."""
        if self.progress.stop_reason == "until_deviation":
            target = self.recipe.duration.until_deviation
            assert target is not None, "it was reached"
            rule = "stopped once no probe of the stopping rule was more than"
            return f"{rule} {target:g} above chance"
        return f"stopped at the limit in {self.progress.stop_reason}"

    @property
    def missed_target(self) -> float | None:
        """The target deviation, if it was not reached."""
        reached = self.progress.stop_reason == "until_deviation"
        return None if reached else self.recipe.duration.until_deviation

    @property
    def hardware_in_words(self) -> str:
        """Workers, device and threads, in words."""
        if self.hardware is None:
            return "not recorded"
        found, threads = self.hardware, ""
        if found.threads:
            threads = f", {found.threads} thread{'s' if found.threads > 1 else ''}"
        workers = f"{found.num_workers} × " if found.num_workers > 1 else ""
        return f"{workers}{found.device}{threads}"


@dataclass(frozen=True)
class Row:
    """One probe in one BatchNorm mode."""

    probe: str
    held_out: bool
    mode: str
    before: float
    after: float
    class_bias: float


def write(
    *,
    uri: str,
    model: Model,
    before: PanelResult,
    after: PanelResult,
    held_out: Collection[str] = (),
    provenance: Provenance | None = None,
    figures: Sequence[tuple[str, bytes]] = (),
    versions: Mapping[str, str],
    digests: Mapping[str, str],
) -> Card:
    """The card of a pre-calibrated checkpoint.

    Args:
        uri: ``models:/NAME/VERSION``.
        model: settings of the model.
        before: the panel's result for the untrained network.
        after: the panel's result for the checkpoint.
        held_out: probes that the stopping rule did not see.
        provenance: None for a checkpoint with unknown provenance.
        figures: captions and PNG files.
        versions: versions of the software that made it, by name.
        digests: digests of config, weights and data, by name.
    """
    untrained = before.deviations
    rows = [
        Row(m.probe, m.probe in held_out, m.mode, untrained[m.key], m.deviation, m.class_bias)
        for m in after.measurements
    ]
    content = {
        "uri": uri,
        "title": uri.removeprefix("models:/").replace("/", ", version "),
        "model": model,
        "shape": " × ".join(map(str, model.input_shape)),
        "before": before,
        "after": after,
        "tolerance": TOLERANCE,
        "above_tolerance": after.deviation > TOLERANCE,
        "rows": rows,
        "num_rows": len(rows),
        "largest": max(1e-9, *(max(row.before, row.after) for row in rows)),
        "provenance": provenance,
        "with_package": snippets.with_package(uri),
        "training": snippets.training(uri, model),
        "requires": model.snippet().requires,
        "prediction": snippets.prediction(uri, model),
        "serving": snippets.serving(uri),
        "request": snippets.request(model),
        "versions": dict(versions),
        "digests": dict(digests),
        "figures": [
            (caption, "data:image/png;base64," + base64.b64encode(png).decode())
            for caption, png in figures
        ],
    }
    return Card(_markdown(content, rows), _environment.get_template("card.html.j2").render(content))


def _markdown(content: Mapping[str, Any], rows: list[Row]) -> str:
    """The description, shortened to ``MAX_DESCRIPTION``."""
    template = _environment.get_template("card.md.j2")
    worst = sorted(rows, key=lambda row: row.after, reverse=True)[:_MAX_ROWS]
    short = {**content, "rows": [row for row in rows if row in worst]}
    texts = [
        template.render(content, brief=False),
        template.render(content, brief=True),
        template.render(short, brief=True),
    ]
    return next((text for text in texts if len(text) <= MAX_DESCRIPTION), texts[-1])[
        :MAX_DESCRIPTION
    ]
