import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from precalib_ray.core.dataset import DatasetInfo
from precalib_ray.data.embedded import digits, photo_patches


def test_digits_are_all_there_once():
    splits = digits()
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 1151,
        "val": 287,
        "test": 359,
    }
    source = load_digits()
    expected = sorted(
        (label, *image.ravel().astype(int).tolist())
        for label, image in zip(source.target, source.images, strict=True)
    )
    found = [
        (label, *np.rint(image.ravel() / 255 * 16).astype(int).tolist())
        for split in splits.values()
        for label, image in zip(split.labels.tolist(), split.images.numpy(), strict=True)
    ]
    assert sorted(found) == expected


def test_digits_shape_scale_and_info():
    splits = digits()
    train = splits["train"]
    assert train.images.dtype == torch.uint8
    assert train.images.shape[1:] == (1, 8, 8) == train.info.shape
    assert int(train.images.min()) == 0
    assert int(train.images.max()) == 255
    names = [str(k) for k in range(10)]
    assert train.info == DatasetInfo.measured(train.images, class_names=names)
    assert splits["val"].info == splits["test"].info == train.info


def test_digits_are_stratified_and_always_the_same():
    first, again = digits(), digits()
    whole = torch.from_numpy(np.bincount(load_digits().target))
    for name, share in (("train", 0.64), ("val", 0.16), ("test", 0.2)):
        counts = torch.bincount(first[name].labels, minlength=10)
        assert (counts - share * whole).abs().max() <= 1
        assert torch.equal(first[name].images, again[name].images)
    # changes only with the cut itself: published numbers depend on it
    assert first["val"].labels[:12].tolist() == [5, 7, 1, 5, 6, 0, 4, 7, 0, 4, 0, 9]
    assert first["test"].labels[:12].tolist() == [1, 2, 6, 0, 3, 6, 2, 5, 9, 9, 8, 1]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 20, 64), (3, 224, 224)])
def test_patches_shape_and_variety(shape):
    patches = photo_patches(shape, num=12, seed=0)
    assert patches.shape == (12, *shape)
    assert patches.dtype == torch.uint8
    assert len({patch.numpy().tobytes() for patch in patches}) == 12
    assert patches.float().std(dim=(1, 2, 3)).median() > 10


def test_patches_depend_on_the_seed_alone():
    first, again, other = (photo_patches((3, 16, 16), num=5, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(photo_patches((3, 16, 16), num=3, seed=7), first[:3])


def test_gray_patches_are_the_luminance_of_the_color_ones():
    color, gray = (photo_patches((c, 16, 16), num=8, seed=1) for c in (3, 1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    luminance = (color * weights).sum(dim=1, keepdim=True)
    assert (luminance - gray).abs().max() < 2.5


def test_patches_are_antialiased():
    """Shrunk by averaging, a patch has much less contrast between neighbors than by picking."""
    small = photo_patches((1, 8, 8), num=200, seed=0).float()
    large = photo_patches((1, 128, 128), num=200, seed=0).float()
    picked = large[:, :, 8::16, 8::16]

    def roughness(images):
        return images.diff(dim=-1).square().mean()

    assert roughness(small) < 0.8 * roughness(picked)


def test_patches_refuse_other_channels():
    with pytest.raises(ValueError, match=r"1 or 3 channels, got shape \(2, 8, 8\)"):
        photo_patches((2, 8, 8), num=1, seed=0)


def test_no_patches():
    assert photo_patches((3, 4, 4), num=0, seed=0).shape == (0, 3, 4, 4)
