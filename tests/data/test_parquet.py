import hashlib
import json
import re
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precalib_ray.core.dataset import DatasetInfo, mean_and_std
from precalib_ray.core.parquet_form import ParquetForm
from precalib_ray.data import parquet
from precalib_ray.data.codec import encode_png
from precalib_ray.data.parquet import (
    METADATA_KEY,
    fingerprint,
    read_dataset,
    read_images,
    read_info,
    read_split,
    split_path,
    write_split,
)
from precalib_ray.errors import DataError


def make(num=6, shape=(1, 8, 8), num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num) % num_classes
    names = [f"class {k}" for k in range(num_classes)]
    return images, labels, DatasetInfo.measured(images, class_names=names)


TWO = ParquetForm(num_classes=2)


def pngs(images):
    return [encode_png(image.numpy()) for image in images]


def write_table(path, columns, *, info=None, rows_per_group=None):
    """A Parquet file as another program would write it."""
    table = pa.table(columns)
    if info is not None:
        table = table.replace_schema_metadata({METADATA_KEY: info.to_json()})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_split(path, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 12),
    storage=st.sampled_from(
        [("png", 1), ("png", 3), ("tensor", 1), ("tensor", 2), ("tensor", 3), ("tensor", 4)]
    ),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_round_trip(tmp_path_factory, num, storage, size, seed):
    encoding, channels = storage
    images, labels, info = make(num, (channels, *size), seed=seed)
    path = tmp_path_factory.mktemp("round") / "train.parquet"
    write_split(path, images, labels, info, encoding=encoding)
    split = read_split(path)
    assert torch.equal(split.images, images)
    assert split.images.dtype == torch.uint8
    assert torch.equal(split.labels, labels)
    assert split.labels.dtype == torch.int64
    assert split.info == info == read_info(path)
    assert split.skipped == ()


@pytest.mark.parametrize("encoding", ["png", "tensor"])
def test_many_row_groups(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 4)
    images, labels, info = make(10)
    path = tmp_path / "train.parquet"
    written = []
    write_split(path, images, labels, info, encoding=encoding, on_rows=written.append)
    assert written == [4, 4, 2]
    assert pq.ParquetFile(path).num_row_groups == 3
    split = read_split(path)
    assert torch.equal(split.images, images)
    assert torch.equal(split.labels, labels)


@pytest.mark.parametrize("limit", [1, 4, 5, 12])
def test_reads_no_further_than_asked(tmp_path, limit):
    """Damage beyond the limit is not come to, and bad rows before it do not count."""
    images, labels, info = make(num=12)
    cells = [*pngs(images)[:5], b"no image", *pngs(images)[6:]]
    path = tmp_path / "train.parquet"
    write_table(path, {"image": cells, "label": labels.tolist()}, info=info, rows_per_group=4)
    if limit > 5:
        assert "row group 1, row 1" in refusal(path, limit=limit)
        split = read_split(path, limit=6, on_bad_row="skip")
        assert torch.equal(split.images, torch.cat([images[:5], images[6:7]]))
    else:
        assert torch.equal(read_split(path, limit=limit).images, images[:limit])


def test_strided_images_are_written_as_they_look(tmp_path):
    images, labels, info = make(4, (3, 5, 5))
    strided = images.to(memory_format=torch.channels_last)
    for encoding in ("png", "tensor"):
        write_split(tmp_path / "train.parquet", strided, labels, info, encoding=encoding)
        assert torch.equal(read_split(tmp_path / "train.parquet").images, images)


def test_same_data_same_fingerprint(tmp_path):
    images, labels, info = make()
    one, two, three = (tmp_path / f"{name}.parquet" for name in ("one", "two", "three"))
    write_split(one, images, labels, info)
    write_split(two, images, labels, info)
    write_split(three, images, labels.flip(0), info)
    assert fingerprint(one) == hashlib.sha256(one.read_bytes()).hexdigest()
    assert fingerprint(one) == fingerprint(two) != fingerprint(three)


def test_reader_of_the_old_split_is_not_disturbed(tmp_path):
    images, labels, info = make()
    path = tmp_path / "train.parquet"
    write_split(path, images, labels, info)
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_split(path, images.flip(0), labels, info)
        assert reader.read() == before != path.read_bytes()


def test_failed_write_leaves_the_old_split_alone(tmp_path):
    images, labels, info = make()
    path = tmp_path / "deep" / "train.parquet"
    write_split(path, images, labels, info)
    before = fingerprint(path)

    def fail(num):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_split(path, images.flip(0), labels, info, on_rows=fail)
    assert fingerprint(path) == before
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, y, f: (i.float(), y, f), "images must be uint8"),
        (lambda i, y, f: (i[:, :, 1:], y, f), r"shape \(N, 1, 8, 8\), got .* \(6, 1, 7, 8\)"),
        (lambda i, y, f: (i, y[1:], f), r"labels must be int64 of shape \(6,\)"),
        (lambda i, y, f: (i, y.float(), f), "labels must be int64"),
        (lambda i, y, f: (i, y + 1, f), r"labels must be in 0\.\.2"),
        (lambda i, y, f: (i, y - 1, f), r"labels must be in 0\.\.2"),
        (lambda i, y, f: (i[:0], y[:0], f), "at least one"),
    ],
)
def test_write_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_split(tmp_path / "train.parquet", *change(*make()))
    assert not list(tmp_path.iterdir())


def test_png_refuses_two_channels(tmp_path):
    with pytest.raises(ValueError, match="PNG needs 1 or 3 channels, got 2; use encoding='tensor'"):
        write_split(tmp_path / "train.parquet", *make(shape=(2, 4, 4)))


@pytest.mark.parametrize("place", ["file", "file/deeper", "x" * 300])
def test_a_place_that_cannot_be_written_or_read(tmp_path, place):
    (tmp_path / "file").touch()
    path = split_path(tmp_path / place, "train")
    with pytest.raises(DataError, match=r"train\.parquet: cannot be written: "):
        write_split(path, *make())
    for read in (read_split, read_info, fingerprint):
        with pytest.raises(DataError, match=r"train\.parquet"):
            read(path)


@pytest.mark.parametrize("read", [read_split, read_info, fingerprint])
def test_missing_file(tmp_path, read):
    with pytest.raises(DataError, match="no such file; there is no Parquet file in"):
        read(split_path(tmp_path / "nowhere", "train"))
    for split in ("train", "val"):
        write_split(split_path(tmp_path, split), *make())
    with pytest.raises(DataError, match=r"no such file; .* has train\.parquet, val\.parquet$"):
        read(split_path(tmp_path, "test"))
    with pytest.raises(DataError, match=r"has train\.parquet, .* \(did you mean val\.parquet\?\)"):
        read(split_path(tmp_path, "vali"))
    with pytest.raises(DataError, match=r"is a directory; .* has train\.parquet, val\.parquet$"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_split, read_info])
@pytest.mark.parametrize("kind", ["text", "empty", "truncated"])
def test_not_parquet(tmp_path, read, kind):
    path = tmp_path / "train.parquet"
    write_split(path, *make())
    whole = path.read_bytes()
    path.write_bytes({"text": b"image,label", "empty": b"", "truncated": whole[:-20]}[kind])
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: not a readable Parquet file"):
        read(path)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_flipped_bit_is_noticed(tmp_path, monkeypatch, on_bad_row):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 3)
    images, labels, info = make(num=6, shape=(1, 16, 16))
    path = tmp_path / "train.parquet"
    write_split(path, images, labels, info, encoding="tensor")
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 300] ^= 4
    path.write_bytes(content)
    assert f"{path}: row group 1 cannot be read: " in refusal(path, on_bad_row=on_bad_row)


def test_missing_column(tmp_path):
    path = write_table(tmp_path / "a.parquet", {"img": [b""], "label": [0]})
    assert refusal(path, form=TWO) == (
        f"{path}: no column 'image'; it has img, label: set image_column, or convert the data set"
    )
    path = write_table(tmp_path / "a.parquet", {"image": [b""], "target": [0]})
    assert refusal(path, form=TWO) == (
        f"{path}: no column 'label'; it has image, target: set label_column, or convert the data "
        "set"
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a"]), "is string"),
        (pa.array([[1, 2]]), "is list<"),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 1, 2, 2), np.float32)),
            "value_type=float",
        ),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 2), np.uint8)), "[2,2]"),
    ],
)
def test_wrong_image_type(tmp_path, column, message):
    path = write_table(tmp_path / "a.parquet", {"image": column, "label": [0]})
    text = refusal(path, form=TWO)
    assert text.startswith(f"{path}: column 'image' must hold image files as binary or as a struct")
    assert message in text


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.timestamp("s"), pa.binary(), pa.null(), pa.decimal128(3)]
)
def test_wrong_label_type(tmp_path, kind):
    path = write_table(tmp_path / "a.parquet", {"image": [b""], "label": pa.array([None], kind)})
    assert refusal(path, form=TWO).startswith(
        f"{path}: column 'label' must hold integers, whole floats, booleans or strings, is "
    )


BAD_ROWS = {
    "null label": (lambda image: (image, None), "label is null"),
    "null image": (lambda image: (None, 0), "image is null"),
    "label too large": (lambda image: (image, 4), "label 4 is outside 0..2"),
    "negative label": (
        lambda image: (image, -1),
        "label -1 is outside 0..2 (in data sets of Hugging Face, -1 stands for no label)",
    ),
    "label from 1": (lambda image: (image, 3), "label 3 is outside 0..2 (ids count from 0)"),
    "no image": (lambda image: (b"?", 0), "image cannot be decoded: not a PNG, JPEG, GIF,"),
    "truncated image": (lambda image: (image[:-30], 0), "image cannot be decoded: "),
    "other size": (
        lambda image: (encode_png(np.zeros((1, 9, 8), np.uint8)), 0),
        "image has shape (1, 9, 8), expected (1, 8, 8)",
    ),
    "color": (
        lambda image: (encode_png(np.zeros((3, 8, 8), np.uint8)), 0),
        "image has shape (3, 8, 8), expected (1, 8, 8)",
    ),
}


@pytest.mark.parametrize("has_metadata", [True, False])
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_bad_row(tmp_path, bad, has_metadata):
    spoil, message = BAD_ROWS[bad]
    images, labels, info = make()
    cells, numbers = pngs(images), labels.tolist()
    cells[4], numbers[4] = spoil(cells[4])
    path = write_table(
        tmp_path / "train.parquet",
        {"image": pa.array(cells, pa.binary()), "label": pa.array(numbers, pa.int64())},
        info=info if has_metadata else None,
        rows_per_group=3,
    )
    where = f"{path}: row group 1, row 1: "
    assert refusal(path, form=ParquetForm(num_classes=3)).startswith(where + message)
    split = read_split(path, form=ParquetForm(num_classes=3), on_bad_row="skip")
    good = torch.tensor([0, 1, 2, 3, 5])
    assert torch.equal(split.images, images[good])
    assert torch.equal(split.labels, labels[good])
    assert len(split.skipped) == 1
    assert split.skipped[0].startswith(where + message)


def test_every_bad_row_is_listed(tmp_path):
    images, _, info = make()
    cells = pngs(images)
    cells[0] = b""
    path = write_table(
        tmp_path / "a.parquet", {"image": cells, "label": [0, 9, 1, None, 2, 0]}, info=info
    )
    split = read_split(path, on_bad_row="skip")
    assert [re.search(r"row (\d):", reason)[1] for reason in split.skipped] == ["0", "1", "3"]
    assert split.labels.tolist() == [1, 2, 0]


def test_no_good_row(tmp_path):
    images, _, info = make(2)
    path = write_table(tmp_path / "a.parquet", {"image": pngs(images), "label": [7, 8]}, info=info)
    text = refusal(path, on_bad_row="skip")
    assert text.splitlines()[0] == f"{path}: no good row"
    assert "label 7" in text
    assert "label 8" in text
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, path)
    assert refusal(path, form=TWO) == f"{path}: no good row"


def test_null_pixel_in_a_tensor(tmp_path):
    storage = pa.array([[1, 2, 3, 4], [1, None, 3, 4]], pa.list_(pa.uint8(), 4))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (1, 2, 2)), storage)
    path = write_table(tmp_path / "a.parquet", {"image": column, "label": [0, 1]})
    assert refusal(path, form=TWO) == f"{path}: row group 0, row 1: image is null"
    assert read_split(path, form=TWO, on_bad_row="skip").labels.tolist() == [0]


def test_null_tensor(tmp_path):
    """Arrow itself cannot read these back."""
    storage = pa.array([[1, 2, 3, 4], None], pa.list_(pa.uint8(), 4))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (1, 2, 2)), storage)
    path = write_table(tmp_path / "a.parquet", {"image": column, "label": [0, 1]})
    assert f"{path}: row group 0 cannot be read: " in refusal(path, form=TWO)


def test_tensors_of_another_shape_than_declared(tmp_path):
    images, labels, info = make()
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(images[:, :, :4].numpy().copy())
    path = write_table(
        tmp_path / "a.parquet", {"image": column, "label": labels.tolist()}, info=info
    )
    assert refusal(path) == (
        f"{path}: row group 0, row 0: image has shape (1, 4, 8), expected (1, 8, 8)"
    )


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), "tensor"])
def test_file_of_another_program(tmp_path, kind):
    images, labels, _ = make(shape=(3, 5, 4))
    column = (
        pa.FixedShapeTensorArray.from_numpy_ndarray(images.numpy())
        if kind == "tensor"
        else pa.array(pngs(images), kind)
    )
    path = write_table(tmp_path / "a.parquet", {"label": labels.tolist(), "image": column})
    split = read_split(path, form=ParquetForm(num_classes=5))
    assert torch.equal(split.images, images)
    assert split.info == DatasetInfo.measured(images, class_names=["0", "1", "2", "3", "4"])
    assert refusal(path) == (
        f"{path}: nothing in it says the number of classes: set num_classes; its labels are 0 to 2"
    )
    assert read_info(path) is None


def test_num_classes_must_agree_with_the_metadata(tmp_path):
    path = tmp_path / "train.parquet"
    write_split(path, *make())
    assert read_split(path, form=ParquetForm(num_classes=3)).info.num_classes == 3
    assert refusal(path, form=ParquetForm(num_classes=10)) == f"{path}: has 3 classes, expected 10"


@pytest.mark.parametrize("read", [read_split, read_info])
def test_damaged_metadata(tmp_path, read):
    images, labels, info = make()
    table = pa.table({"image": pngs(images), "label": labels.tolist()})
    text = info.to_json().replace("num_classes", "classes")
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: text}), path)
    with pytest.raises(DataError, match="damaged metadata: no field 'num_classes'"):
        read(path)


def test_info_is_the_train_one_not_measured_anew(tmp_path):
    images, labels, info = make()
    declared = replace(info, mean=(0.25,), std=(0.125,))
    path = tmp_path / "val.parquet"
    write_split(path, images, labels, declared)
    assert read_split(path).info == declared


def test_reads_thousands_of_pngs_a_second(tmp_path):
    """60,000 PNGs of 28 × 28 within 20 s on one core is 3,000 a second."""
    images, labels, info = make(num=3000, shape=(1, 28, 28))
    path = tmp_path / "train.parquet"
    write_split(path, images, labels, info)
    start = time.process_time()
    read_split(path)
    assert time.process_time() - start < 1


def hugging_face(names):
    """The metadata that ``datasets`` writes with a ``ClassLabel``."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    return {"huggingface": json.dumps({"info": {"features": features}})}


def write_hugging_face(path, images, labels, names, *, label_type="int32"):
    """As ``datasets.Dataset.to_parquet`` writes images."""
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pngs(images))],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(labels, label_type),
        }
    )
    pq.write_table(table.replace_schema_metadata(hugging_face(names)), path)
    return path


def test_hugging_face(tmp_path):
    images, labels, _ = make()
    names = ("owl", "ant", "cat")
    path = write_hugging_face(tmp_path / "train.parquet", images, labels.tolist(), names)
    split = read_split(path)
    assert torch.equal(split.images, images)
    assert torch.equal(split.labels, labels)
    assert split.info == DatasetInfo.measured(images, class_names=names)
    assert read_split(path, form=ParquetForm(class_names=names)).info.class_names == names
    form = ParquetForm(class_names=("ant", "cat", "owl"))
    assert refusal(path, form=form) == (
        f"{path}: its classes are owl, ant, cat, in this order, not those of class_names"
    )
    assert refusal(path, form=TWO) == f"{path}: has 3 classes, expected 2"


def test_an_image_that_is_only_a_path(tmp_path):
    images, _, _ = make(2)
    path = tmp_path / "train.parquet"
    cells = [{"bytes": pngs(images)[0], "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    table = pa.table({"image": cells, "label": [0, 1, 0]})
    pq.write_table(table, path)
    split = read_split(path, form=TWO, on_bad_row="skip")
    assert [line.partition("row group 0, ")[2] for line in split.skipped] == [
        "row 1: only the path 'b.png' of its image is in the file, no bytes",
        "row 2: image is null",
    ]


LABELS = {
    **{
        kind: pa.array([2, 0, 1], kind)
        for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "float": pa.array([2.0, 0.0, 1.0], "float32"),
    "dictionary of integers": pa.array([2, 0, 1], "int16").dictionary_encode(),
    "string": pa.array(["cat", "owl", "ant"]),
    "large string": pa.array(["cat", "owl", "ant"], "large_string"),
    "string view": pa.array(["cat", "owl", "ant"], pa.string_view()),
    "dictionary of strings": pa.array(["cat", "owl", "ant"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_types_of_labels(tmp_path, kind):
    images, _, _ = make(3)
    path = write_table(tmp_path / "a.parquet", {"image": pngs(images), "label": LABELS[kind]})
    form = ParquetForm(class_names=("owl", "ant", "cat"))
    split = read_split(path, form=form)
    assert split.labels.tolist() == [2, 0, 1]
    assert split.labels.dtype == torch.int64
    assert split.info.class_names == ("owl", "ant", "cat")


def test_booleans(tmp_path):
    images, _, _ = make(3)
    path = write_table(
        tmp_path / "a.parquet", {"image": pngs(images), "label": [True, False, None]}
    )
    split = read_split(path, on_bad_row="skip")
    assert split.labels.tolist() == [1, 0]
    assert split.info.class_names == ("false", "true")
    form = ParquetForm(class_names=("no", "yes"))
    assert read_split(path, form=form, limit=2).info.class_names == ("no", "yes")
    assert refusal(path, form=ParquetForm(num_classes=3)) == f"{path}: has 2 classes, expected 3"
    assert split.skipped[0].endswith("row 2: label is null")


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct([("bytes", pa.large_binary())])],
)
def test_types_of_image_files(tmp_path, kind):
    images, _, _ = make(2)
    cells = [{"bytes": data} for data in pngs(images)] if pa.types.is_struct(kind) else pngs(images)
    path = write_table(tmp_path / "a.parquet", {"image": pa.array(cells, kind), "label": [0, 1]})
    assert torch.equal(read_split(path, form=TWO).images, images)


@pytest.mark.parametrize("kind", [kind for kind in LABELS if "string" in kind])
def test_strings_need_a_declared_order(tmp_path, kind):
    images, _, _ = make(3)
    path = write_table(tmp_path / "a.parquet", {"image": pngs(images), "label": LABELS[kind]})
    for form in (ParquetForm(), ParquetForm(num_classes=3)):
        assert refusal(path, form=form) == (
            f"{path}: column 'label' holds strings; set class_names to their order: [ant, cat, owl]"
        )
    text = refusal(path, form=ParquetForm(class_names=("ant", "cats")))
    assert text == (
        f"{path}: row group 0, row 0: label 'cat' is none of the 2 classes (did you mean cats?)"
    )


def test_labels_that_are_no_whole_numbers(tmp_path):
    images, _, _ = make(4)
    labels = [0.0, 1.5, float("nan"), float("inf")]
    path = write_table(tmp_path / "a.parquet", {"image": pngs(images), "label": labels})
    assert refusal(path).endswith("set num_classes; its labels are 0 to 1")
    split = read_split(path, form=TWO, on_bad_row="skip")
    assert [line.rpartition(": ")[2] for line in split.skipped] == [
        "label 1.5 is no whole number",
        "label is null",
        "label inf is no whole number",
    ]


def test_columns_by_name(tmp_path):
    images, _, _ = make(3)
    columns = {"img": pngs(images), "fine": [2, 0, 1], "coarse": [0, 0, 1]}
    path = write_table(tmp_path / "a.parquet", columns)
    form = ParquetForm(image_column="img", label_column="fine", num_classes=3)
    assert read_split(path, form=form).labels.tolist() == [2, 0, 1]
    assert torch.equal(read_images(path, column="img", limit=2)[0], images[:2])


def test_a_column_that_is_there_twice(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table([[b""], [0], [1]], names=["image", "label", "label"])
    pq.write_table(table, path)
    assert refusal(path, form=TWO) == f"{path}: 2 columns 'label'"


def test_tensors_with_channels_last(tmp_path):
    images, _, _ = make(2, shape=(3, 8, 6))
    last = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(last)
    path = write_table(tmp_path / "a.parquet", {"image": column, "label": [0, 1]})
    assert refusal(path, form=TWO) == (
        f"{path}: row group 0, row 0: tensor of shape (8, 6, 3) is (H, W, C); (C, H, W) is read"
    )
    kind = pa.fixed_shape_tensor(pa.uint8(), (8, 6, 3), permutation=[2, 0, 1])
    permuted = pa.ExtensionArray.from_storage(kind, column.storage)
    path = write_table(tmp_path / "a.parquet", {"image": permuted, "label": [0, 1]})
    assert torch.equal(read_split(path, form=TWO).images, images)


def test_splits_of_another_program_have_the_properties_of_train(tmp_path):
    names = ["ant", "owl"]
    for name, seed in (("train", 0), ("val", 1), ("test", 2)):
        images, labels, _ = make(seed=seed, num_classes=2)
        write_hugging_face(split_path(tmp_path, name), images, labels.tolist(), names)
    splits = read_dataset(tmp_path)
    info = DatasetInfo.measured(splits["train"].images, class_names=names)
    assert splits["train"].info == splits["val"].info == splits["test"].info == info
    assert not torch.equal(splits["train"].images, splits["val"].images)
    write_hugging_face(split_path(tmp_path, "val"), images, labels.tolist(), ["owl", "ant"])
    with pytest.raises(
        DataError, match=r"val\.parquet: its classes are owl, ant, those of the train"
    ):
        read_dataset(tmp_path)
    smaller = make(shape=(1, 4, 4), num_classes=2)[0]
    write_hugging_face(split_path(tmp_path, "val"), smaller, labels.tolist(), names)
    with pytest.raises(DataError, match=r"image has shape \(1, 4, 4\), expected \(1, 8, 8\)"):
        read_dataset(tmp_path)


def test_classes_of_train_hold_for_a_split_that_says_nothing(tmp_path):
    images, labels, info = make()
    write_split(split_path(tmp_path, "train"), images, labels, info)
    write_table(split_path(tmp_path, "val"), {"image": pngs(images), "label": labels.tolist()})
    assert read_dataset(tmp_path)["val"].info == info


def test_images_are_read_whatever_the_labels_are(tmp_path):
    images, _, info = make()
    declared = replace(info, mean=(0.25,), std=(0.125,))
    path = write_table(tmp_path / "a.parquet", {"image": pngs(images)}, info=declared)
    found, mean, std = read_images(path)
    assert torch.equal(found, images)
    assert (mean, std) == ((0.25,), (0.125,))
    write_hugging_face(path, images, [-1] * 6, ["ant", "owl"])
    found, mean, std = read_images(path, limit=3)
    assert torch.equal(found, images[:3])
    assert (mean, std) == mean_and_std(images[:3])


def test_a_split_in_parts(tmp_path):
    write_split(tmp_path / "train-00000-of-00002.parquet", *make())
    with pytest.raises(DataError, match=r"\(did you mean train-00000-of-00002\.parquet\?\)"):
        read_dataset(tmp_path)
    write_split(tmp_path / "train-00001-of-00002.parquet", *make())
    with pytest.raises(
        DataError, match=r"it in parts \(train-00000-of-00002\.parquet, train-00001"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"info": null}', '{"info": {"features": []}}'])
def test_metadata_of_another_layout_says_nothing(tmp_path, text):
    images, labels, _ = make()
    table = pa.table({"image": pngs(images), "label": labels.tolist()})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": text}), path)
    assert "nothing in it says the number of classes" in refusal(path)


def test_metadata_with_a_single_class(tmp_path):
    path = write_hugging_face(tmp_path / "a.parquet", make()[0], [0] * 6, ["cat"])
    assert refusal(path) == f"{path}: at least 2 classes are needed, it has cat"
