"""What a registered version can do for people who have never heard of us."""

from __future__ import annotations

import uuid
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from precalib_ray.core import checkpoint
from precalib_ray.core.models import Model
from precalib_ray.core.models.function import Function
from precalib_ray.core.models.mlp import MLP
from precalib_ray.core.models.torchvision import Torchvision
from precalib_ray.errors import TrackingError
from precalib_ray.registry import loading, publishing, tracking

pytestmark = pytest.mark.server

MODELS: dict[str, Model] = {
    "mlp-k7-precalibrated": MLP(num_classes=7, input_shape=(1, 8, 8), batch_norm=True),
    "mobilenet_v3_small-k7-precalibrated": Torchvision(
        name="mobilenet_v3_small", num_classes=7, input_shape=(3, 32, 32)
    ),
}


@pytest.mark.parametrize("default_name", MODELS)
def test_a_version_predicts_with_mlflow_alone_and_trains_with_us(
    default_name: str, store: str, tmp_path: Path
) -> None:
    settings = MODELS[default_name]
    assert publishing.default_name(settings) == default_name
    model = settings.build(seed=1)
    directory = checkpoint.save(
        tmp_path / "checkpoint", model=model, settings=settings, metrics={"a": 1}
    )
    name = f"{default_name}-{uuid.uuid4().hex[:6]}"
    versions = []
    for _ in range(2):
        run = tracking.Run(uri=store, experiment="e", name="r", tags={})
        for _ in range(2):  # published twice, a run has one version all the same
            versions.append(publishing.publish(run, directory, name=name, tags={"t": 1}))
            publishing.describe(run, name, versions[-1], description="what it is", card="<p>")
    assert versions == ["1", "1", "2", "2"]
    newest = run.client.get_model_version_by_alias(name, "candidate")
    assert str(newest.version) == "2"
    assert newest.description == "what it is"

    pulled = tmp_path / "pulled"
    uri = loading.pull(f"models:/{name}@candidate", pulled, tracking_uri=store)
    assert uri == f"models:/{name}/2"
    loaded = checkpoint.load_model(pulled)
    inputs = torch.randn(3, *settings.input_shape)
    expected = model.eval()(inputs).detach().numpy()
    assert np.array_equal(loaded.eval()(inputs).detach().numpy(), expected)

    exported = mlflow.pytorch.load_model(f"models:/{name}/2")
    served = mlflow.pyfunc.load_model(f"models:/{name}@candidate")
    for batch in (1, 3):
        assert np.allclose(exported(inputs[:batch]).detach(), expected[:batch], atol=1e-5)
        assert np.allclose(served.predict(inputs[:batch].numpy()), expected[:batch], atol=1e-5)


def test_what_cannot_be_exported_is_reported_and_its_checkpoint_kept(tmp_path: Path) -> None:
    settings = Function(
        name="tests.registry.user_functions:network_that_branches",
        num_classes=3,
        input_shape=(4,),
    )
    name = "tests.registry.user_functions-network_that_branches-k3-precalibrated"
    assert publishing.default_name(settings) == name
    directory = checkpoint.save(
        tmp_path / "checkpoint", model=settings.build(), settings=settings, metrics={}
    )
    run = tracking.Run(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="e", name="r", tags={})
    with pytest.raises(TrackingError, match=r"could not be registered: .*checkpoint is intact"):
        publishing.publish(run, directory, name="branches", tags={}, trust_code=True)
