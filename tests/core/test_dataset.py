import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precalib_ray.core.dataset import DatasetInfo, stratified_split


def info(**changes):
    fields = {
        "num_classes": 2,
        "class_names": ("cat", "dog"),
        "shape": (1, 4, 5),
        "mean": (0.1,),
        "std": (0.3,),
    }
    return DatasetInfo(**{**fields, **changes})


unit = st.floats(1e-6, 1.0)


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.text(), min_size=2, max_size=5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    moments=st.lists(st.tuples(unit, unit), min_size=1, max_size=4),
)
def test_json_round_trip(names, size, moments):
    mean, std = zip(*moments, strict=True)
    original = info(
        num_classes=len(names),
        class_names=tuple(names),
        shape=(len(moments), *size),
        mean=mean,
        std=std,
    )
    assert DatasetInfo.from_json(original.to_json()) == original


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "number of class_names, got 3 and 2 names"),
        ({"num_classes": 1, "class_names": ("a",)}, "num_classes must be at least 2"),
        ({"shape": (4, 5)}, "three positive numbers"),
        ({"shape": (1, 0, 5)}, "three positive numbers"),
        ({"mean": (0.1, 0.1)}, "one number per channel"),
        ({"std": (0.1, 0.1)}, "one number per channel"),
        ({"std": (0.0,)}, "std be positive"),
    ],
)
def test_refuses_contradictions(changes, message):
    with pytest.raises(ValueError, match=message):
        info(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{}", "no field 'shape'"),
        ("[]", "list indices"),
        ("3", "not subscriptable"),
        (b"\xff", "can't decode byte"),
        (json.dumps({**json.loads(info().to_json()), "shape": [1, 2]}), "not enough values"),
        (json.dumps({**json.loads(info().to_json()), "mean": None}), "not iterable"),
        (json.dumps({**json.loads(info().to_json()), "std": ["x"]}), "could not convert string"),
    ],
)
def test_refuses_other_json(text, message):
    with pytest.raises(ValueError, match=message):
        DatasetInfo.from_json(text)


def test_measured_agrees_with_torch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (30, 3, 6, 5), generator=generator, dtype=torch.uint8)
    images[:, 1] = 51
    measured = DatasetInfo.measured(images, class_names=["a", "b"])
    values = images.double() / 255
    mean = values.mean(dim=(0, 2, 3)).tolist()
    std = values.std(dim=(0, 2, 3), correction=0).tolist()
    assert measured.shape == (3, 6, 5)
    assert measured.class_names == ("a", "b")
    assert measured.mean == pytest.approx(mean, abs=1e-12)
    assert measured.std == pytest.approx([std[0], 1.0, std[2]], abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60).map(
        lambda values: torch.tensor(values, dtype=torch.int64)
    ),
    fraction=st.sampled_from([0.0, 0.1, 0.25, 0.9]),
    seed=st.integers(0, 99),
)
def test_cut_is_a_stratified_partition(labels, fraction, seed):
    kept, cut = stratified_split(labels, fraction=fraction, seed=seed)
    assert sorted([*kept.tolist(), *cut.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert cut.tolist() == sorted(cut.tolist())
    for label in range(5):
        assert (labels[cut] == label).sum() == round(fraction * int((labels == label).sum()))


def test_cut_depends_on_the_seed_alone():
    labels = torch.arange(400) % 4
    first, again, other = (
        stratified_split(labels, fraction=0.25, seed=seed)[1].tolist() for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_cut_refuses(fraction):
    with pytest.raises(ValueError, match="fraction must be at least 0 and below 1"):
        stratified_split(torch.zeros(3, dtype=torch.int64), fraction=fraction, seed=0)
