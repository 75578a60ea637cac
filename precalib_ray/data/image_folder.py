"""Images in one folder per class: which files are images of which class, and what is left out."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from precalib_ray.data.codec import ENDINGS, SIGNATURE_BYTES, has_signature
from precalib_ray.errors import DataError

_NAMED = 5
"""Entries that a message names of each kind."""

_OF_SYSTEMS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that archives, file servers and operating systems leave behind."""

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})

_HIDDEN = "hidden"
_NO_IMAGE = "not an image of a known format"
_NO_CLASS = "an image outside the class folders"
_BROKEN = "a broken link"
_LOOP = "a link to a folder that it lies in"
_SPECIAL = "not a regular file"


@dataclass(frozen=True)
class ImageFolder:
    """Images by class; the class ids follow the sorted names."""

    path: Path
    classes: tuple[str, ...]
    samples: list[tuple[Path, int]] = field(default_factory=list)
    """Files with class ids, in the order of their paths."""
    left_out: Mapping[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Paths relative to ``path``, by the reason."""

    def notes(self) -> list[str]:
        """What is left out, counted and named: a line for each reason."""
        return [
            f"{self.path}: left out: {len(names)} x {reason}: {named(names)}"
            for reason, names in self.left_out.items()
        ]


def scan(path: Path) -> ImageFolder:
    """Find the images under ``path/CLASS``, at any depth.

    A file is an image if its first bytes say so. One whose name alone says so is listed too: it is
    damaged, or empty, and decoding refuses it.

    Raises:
        DataError: there is no folder of class folders, the folders are splits, two class names
            differ in case alone, or a class has no image.
    """
    try:
        entries = sorted(path.iterdir())
        folders = [e for e in entries if e.is_dir() and not _is_hidden(e)]
        found = ImageFolder(path, tuple(folder.name for folder in folders))
        _check_names(found)
        for entry in entries:
            if entry not in folders and _is_image(found, entry):
                found.left_out[_NO_CLASS].append(entry.name)
        for class_id, folder in enumerate(folders):
            files = sorted(_images(found, folder, [path]), key=lambda f: (str(f.parent), f.name))
            found.samples.extend((file, class_id) for file in files)
    except OSError as error:
        raise DataError(f"{path}: not a folder of class folders with images: {error}") from error
    present = {class_id for _, class_id in found.samples}
    empty = [name for class_id, name in enumerate(found.classes) if class_id not in present]
    if empty:
        raise DataError("\n".join([f"{path}: no image in class {named(empty)}", *found.notes()]))
    return found


def named(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def check_same_classes(folder: ImageFolder, train: ImageFolder) -> None:
    """Refuse a split whose classes are not those of train; raises DataError."""
    if folder.classes != train.classes:
        odd = sorted(set(folder.classes) ^ set(train.classes))
        raise DataError(f"{folder.path}: its classes differ from those of {train.path}: {odd}")


def _images(found: ImageFolder, folder: Path, above: list[Path]) -> Iterator[Path]:
    """Image files under a folder; ``above`` holds the folders that it was reached through."""
    if any(folder.samefile(other) for other in above):
        found.left_out[_LOOP].append(f"{folder.relative_to(found.path)}/")
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _is_hidden(entry):
            yield from _images(found, entry, [*above, folder])
        elif _is_image(found, entry):
            yield entry


def _is_image(found: ImageFolder, entry: Path) -> bool:
    """Whether an entry is an image; notes why not."""
    reason = _reason(entry)
    if reason is not None:
        name = str(entry.relative_to(found.path)) + ("/" if entry.is_dir() else "")
        found.left_out[reason].append(name)
    return reason is None


def _reason(entry: Path) -> str | None:
    """Why an entry is left out; None for an image."""
    if _is_hidden(entry):
        return _HIDDEN
    if not entry.exists():
        return _BROKEN
    if not entry.is_file():
        return _SPECIAL
    with entry.open("rb") as file:
        is_image = has_signature(file.read(SIGNATURE_BYTES))
    return None if is_image or entry.suffix.lower() in ENDINGS else _NO_IMAGE


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in _OF_SYSTEMS


def _check_names(found: ImageFolder) -> None:
    names = found.classes
    if not names:
        raise DataError(
            f"{found.path}: not a folder of class folders with images: it has no folder"
        )
    if {name.lower() for name in names} <= _SPLITS:
        raise DataError(
            f"{found.path}: its folders {', '.join(names)} are splits, not classes; convert "
            "one of them, with the others as val_path and test_path"
        )
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    alike = [" and ".join(same) for same in by_key.values() if len(same) > 1]
    if alike:
        raise DataError(
            f"{found.path}: class folders that differ in case alone: {', '.join(alike)}"
        )
