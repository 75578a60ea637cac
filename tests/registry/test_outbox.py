"""The files of the outbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from precalib_ray.errors import StorageError
from precalib_ray.registry.outbox import Outbox
from precalib_ray.storage.folder import Folder


@pytest.mark.parametrize("content", ["[{", '{"status": "FINISHED"}', '"text"'])
def test_a_file_that_is_damaged(content: str, tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    folder.write("00000001.json", content)
    with pytest.raises(StorageError, match=r"/00000001\.json: "):
        Outbox(folder)
