"""Home folders and environment variables in paths."""

from __future__ import annotations

import pytest

from precalib_ray.core.noise.matched import Matched
from precalib_ray.core.paths import expand
from precalib_ray.errors import SettingError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("BUCKET", "b")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NESTED", "/mnt/a$BUCKET")
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "/home/u"),
        ("~/runs", "/home/u/runs"),
        ("~root", "/root"),
        ("$HOME/runs", "/home/u/runs"),
        ("${HOME}2/$BUCKET", "/home/u2/b"),
        ("s3://$BUCKET/runs", "s3://b/runs"),
        ("sqlite:///~/m.db", "sqlite:////home/u/m.db"),
        ("sqlite+pysqlite:///~/m.db?mode=ro", "sqlite+pysqlite:////home/u/m.db?mode=ro"),
        ("sqlite://~/m.db", "sqlite:////home/u/m.db"),
        ("file:///~/runs", "file:///home/u/runs"),
        ("file://~/runs", "file:///home/u/runs"),
    ],
)
def test_expanded(text: str, expanded: str) -> None:
    assert expand(text) == expanded
    assert expand(expanded) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "runs",
        "/a b/#c",
        "./~",
        "a/~/b",
        "s3://b/~x/",
        "cost$",
        "a$1",
        "sqlite:///m.db",
        "a~",
        "{x}",
    ],
)
def test_as_it_stands(text: str) -> None:
    assert expand(text) == text


@pytest.mark.parametrize(
    ("text", "part", "told"),
    [
        ("", "", "must not be empty"),
        ("a\0b", "a\0b", "must not hold a NUL character"),
        ("$NOT_SET/x", "$NOT_SET", "is not set, or empty"),
        ("s3://k:secret@${NOT_SET}", "${NOT_SET}", "is not set, or empty"),
        ("$EMPTY/x", "$EMPTY", "is not set, or empty"),
        ("$NESTED/x", "$BUCKET", "must not come from the value of another variable"),
        ("${HOME:-x}", "${HOME:-x}", r"only \$NAME and \${NAME} are expanded"),
        ("${", "${", "only"),
        ("runs-$(date)", "$(", "only"),
        ("$$HOME", "$$", "only"),
        ("~nobody-here/x", "~nobody-here", r"no such home folder; write \./~nobody-here for"),
    ],
)
def test_refused(text: str, part: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        expand(text)
    assert error.value.args[0] == part


def test_a_settings_class_expands_its_paths() -> None:
    assert Matched(data="~/data").data == "/home/u/data"
    with pytest.raises(SettingError) as error:
        Matched(data="$NOT_SET")
    assert (error.value.problem.path, error.value.problem.value) == ("data", "$NOT_SET")
