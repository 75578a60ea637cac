"""The job ``convert``: a data set to Parquet."""

from __future__ import annotations

from pathlib import Path

from precalib_ray.config import load
from precalib_ray.config.jobs.convert import (
    ConvertConfig,
    FromDigits,
    FromFolder,
    FromIdx,
    FromParquet,
    FromTorchvision,
)
from precalib_ray.data import convert as converters
from precalib_ray.runs.console import Display, console, warn


def convert(config: ConvertConfig) -> dict[str, int]:
    """Write ``train.parquet``, ``val.parquet`` and ``test.parquet``; returns rows by split.

    Raises:
        DataError: the source cannot be read.
    """
    config = load.validate(ConvertConfig, config)
    source, output = config.source, Path(config.output)
    with Display("converting", None) as display:

        def on_progress(done: int, total: int) -> None:
            display.update(done, f"of {total} images")

        fraction, seed = config.val_fraction, config.seed
        if isinstance(source, FromDigits):
            rows = converters.convert_digits(output, on_progress=on_progress)
        elif isinstance(source, FromTorchvision):
            rows = converters.convert_torchvision(
                output, name=source.name, root=Path(source.root), download=source.download,
                on_progress=on_progress, val_fraction=fraction, seed=seed,
            )  # fmt: skip
        elif isinstance(source, FromIdx):
            rows = converters.convert_idx(
                output, source=Path(source.path), class_names=source.class_names,
                on_progress=on_progress, val_fraction=fraction, seed=seed,
            )  # fmt: skip
        elif isinstance(source, FromFolder):
            rows = converters.convert_folder(
                output, source=Path(source.path), shape=source.shape,
                val_source=Path(source.val_path) if source.val_path else None,
                test_source=Path(source.test_path) if source.test_path else None,
                on_progress=on_progress, notify=warn, val_fraction=fraction, seed=seed,
            )  # fmt: skip
        else:
            assert isinstance(source, FromParquet), source
            rows = converters.convert_parquet(
                output, source=Path(source.path), form=source, shape=source.shape,
                on_bad_row=source.on_bad_row, on_progress=on_progress, notify=warn,
                val_fraction=fraction, seed=seed,
            )  # fmt: skip
    for name, count in rows.items():
        console.print(f"{output / name}.parquet: {count:,} images")
    return rows
