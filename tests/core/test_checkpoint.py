import json
import os
import pickle
import resource

import pytest
import torch
from torch import nn

from precalib_ray.core import checkpoint
from precalib_ray.core.models import Model, function
from precalib_ray.core.phases.pretraining import Pretraining
from precalib_ray.core.spec import from_plain, plain
from precalib_ray.errors import CheckpointError
from tests.core.runs import comparable, recipe, same_bits, weights

FILES = ["model.safetensors", "model.json", "trainer_state.pt", "metrics.json"]
SPEC = {"kind": "mlp", "num_classes": 3, "input_shape": [4], "depth": 1, "width": 5,
        "batch_norm": True}  # fmt: skip
FUNCTION = {
    "kind": "function", "name": "tests.core.user_functions:with_dropout", "num_classes": 3,
    "input_shape": [12],
}  # fmt: skip


def save(directory, *, spec=SPEC, seed=0, **more):
    settings = from_plain(Model, spec)
    model = settings.build(seed=seed)
    options = {"metrics": {"deviation": 0.25}, "trainer_state": {"step": 7}} | more
    checkpoint.save(directory, model=model, settings=settings, **options)
    return model


def read(directory, name, *, trust_code=False):
    """Read one file the way that users of the package do."""
    if name == "trainer_state.pt":
        return checkpoint.load_trainer_state(directory)
    if name == "metrics.json":
        return checkpoint.read_metrics(directory)
    return checkpoint.load_model(directory, trust_code=trust_code)


def test_round_trip(tmp_path):
    state = {"tensor": torch.randn(3), "nested": {"list": [1, 2.5, "x", None]}}
    normalization = {"mean": [0.5], "std": [0.2]}
    model = save(tmp_path / "c", trainer_state=state, normalization=normalization)
    assert sorted(os.listdir(tmp_path / "c")) == sorted(FILES)
    loaded = checkpoint.load_model(tmp_path / "c")
    assert same_bits(model.state_dict(), loaded.state_dict())
    assert loaded.training
    found = checkpoint.load_trainer_state(tmp_path / "c")
    assert torch.equal(found.pop("tensor"), state["tensor"])
    assert found == {"nested": state["nested"]}
    assert checkpoint.read_metrics(tmp_path / "c") == {"deviation": 0.25}
    description = checkpoint.read_description(tmp_path / "c")
    assert description.model == from_plain(Model, SPEC)
    assert description.normalization == normalization
    assert description.versions["torch"] == torch.__version__
    content = json.loads((tmp_path / "c" / "model.json").read_text())
    assert content["model"] == SPEC | {"init": "default"} == plain(description.model)


def test_state_and_normalization_are_optional(tmp_path):
    save(tmp_path / "c", trainer_state=None)
    assert checkpoint.read_description(tmp_path / "c").normalization is None
    with pytest.raises(CheckpointError, match=r"trainer_state\.pt: there is no such file"):
        checkpoint.load_trainer_state(tmp_path / "c")


def test_a_run_comes_back_with_the_same_bits(tmp_path):
    run = Pretraining(recipe())
    outcome = run.run()
    run.write(tmp_path / "c", outcome)
    other = Pretraining(recipe())
    assert not same_bits(weights(run), weights(other))
    other.resume(tmp_path / "c")
    assert same_bits(weights(run), weights(other))
    assert comparable(run.progress) == comparable(other.progress)
    mine, theirs = (r.engine.optimizer.state_dict()["state"] for r in (run, other))
    assert mine.keys() == theirs.keys() != set()
    for key in mine:
        assert same_bits(mine[key], theirs[key])
    metrics = checkpoint.read_metrics(tmp_path / "c")
    assert metrics["after"]["deviation"] == outcome.after.deviation
    assert same_bits(weights(run), checkpoint.load_model(tmp_path / "c").state_dict())


def test_parents_are_made_and_nothing_is_left_over(tmp_path):
    for seed in (0, 1):
        model = save(tmp_path / "a" / "b", seed=seed)
        assert os.listdir(tmp_path / "a") == ["b"]
    assert same_bits(checkpoint.load_model(tmp_path / "a" / "b").state_dict(), model.state_dict())
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("failing", ["metrics", "weights", "state", "rename"])
def test_a_failing_save_leaves_what_was_there(failing, exists, tmp_path, monkeypatch):
    directory = tmp_path / "c"
    model = save(directory) if exists else None
    more = {"seed": 1}
    if failing == "metrics":
        more["metrics"] = {"x": object()}
    elif failing == "state":
        more["trainer_state"] = {"x": lambda: None}
    elif failing == "weights":

        def full_disk(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(checkpoint.safetensors.torch, "save_model", full_disk)
    else:
        replace = os.replace

        def refuse(source, target):
            if str(target) == str(directory) and (os.path.exists(f"{source}/model.json")):
                monkeypatch.undo()  # to bring back the old one is allowed
                raise OSError("device went away")
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises((OSError, TypeError, AttributeError, pickle.PicklingError)):
        save(directory, **more)
    monkeypatch.undo()
    left = [name for name in os.listdir(tmp_path) if not name.startswith(".c.")]
    assert left == (["c"] if exists else [])
    assert os.listdir(tmp_path) == left
    if exists:
        assert same_bits(checkpoint.load_model(directory).state_dict(), model.state_dict())


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("name", FILES)
def test_truncated_file(name, share, tmp_path):
    save(tmp_path / "c", trainer_state={"tensor": torch.randn(500)})
    file = tmp_path / "c" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        read(tmp_path / "c", name)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_absent_file(name, tmp_path):
    save(tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match="there is no such file") as caught:
        read(tmp_path / "c", name)
    assert str(caught.value).startswith(f"{tmp_path / 'c' / name}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "not written by precalib_ray"),
        ('{"architectures": ["ResNet"]}', "not written by precalib_ray"),
        ('{"model": {"kind": "mlp"}}', "not written by precalib_ray"),
        ('{"model": "resnet18"}', "not written by precalib_ray"),
        ("\xff\x00", "truncated, or not JSON"),
    ],
)
def test_foreign_description(content, message, tmp_path):
    save(tmp_path / "c")
    file = tmp_path / "c" / "model.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load_model(tmp_path / "c")
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"depth": "three"},
        {"num_classes": -1},
        {"input_shape": None},
        {"kind": "torchvision", "name": "resnet19"},
        {"kind": "torchvision"},
    ],
    ids=str,
)
def test_description_that_cannot_be_built(change, tmp_path):
    save(tmp_path / "c")
    file = tmp_path / "c" / "model.json"
    description = json.loads(file.read_text())
    description["model"] |= change
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="cannot be built") as caught:
        checkpoint.load_model(tmp_path / "c")
    assert str(caught.value).startswith(f"{file}: ")


def test_weights_of_another_model(tmp_path):
    save(tmp_path / "c")
    other = from_plain(Model, SPEC | {"width": 6}).build()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated, or of another"):
        checkpoint.load_weights(tmp_path / "c", other)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_the_state_is_refused_and_not_run(plain, tmp_path):
    save(tmp_path / "c")
    file, proof = tmp_path / "c" / "trainer_state.pt", tmp_path / "executed"
    content = {"optimizer": Evil(proof)}
    if plain:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match="not written by precalib_ray") as caught:
        checkpoint.load_trainer_state(tmp_path / "c")
    assert str(caught.value).startswith(f"{file}: ")
    assert not proof.exists()
    os.system(f"touch {proof}")  # the object would have: the test can fail
    assert proof.exists()


def test_state_that_is_no_mapping(tmp_path):
    save(tmp_path / "c")
    torch.save([1, 2], tmp_path / "c" / "trainer_state.pt")
    with pytest.raises(CheckpointError, match="not written by precalib_ray"):
        checkpoint.load_trainer_state(tmp_path / "c")


@pytest.mark.parametrize("change", ["no_optimizer", "other_progress", "other_parameters"])
def test_state_of_another_run_is_refused(change, tmp_path):
    run = Pretraining(recipe())
    run.write(tmp_path / "c")
    state = checkpoint.load_trainer_state(tmp_path / "c")
    if change == "no_optimizer":
        del state["optimizer"]
    elif change == "other_progress":
        state["progress"]["epoch"] = 3
    else:
        state["optimizer"] = torch.optim.Adam(nn.Linear(1, 1).parameters()).state_dict()
    torch.save(state, tmp_path / "c" / "trainer_state.pt")
    with pytest.raises(CheckpointError, match=r"trainer_state\.pt: of another run"):
        Pretraining(recipe()).resume(tmp_path / "c")


def test_code_is_run_only_if_trusted(tmp_path, monkeypatch):
    model = save(tmp_path / "c", spec=FUNCTION)
    loaded = checkpoint.load_model(tmp_path / "c", trust_code=True)
    assert same_bits(loaded.state_dict(), model.state_dict())

    def import_nothing(name):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(function, "load_function", import_nothing)
    with pytest.raises(CheckpointError, match=r"with_dropout'.*trust_code=True"):
        checkpoint.load_model(tmp_path / "c")


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_torchvision_models_keep_their_statistics(name, tmp_path):
    spec = {"kind": "torchvision", "name": name, "num_classes": 3, "input_shape": [3, 32, 32]}
    settings = from_plain(Model, spec)
    model = settings.build(seed=0)
    model(torch.randn(4, 3, 32, 32))
    checkpoint.save(tmp_path / "c", model=model, settings=settings, metrics={})
    loaded = checkpoint.load_model(tmp_path / "c")
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert any(key.endswith("running_mean") for key in loaded.state_dict())


@pytest.mark.parametrize("file", ["model.safetensors", "trainer_state.pt"])
def test_what_cannot_be_written_leaves_no_trace(tmp_path, file):
    big, small = ({"width": 500}, {"step": 7}), ({}, {"step": torch.zeros(100_000)})
    spec, state = big if file == "model.safetensors" else small
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large"):
            save(tmp_path / "c", spec=SPEC | spec, trainer_state=state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "metrics.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", b"[" * 100_000, None])
def test_a_file_that_is_no_json(name, content, tmp_path):
    directory = tmp_path / "c"
    save(directory)
    (directory / name).unlink()
    if content is None:
        (directory / name).mkdir()
    else:
        (directory / name).write_bytes(content)
    read = checkpoint.load_model if name == "model.json" else checkpoint.read_metrics
    with pytest.raises(CheckpointError, match=name) as refused:
        read(directory)
    assert "\n" not in str(refused.value)
