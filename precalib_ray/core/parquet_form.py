"""How a Parquet data set is read whose files do not say everything themselves."""

from __future__ import annotations

from dataclasses import dataclass

from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class ParquetForm(Section):
    """The columns of images and labels, and the classes."""

    image_column: str = setting(
        "image", added=True, min_length=1, description="column of the images"
    )
    label_column: str = setting(
        "label", added=True, min_length=1, description="column of the labels"
    )
    num_classes: int | None = setting(
        None, added=True, ge=2, description="K; null: as the files say, or as class_names has"
    )
    class_names: tuple[str, ...] | None = setting(
        None,
        added=True,
        min_length=2,
        description="the classes in the order of their ids, needed where labels are strings; "
        "null: as the files say, or the ids",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_column == self.label_column:
            raise SettingError("label_column", self.label_column, "is the column of the images")
        names = self.class_names
        if names is None:
            return
        if len(set(names)) < len(names):
            raise SettingError("class_names", list(names), "must differ from one another")
        if self.num_classes not in (None, len(names)):
            allowed = f"must be the number of class_names, {len(names)}"
            raise SettingError("num_classes", self.num_classes, allowed)
