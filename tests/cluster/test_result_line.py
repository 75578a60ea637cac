"""How ``submit`` reads the result of a job from its log."""

from __future__ import annotations

import json

import pytest

from precalib_ray import result_line
from precalib_ray.cluster import submission

RESULT = {"job": "pretrain", "model_uri": "models:/m/1"}
TEXT = f"a\n\nb: precalib-result {{}}\nprecalib-result {json.dumps(RESULT)}\nlast"
SHOWN = "a\n\nb: precalib-result {}\nlast"


class Made:
    model_uri = RESULT["model_uri"]


def read(*pieces: str) -> tuple[list[str], dict[str, str]]:
    shown: list[str] = []
    log = submission._Log(shown.append)
    for piece in pieces:
        log.add(piece)
    log.close()
    return shown, log.result


def test_a_job_prints_what_submit_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result_line.emit("pretrain", Made())
    assert capsys.readouterr().out == ""  # unless it is asked for
    monkeypatch.setenv(result_line.VARIABLE, "1")
    result_line.emit("pretrain", Made())
    assert result_line.parse(capsys.readouterr().out) == RESULT


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_result_is_kept_out_of_the_log_however_it_is_cut(size: int) -> None:
    shown, result = read(*(TEXT[at : at + size] for at in range(0, len(TEXT), size)))
    assert "".join(shown) == SHOWN
    assert result == RESULT
    assert "" not in shown


def test_a_log_without_a_result() -> None:
    assert read("a\n", "b") == (["a\n", "b"], {})


def test_a_stream_cut_off_within_the_result() -> None:
    assert read("a\n", 'precalib-result {"mod') == (["a\n"], {})


def test_lines_are_shown_as_they_arrive() -> None:
    shown: list[str] = []
    log = submission._Log(shown.append)
    log.add("a\nb")
    assert shown == ["a\n"]
