"""Code that loads a version where this package is not installed.

The card prints it, and tests run it as printed, in an environment of only torch, torchvision,
safetensors and MLflow.
"""

from __future__ import annotations

from precalib_ray.core.models import Model

PORT = 5001
"""Port of the serving example, on loopback."""

_STANDARD_LIBRARY = ("collections", "itertools", "json", "os")


def with_package(uri: str) -> str:
    """The model, loaded with this package."""
    return f'import precalib_ray\n\nmodel = precalib_ray.load_pretrained("{uri}")'


def training(uri: str, model: Model) -> str:
    """The network in train mode, from ``model.json`` and weights."""
    snippet = model.snippet()
    imports = [
        *snippet.imports,
        "from safetensors.torch import load_model",
        "import json",
        "import mlflow",
        "import os",
    ]
    return "\n".join(
        [
            *sorted(imports, key=_import_order),
            "",
            f'folder = mlflow.artifacts.download_artifacts("{uri}/extra_files")',
            'spec = json.load(open(os.path.join(folder, "model.json")))["model"]',
            *snippet.lines,
            'load_model(model, os.path.join(folder, "model.safetensors"))',
            "model.train()",
        ]
    )


def prediction(uri: str, model: Model) -> str:
    """The exported graph through MLflow's own loaders."""
    return "\n".join(
        [
            "import mlflow",
            "import numpy as np",
            "import torch",
            "",
            f'exported = mlflow.pytorch.load_model("{uri}")',
            f'predictor = mlflow.pyfunc.load_model("{uri}")',
            f"images = np.random.randn(64, {_dimensions(model)}).astype(np.float32)",
            "logits = exported(torch.from_numpy(images))",
            "same = predictor.predict(images)",
        ]
    )


def serving(uri: str) -> str:
    """A REST server on loopback."""
    return f"mlflow models serve -m {uri} --env-manager local --host 127.0.0.1 --port {PORT}"


def request(model: Model) -> str:
    """A request to that server."""
    return "\n".join(
        [
            "import numpy as np",
            "import requests",
            "",
            f"images = np.random.randn(2, {_dimensions(model)})",
            "answer = requests.post(",
            f'    "http://127.0.0.1:{PORT}/invocations", json={{"inputs": images.tolist()}}',
            ")",
            'print(np.array(answer.json()["predictions"]).shape)',
        ]
    )


def _dimensions(model: Model) -> str:
    return ", ".join(map(str, model.input_shape))


def _import_order(line: str) -> tuple[bool, str]:
    module = line.split()[1]
    return module.partition(".")[0] not in _STANDARD_LIBRARY, module
