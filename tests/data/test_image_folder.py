import os

import pytest
from PIL import Image

from precalib_ray.data.image_folder import check_same_classes, scan
from precalib_ray.errors import DataError


def make(root, *names):
    """A folder with small images under these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path, format="PNG")
    return root


def found(folder):
    """Paths and classes of what is read, and what is left out by reason."""
    samples = [(str(path.relative_to(folder.path)), label) for path, label in folder.samples]
    return samples, dict(folder.left_out)


def test_images_are_found_by_content_at_any_depth(tmp_path):
    make(tmp_path, "cat/b.png", "cat/a.JFIF", "cat/no ending", "dog/x/y/z.dat", "dog/a.txt")
    folder = scan(tmp_path)
    assert folder.classes == ("cat", "dog")
    samples = [("cat/a.JFIF", 0), ("cat/b.png", 0), ("cat/no ending", 0)]
    samples += [("dog/a.txt", 1), ("dog/x/y/z.dat", 1)]
    assert found(folder) == (samples, {})
    assert folder.notes() == []


def test_hidden_entries_are_left_out_and_named(tmp_path):
    make(tmp_path, "cat/a.png", "dog/a.png", ".ipynb_checkpoints/a.png", "__MACOSX/cat/._a.png")
    make(tmp_path, "cat/.ipynb_checkpoints/a.png", "cat/._a.png", "dog/@eaDir/a.png/thumb.jpg")
    samples, left_out = found(scan(tmp_path))
    assert samples == [("cat/a.png", 0), ("dog/a.png", 1)]
    names = [".ipynb_checkpoints/", "__MACOSX/", "cat/._a.png", "cat/.ipynb_checkpoints/"]
    assert left_out == {"hidden": [*names, "dog/@eaDir/"]}


def test_other_files_are_left_out_and_named(tmp_path):
    make(tmp_path, "cat/a.png", "dog/a.png", "cover.png")
    for name in ("README.md", "cat/Thumbs.db", "cat/labels.csv", "dog/b.heic", "dog/c.svg"):
        (tmp_path / name).write_text("BMP is not what this is")
    folder = scan(tmp_path)
    names = ["README.md", "cat/Thumbs.db", "cat/labels.csv", "dog/b.heic", "dog/c.svg"]
    assert found(folder)[1] == {
        "not an image of a known format": names,
        "an image outside the class folders": ["cover.png"],
    }
    for number in range(3):
        (tmp_path / f"{number}.csv").touch()
    line = f"{tmp_path}: left out: 8 x not an image of a known format: 0.csv, 1.csv, 2.csv, "
    assert line + "README.md, cat/Thumbs.db and 3 more" in scan(tmp_path).notes()


def test_a_damaged_image_is_not_left_out(tmp_path):
    """Decoding refuses it by name."""
    make(tmp_path, "cat/a.png", "dog/a.png")
    (tmp_path / "cat" / "empty.JPG").touch()
    (tmp_path / "cat" / "page.png").write_text("<html>")
    (tmp_path / "dog" / "half").write_bytes((tmp_path / "dog" / "a.png").read_bytes()[:20])
    names = [name for name, _ in found(scan(tmp_path))[0]]
    assert names == ["cat/a.png", "cat/empty.JPG", "cat/page.png", "dog/a.png", "dog/half"]


def test_links(tmp_path):
    make(tmp_path, "elsewhere/a.png", "set/dog/a.png")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "set" / "dog" / "self").symlink_to(tmp_path / "set" / "dog" / "self")
    (tmp_path / "set" / "dog" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "here").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "set" / "dog" / "pipe.png")
    samples, left_out = found(scan(tmp_path / "set"))
    assert samples == [("cat/a.png", 0), ("dog/a.png", 1), ("dog/b.png", 1)]
    assert left_out == {
        "a link to a folder that it lies in": ["cat/here/", "dog/up/"],
        "a broken link": ["dog/gone.png", "dog/self"],
        "not a regular file": ["dog/pipe.png"],
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "not a folder of class folders with images: it has no folder"),
        (["a.png", ".hidden/b.png"], "not a folder of class folders with images: it has no folder"),
        (["train/cat/a.png", "test/cat/a.png"], "its folders test, train are splits, not classes"),
        (["Train/cat/a.png"], "its folders Train are splits, not classes"),
        (["Cat/a.png", "cat/b.png", "dog/c.png"], "differ in case alone: Cat and cat"),
        (["caf\u00e9/a.png", "cafe\u0301/b.png"], "differ in case alone: cafe\u0301 and caf\u00e9"),
        (
            ["cat/a.png", "dog/.a.png"],
            "no image in class dog\n.*: left out: 1 x hidden: dog/.a.png",
        ),
    ],
)
def test_refuses(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        scan(make(tmp_path, *names))


def test_a_split_may_be_the_name_of_one_class(tmp_path):
    assert scan(make(tmp_path, "car/a.png", "train/a.png")).classes == ("car", "train")


def test_classes_of_two_splits(tmp_path):
    train = scan(make(tmp_path / "train", "cat/a.png", "dog/a.png"))
    check_same_classes(scan(make(tmp_path / "same", "cat/b.png", "dog/b.png")), train)
    test = scan(make(tmp_path / "test", "cat/a.png", "dog/a.png", "owl/a.png"))
    with pytest.raises(DataError, match=r"test: its classes differ .*\['owl'\]"):
        check_same_classes(test, train)
