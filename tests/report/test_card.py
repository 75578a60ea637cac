"""The card says what was measured, in any length of panel, and asks nothing of the network."""

from __future__ import annotations

import re
from typing import Any

import pytest

from precalib_ray.config import load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.hardware import Hardware
from precalib_ray.core.loop import Progress
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.probes import Measurement, PanelResult
from precalib_ray.report import card

MODEL = {
    "kind": "torchvision", "name": "resnet18", "num_classes": 10, "input_shape": [3, 32, 32],
    "small_stem": True,
}  # fmt: skip


def measured(deviation: float, probes: list[str]) -> PanelResult:
    return PanelResult(
        [
            Measurement(probe, mode, deviation / (1 + i), class_bias=0.0123, classes=[])
            for i, probe in enumerate(probes)
            for mode in ("batch", "running")
        ]
    )


def write(probes: list[str], *, reason: str = "until_deviation", **changes: Any) -> card.Card:
    config = load.validate(
        PretrainConfig,
        {
            "name": "n", "model": MODEL, "noise": {"kind": "pink", "alpha": 1.5},
            "labels": {"kind": "uniform"}, "head_scale": 0.1, "seed": 3,
            "duration": {"samples": 6400, "until_deviation": 0.004},
        },
    )  # fmt: skip
    progress = Progress[Any](
        step=100, samples=6400, seconds=12.34, evaluation_seconds=0.56, stop_reason=reason
    )
    hardware = Hardware("A <b>fast</b> device", num_workers=2, threads=1)
    arguments: dict[str, Any] = {
        "uri": "models:/resnet18-k10-precalibrated/7",
        "model": config.model,
        "before": measured(0.6543, probes),
        "after": measured(0.0039, probes),
        "held_out": probes[1:2],
        "provenance": card.Provenance(config, load.to_yaml(config), progress, hardware),
        "figures": [("A curve", b"\x89PNG...")],
        "versions": {"torch": "9.9.9"},
        "digests": {"weights (SHA-256)": "0123456789abcdef" * 4},
    }
    return card.write(**arguments | changes)


def test_both_forms_say_what_was_measured_and_how_it_was_made() -> None:
    written = write(["pink", "fashion", "digits"])
    for text in (written.markdown, written.html):
        for said in (
            "resnet18", "3 × 32 × 32", "0.6543", "0.0039", "fashion (held out)", "6,400 samples",
            "12.3 s", "2 × A ", "1 thread", "pink (alpha 1.5); targets: 1/10 for each class",
            "the last layer scaled by 0.1", "seed 3", "more than 0.004 above chance",
            'precalib_ray.load_pretrained("models:/resnet18-k10-precalibrated/7")'.replace(
                '"', "&#34;" if text is written.html else '"'
            ),
            "9.9.9", "0123456789abcdef", "has learned nothing about images",
        ):  # fmt: skip
            assert said in text, said
    assert "pink (held out)" not in written.markdown
    assert "was not reached" not in written.markdown + written.html
    assert "0.0123" in written.html


def test_the_html_is_one_file_and_escapes_what_it_is_given() -> None:
    html = write(["pink"]).html
    assert '<img src="data:image/png;base64,iVBORy4uLg=="' in html
    assert "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "A &lt;b&gt;fast&lt;/b&gt; device" in html


def test_a_missed_target_is_reported() -> None:
    written = write(["pink"], reason="samples")
    assert "**The target deviation of 0.004 was not reached.**" in written.markdown
    assert "target deviation of 0.004 was not reached" in written.html
    assert "Stopped at the limit in samples" in written.markdown


@pytest.mark.parametrize(
    ("num", "has"), [(5, "```yaml"), (15, "| probe-14 | batch |"), (400, "12 highest of 800")]
)
def test_a_description_is_as_long_as_mlflow_takes(num: int, has: str) -> None:
    """First without the recipe, then without most of the table."""
    written = write([f"probe-{i}" for i in range(num)])
    assert len(written.markdown) <= card.MAX_DESCRIPTION
    assert has in written.markdown
    assert ("12 highest" in written.markdown) == (num == 400)
    assert ("```yaml" in written.markdown) == (num == 5)
    assert written.markdown.rstrip().endswith("`0123456789abcdef`.")  # nothing was cut off
    assert "| probe-0 | running | 0.6543 | 0.0039 |" in written.markdown
    assert written.html.count("<td>running</td>") == num


def test_a_checkpoint_of_unknown_origin_has_a_card() -> None:
    model = MLP(num_classes=10, input_shape=(4,))
    written = write(["pink", "blur"], provenance=None, figures=(), held_out=(), model=model)
    for text in (written.markdown, written.html):
        assert "does not say how it was made" in text
        assert "0.6543" in text
        assert "6,400" not in text
        assert "untrained network of this kind" in text


def test_a_network_that_is_far_from_chance_is_not_called_at_chance() -> None:
    far = write(["pink"], after=measured(0.29, ["pink"]))
    near = write(["pink"])
    for text in (far.markdown, far.html):
        assert "above 0.005, the gate's default tolerance" in text.replace("&#39;", "'")
    assert "default tolerance" not in near.markdown + near.html
