import bz2
import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from precalib_ray import cli
from precalib_ray.core.dataset import DatasetInfo
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.data.codec import encode_png
from precalib_ray.data.convert import (
    TORCHVISION_DATASETS,
    convert_digits,
    convert_folder,
    convert_idx,
    convert_parquet,
    convert_torchvision,
)
from precalib_ray.data.embedded import digits
from precalib_ray.data.parquet import read_info, read_split, split_path
from precalib_ray.errors import DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(values):
    values = np.asarray(values, dtype=np.uint8)
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + bytes(values)
    )


def make_idx(directory, *, num_train=40, num_test=8, num_classes=4, zipped=False):
    """A data set in the format of MNIST, 5 × 6 pixels; the arrays it holds."""
    rng = np.random.default_rng(0)
    arrays = {}
    directory.mkdir(parents=True)
    for prefix, num in (("train", num_train), ("t10k", num_test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (num, 5, 6), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(num) % num_classes).astype(np.uint8)
    for name, values in arrays.items():
        if zipped:
            (directory / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (directory / name).write_bytes(idx(values))
    return arrays


def read_all(directory):
    return {path.stem: read_split(path) for path in directory.glob("*.parquet")}


def as_set(*splits):
    return sorted(
        (label, image.numpy().tobytes())
        for split in splits
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    )


def test_digits(tmp_path):
    seen = []
    counts = convert_digits(tmp_path / "digits", on_progress=lambda *at: seen.append(at))
    assert counts == {"train": 1151, "val": 287, "test": 359}
    assert seen[-1] == (1797, 1797)
    for name, expected in digits().items():
        split = read_split(split_path(tmp_path / "digits", name))
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)
        assert split.info == expected.info


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path, zipped):
    arrays = make_idx(tmp_path / "source", zipped=zipped)
    seen = []
    counts = convert_idx(
        tmp_path / "out", source=tmp_path / "source", on_progress=lambda *at: seen.append(at)
    )
    assert counts == {"train": 36, "val": 4, "test": 8}
    assert seen == [(36, 48), (40, 48), (48, 48)]
    splits = read_all(tmp_path / "out")
    expected = sorted(
        (label, image.tobytes())
        for image, label in zip(
            arrays["train-images-idx3-ubyte"],
            arrays["train-labels-idx1-ubyte"].tolist(),
            strict=True,
        )
    )
    assert as_set(splits["train"], splits["val"]) == expected
    assert sorted(splits["val"].labels.tolist()) == [0, 1, 2, 3]
    test_images = torch.from_numpy(arrays["t10k-images-idx3-ubyte"]).unsqueeze(1)
    assert torch.equal(splits["test"].images, test_images)
    info = DatasetInfo.measured(splits["train"].images, class_names=["0", "1", "2", "3"])
    assert splits["train"].info == splits["val"].info == splits["test"].info == info


def test_idx_class_names(tmp_path):
    make_idx(tmp_path / "source")
    names = ["shirt", "shoe", "bag", "coat", "never seen"]
    convert_idx(tmp_path / "out", source=tmp_path / "source", class_names=names)
    assert read_all(tmp_path / "out")["test"].info.class_names == tuple(names)


def test_val_depends_on_the_seed_alone(tmp_path):
    make_idx(tmp_path / "source")

    def val(seed):
        convert_idx(tmp_path / "out", source=tmp_path / "source", val_fraction=0.3, seed=seed)
        return as_set(read_all(tmp_path / "out")["val"])

    assert val(0) == val(0) != val(1)


def test_conversion_replaces_the_data_set(tmp_path):
    make_idx(tmp_path / "source")
    convert_digits(tmp_path / "out")
    counts = convert_idx(tmp_path / "out", source=tmp_path / "source", val_fraction=0)
    assert counts == {"train": 40, "test": 8}
    assert read_all(tmp_path / "out").keys() == {"train", "test"}


def test_failed_conversion_leaves_the_data_set_alone(tmp_path):
    convert_digits(tmp_path / "out")
    with pytest.raises(DataError):
        convert_idx(tmp_path / "out", source=tmp_path / "nowhere")
    assert read_all(tmp_path / "out").keys() == {"train", "val", "test"}


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def spoil(name, change):
    def apply(source):
        path = source / name
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda source: (source / LABELS).unlink(),
            "neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz exists; idx files "
            "there: t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, train-images-idx3-ubyte",
        ),
        (
            spoil(IMAGES, lambda data: b"\x89PNG" + data[4:]),
            "train-images-idx3-ubyte: starts with 89 50 4e 47, idx with 00 00 08 03",
        ),
        (spoil(LABELS, lambda data: b""), "labels-idx1-ubyte: starts with , idx with 00 00 08 01"),
        (
            lambda source: (source / IMAGES).write_bytes((source / LABELS).read_bytes()),
            "starts with 00 00 08 01, idx with 00 00 08 03",
        ),
        (spoil(IMAGES, lambda data: data[:9]), "images-idx3-ubyte: truncated within its header"),
        (
            spoil(IMAGES, lambda data: data[:-1]),
            "images-idx3-ubyte: truncated: 1215 bytes, its header says 1216",
        ),
        (
            spoil(LABELS, lambda data: data + b"\0"),
            "labels-idx1-ubyte: too long: 49 bytes, its header says 48",
        ),
        (spoil(LABELS, lambda data: idx(np.zeros(39))), "labels-idx1-ubyte 39 labels"),
        (spoil(LABELS, lambda data: idx(np.zeros(40))), "at least 2 classes are needed, it has 0"),
        (
            spoil("t10k-labels-idx1-ubyte", lambda data: idx(np.full(8, 4))),
            "label 4 in test is outside 0..3",
        ),
        (
            spoil("t10k-images-idx3-ubyte", lambda data: idx(np.zeros((8, 6, 6)))),
            "train images have shape (1, 5, 6), test images (1, 6, 6)",
        ),
    ],
)
def test_idx_refuses(tmp_path, break_it, message):
    make_idx(tmp_path / "source")
    break_it(tmp_path / "source")
    with pytest.raises(DataError) as caught:
        convert_idx(tmp_path / "out", source=tmp_path / "source")
    assert message in str(caught.value)
    assert str(tmp_path / "source") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_idx_refuses_no_images(tmp_path):
    make_idx(tmp_path / "source", num_test=0)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: no images in it"):
        convert_idx(tmp_path / "out", source=tmp_path / "source")


def test_idx_refuses_labels_beyond_the_names(tmp_path):
    make_idx(tmp_path / "source")
    with pytest.raises(DataError, match=r"label 3 in train is outside 0\.\.1"):
        convert_idx(tmp_path / "out", source=tmp_path / "source", class_names=["a", "b"])


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-20],
        lambda data: b"plain" + data,
        lambda data: data[:10] + b"\xff" + data[11:],
    ],
    ids=["truncated", "not gzip", "bad block"],
)
def test_idx_refuses_damaged_gzip(tmp_path, change):
    make_idx(tmp_path / "source", zipped=True)
    spoil(f"{IMAGES}.gz", change)(tmp_path / "source")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: damaged gzip file: "):
        convert_idx(tmp_path / "out", source=tmp_path / "source")


def test_val_fraction_that_cuts_nothing(tmp_path):
    make_idx(tmp_path / "source", num_train=8)
    with pytest.raises(DataError, match="no class is large enough to give 10% of its train images"):
        convert_idx(tmp_path / "out", source=tmp_path / "source")


def test_val_fraction_bounds(tmp_path):
    make_idx(tmp_path / "source")
    with pytest.raises(ValueError, match="fraction must be at least 0 and below 1, got 1"):
        convert_idx(tmp_path / "out", source=tmp_path / "source", val_fraction=1)


@pytest.mark.skipif(
    not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist (apt-get install)"
)
def test_real_fashion_mnist(tmp_path):
    """Its test split twice, so that the test stays fast."""
    for name in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"):
        for prefix in ("train", "t10k"):
            (tmp_path / f"{prefix}-{name}").symlink_to(FASHION / f"t10k-{name}")
    counts = convert_idx(tmp_path / "out", source=tmp_path)
    assert counts == {"train": 9000, "val": 1000, "test": 10_000}
    val, test = (read_split(split_path(tmp_path / "out", name)) for name in ("val", "test"))
    assert test.info.shape == (1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert torch.bincount(val.labels).tolist() == [100] * 10
    train = read_info(split_path(tmp_path / "out", "train"))
    assert train.mean == pytest.approx([0.287], abs=0.002)
    assert train.std == pytest.approx([0.353], abs=0.002)


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST", "MNIST"])
def test_torchvision_train_flag(tmp_path, name):
    arrays = make_idx(tmp_path / "root" / name / "raw")
    seen = []
    counts = convert_torchvision(
        tmp_path / "out",
        name=name,
        root=tmp_path / "root",
        on_progress=lambda *at: seen.append(at),
    )
    assert counts == {"train": 36, "val": 4, "test": 8}
    assert seen[0] == (1, 96)
    assert seen[-1] == (96, 96)
    test = read_all(tmp_path / "out")["test"]
    assert torch.equal(test.images, torch.from_numpy(arrays["t10k-images-idx3-ubyte"]).unsqueeze(1))
    assert test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert test.info.class_names == tuple(getattr(torchvision.datasets, name).classes)


def test_torchvision_usps_names_its_classes_by_number(tmp_path):
    for file in ("usps.bz2", "usps.t.bz2"):
        lines = "\n".join(
            f"{1 + k % 3} " + " ".join(f"{i + 1}:{k / 15 - 1}" for i in range(256))
            for k in range(30)
        )
        (tmp_path / file).write_bytes(bz2.compress(lines.encode()))
    convert_torchvision(tmp_path / "out", name="USPS", root=tmp_path)
    test = read_all(tmp_path / "out")["test"]
    assert test.info.class_names == ("0", "1", "2")
    assert test.images.shape == (30, 1, 16, 16)


def test_torchvision_split_name(tmp_path, monkeypatch):
    """SVHN, of color; only its checksums are of the real files."""
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *args: True)
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (32, 32, 3, num), dtype=np.uint8)
        for name, num in (("train", 30), ("test", 6))
    }
    for name, values in images.items():
        labels = 1 + np.arange(values.shape[-1])[:, None] % 10  # class 10 stands for digit 0
        savemat(tmp_path / f"{name}_32x32.mat", {"X": values, "y": labels.astype(np.uint8)})
    counts = convert_torchvision(tmp_path / "out", name="SVHN", root=tmp_path, val_fraction=0.3)
    assert counts == {"train": 20, "val": 10, "test": 6}
    test = read_all(tmp_path / "out")["test"]
    assert torch.equal(test.images, torch.from_numpy(images["test"].transpose(3, 2, 0, 1).copy()))
    assert test.labels.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_torchvision_files_absent(tmp_path, name):
    with pytest.raises(DataError) as caught:
        convert_torchvision(tmp_path / "out", name=name, root=tmp_path / "root")
    message = str(caught.value)
    assert message.startswith(f"{name} under {tmp_path / 'root'}: ")
    assert "convert with download=true if the network allows it" in message


def test_torchvision_file_damaged(tmp_path):
    make_idx(tmp_path / "MNIST" / "raw")
    spoil(f"MNIST/raw/{IMAGES}", lambda data: b"\x89PNG" + data[4:])(tmp_path)
    with pytest.raises(DataError, match=f"MNIST under {tmp_path}: .*put intact files there"):
        convert_torchvision(tmp_path / "out", name="MNIST", root=tmp_path)


def test_torchvision_download_fails(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", refuse)
    with pytest.raises(DataError, match="network is unreachable; the download failed"):
        convert_torchvision(tmp_path / "out", name="SVHN", root=tmp_path, download=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar10", "did you mean CIFAR10 or CIFAR100"),
        ("FashonMNIST", "did you mean FashionMNIST"),
        ("CocoDetection", "There are CIFAR10, CIFAR100, FashionMNIST, KMNIST, MNIST, STL10, SVHN"),
    ],
)
def test_torchvision_unknown_name(tmp_path, name, hint):
    with pytest.raises(DataError, match=hint) as caught:
        convert_torchvision(tmp_path / "out", name=name, root=tmp_path)
    assert repr(name) in str(caught.value)


def make_folder(root, *, classes=("cat", "dog"), num=10):
    rng = np.random.default_rng(0)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(num):
            level = 40 + 100 * k + rng.integers(0, 9, (9 + i, 12, 3))
            Image.fromarray(level.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 8, 6)])
def test_folder(tmp_path, shape):
    source = make_folder(tmp_path / "source")
    seen = []
    counts = convert_folder(
        tmp_path / "out", source=source, shape=shape, on_progress=lambda *at: seen.append(at)
    )
    assert counts == {"train": 18, "val": 2}
    assert seen[0] == (1, 40)
    assert seen[-1] == (40, 40)
    splits = read_all(tmp_path / "out")
    assert splits.keys() == {"train", "val"}
    for split in splits.values():
        assert split.info.class_names == ("cat", "dog")
        assert split.images.shape[1:] == shape
        levels = split.images.double().mean(dim=(1, 2, 3))
        assert ((levels > 100).long() == split.labels).all()


def test_folder_with_test(tmp_path):
    counts = convert_folder(
        tmp_path / "out",
        source=make_folder(tmp_path / "train"),
        test_source=make_folder(tmp_path / "test", num=3),
        shape=(3, 8, 8),
        val_fraction=0,
    )
    assert counts == {"train": 20, "test": 6}
    splits = read_all(tmp_path / "out")
    assert splits["test"].labels.tolist() == [0] * 3 + [1] * 3
    assert splits["test"].info == splits["train"].info


def test_folder_refuses(tmp_path):
    source = make_folder(tmp_path / "source")

    def convert(match, error=DataError, **options):
        with pytest.raises(error, match=match):
            convert_folder(tmp_path / "out", **{"source": source, "shape": (3, 8, 8), **options})

    convert("not a folder of class folders with images", source=tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    convert("not a folder of class folders with images", source=tmp_path / "flat")
    (tmp_path / "flat" / "empty").mkdir()
    convert("no image in class empty", source=tmp_path / "flat")
    convert("1 or 3 channels", error=ValueError, shape=(2, 8, 8))
    other = make_folder(tmp_path / "other", classes=("cat", "cow"))
    convert(r"other: its classes differ from those of .*\['cow', 'dog'\]", test_source=other)
    one = make_folder(tmp_path / "one", classes=("cat",))
    convert("at least 2 classes are needed, it has cat", source=one)
    (source / "dog" / "3.png").write_text("no image")
    (source / "cat" / "7.png").write_bytes(b"")
    convert(
        r"cat/7\.png: image cannot be decoded: an empty file\n"
        r".*dog/3\.png: image cannot be decoded: not a PNG, "
    )


def test_folder_with_val(tmp_path):
    counts = convert_folder(
        tmp_path / "out",
        source=make_folder(tmp_path / "train"),
        val_source=make_folder(tmp_path / "val", num=4),
        shape=(3, 8, 8),
    )
    assert counts == {"train": 20, "val": 8}
    other = make_folder(tmp_path / "other", classes=("cat", "cow"))
    with pytest.raises(DataError, match="other: its classes differ"):
        convert_folder(
            tmp_path / "out", source=tmp_path / "train", val_source=other, shape=(3, 8, 8)
        )


def test_folder_says_what_it_leaves_out(tmp_path):
    source = make_folder(tmp_path / "source")
    (source / "cat" / "notes.txt").write_text("mine")
    (source / "dog" / ".DS_Store").write_text("Apple's")
    Image.new("L", (4, 4)).save(source / "cover.png")
    seen = []
    counts = convert_folder(tmp_path / "out", source=source, shape=(3, 8, 8), notify=seen.append)
    assert counts == {"train": 18, "val": 2}
    assert seen == [
        f"{source}: left out: 1 x an image outside the class folders: cover.png",
        f"{source}: left out: 1 x not an image of a known format: cat/notes.txt",
        f"{source}: left out: 1 x hidden: dog/.DS_Store",
    ]


def test_folder_of_mixed_formats_and_modes(tmp_path):
    """Gray, palette, CMYK and a photograph on its side are all what the shape says."""
    source = make_folder(tmp_path / "source", num=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    left = np.zeros((8, 8, 3), dtype=np.uint8)
    left[:, :4] = 255
    Image.fromarray(left).save(source / "cat" / "2.JFIF", format="JPEG", exif=exif, quality=95)
    Image.new("L", (9, 9), 255).save(source / "cat" / "3.gif")
    Image.new("CMYK", (9, 9)).save(source / "cat" / "4.jpeg")
    Image.new("RGB", (9, 9), "white").save(source / "cat" / "no ending", format="PNG")
    convert_folder(tmp_path / "out", source=source, shape=(3, 8, 8), val_fraction=0)
    images = read_all(tmp_path / "out")["train"].images[2:6]
    assert images[0, :, :3].min() > 240  # the left half is the upper one
    assert images[0, :, 5:].max() < 15
    assert images[1:].min() == 255


def parquet_of_others(directory, *, num=20, splits=("train",), sizes=((8, 8),)):
    """Files as Hugging Face writes them: structs, int32, class names in its metadata."""
    directory.mkdir()
    features = {"label": {"names": ["owl", "ant"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for seed, name in enumerate(splits):
        rng = np.random.default_rng(seed)
        cells = []
        for row in range(num):
            pixels = rng.integers(0, 256, (1, *sizes[row % len(sizes)]), dtype=np.uint8)
            cells.append({"bytes": encode_png(pixels), "path": None})
        labels = pa.array([row % 2 for row in range(num)], "int32")
        table = pa.table({"image": cells, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, directory / f"{name}.parquet")
    return directory


def test_parquet_with_its_own_splits(tmp_path):
    source = parquet_of_others(tmp_path / "source", splits=("train", "validation", "test", "more"))
    seen, notes = [], []
    counts = convert_parquet(
        tmp_path / "out",
        source=source,
        form=ParquetForm(),
        on_progress=lambda *at: seen.append(at),
        notify=notes.append,
    )
    assert counts == {"train": 20, "val": 20, "test": 20}
    assert seen[-1] == (60, 60)
    assert notes == [f"{source}: left out: 1 x a file of no split: more.parquet"]
    for name, split in read_all(tmp_path / "out").items():
        original = read_split(source / f"{'validation' if name == 'val' else name}.parquet")
        assert torch.equal(split.images, original.images)
        assert split.info.class_names == ("owl", "ant")
    (source / "val.parquet").touch()
    with pytest.raises(DataError, match=r"val\.parquet and validation\.parquet are the same split"):
        convert_parquet(tmp_path / "out", source=source, form=ParquetForm())


def test_parquet_of_one_file_and_many_sizes(tmp_path):
    source = parquet_of_others(tmp_path / "source", sizes=((8, 8), (5, 9))) / "train.parquet"
    with pytest.raises(
        DataError, match=r"shape \(1, 5, 9\), expected \(1, 8, 8\); convert with a shape"
    ):
        convert_parquet(tmp_path / "out", source=source, form=ParquetForm())
    counts = convert_parquet(
        tmp_path / "out", source=source, form=ParquetForm(), shape=(3, 6, 6), val_fraction=0.2
    )
    assert counts == {"train": 16, "val": 4}
    assert read_all(tmp_path / "out")["train"].info.shape == (3, 6, 6)


def test_parquet_of_four_channels(tmp_path):
    rng = np.random.default_rng(0)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(
        rng.integers(0, 256, (20, 4, 5, 6), dtype=np.uint8)
    )
    pq.write_table(
        pa.table({"image": column, "label": [row % 2 for row in range(20)]}),
        tmp_path / "train.parquet",
    )
    form = ParquetForm(num_classes=2)
    convert_parquet(tmp_path / "out", source=tmp_path / "train.parquet", form=form)
    assert read_all(tmp_path / "out")["val"].info.shape == (4, 5, 6)
    with pytest.raises(DataError, match="image of 4 channels cannot become"):
        convert_parquet(tmp_path / "out", source=tmp_path, form=form, shape=(3, 8, 8))


def test_parquet_does_not_replace_its_source(tmp_path):
    source = parquet_of_others(tmp_path / "source")
    before = (source / "train.parquet").read_bytes()
    for path in (source, source / "train.parquet"):
        with pytest.raises(DataError, match="holds the source, which the result would replace"):
            convert_parquet(source, source=path, form=ParquetForm())
    assert (source / "train.parquet").read_bytes() == before


def test_parquet_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"train\.parquet: no such file"):
        convert_parquet(tmp_path / "out", source=tmp_path / "nowhere", form=ParquetForm())


def test_job(tmp_path, monkeypatch, capsys):
    """The files of another program, by the command line, with bad rows left out."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.parquet"
    cells = [encode_png(np.full((1, 4, 4), 9 * row, np.uint8)) for row in range(8)]
    labels = ["cat", "dog"] * 3 + ["cow", None]
    pq.write_table(pa.table({"img": cells, "kind": labels}), path)
    words = [
        *("convert", "source.kind=parquet", "source.path=mine.parquet", "output=out"),
        *("source.image_column=img", "source.label_column=kind", "val_fraction=0"),
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 3
    assert capsys.readouterr().err.strip() == (
        "convert: mine.parquet: column 'kind' holds strings; set class_names to their order: "
        "[cat, cow, dog]"
    )
    cli.main([*words, "source.class_names=[cat, dog]", "source.on_bad_row=skip"])
    lines = capsys.readouterr().out.splitlines()
    skipped = "skipped: mine.parquet: row group 0, row 6: label 'cow' is none of the 2"
    assert any(line.startswith(skipped) for line in lines)
    assert lines[-1] == "out/train.parquet: 6 images"
    assert read_info(split_path(Path("out"), "train")).class_names == ("cat", "dog")
