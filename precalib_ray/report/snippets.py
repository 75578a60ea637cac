"""Code that gives a version back to people who do not have this package.

The card prints it, and tests run it as printed where there is nothing but torch, torchvision,
safetensors and MLflow.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from precalib_ray.core.models import MLP

_DEFAULTS = {"small_stem": False} | {
    name: parameter.default
    for name, parameter in inspect.signature(MLP).parameters.items()
    if parameter.default is not parameter.empty
}
"""What a spec may leave out, as ``models.build`` takes it."""

PORT = 5001
"""Where the serving example listens, on loopback."""


def ours(uri: str) -> str:
    """With this package."""
    return f'import precalib_ray\n\nmodel = precalib_ray.load_pretrained("{uri}")'


def training(uri: str, spec: Mapping[str, Any]) -> str:
    """The network in train mode, from a model's spec and weights."""
    imports, lines = _BUILDERS[spec["kind"]]({**_DEFAULTS, **spec})
    return "\n".join(
        [
            *sorted([*imports, "import json", "import mlflow", "import os"], key=_import_order),
            "",
            f'folder = mlflow.artifacts.download_artifacts("{uri}/extra_files")',
            'spec = json.load(open(os.path.join(folder, "model.json")))["model"]',
            *lines,
            'load_model(model, os.path.join(folder, "model.safetensors"))',
            "model.train()",
        ]
    )


def needs(spec: Mapping[str, Any]) -> str:
    """What the lines of ``training`` need installed."""
    needed = {
        "mlp": "torch, safetensors and mlflow",
        "torchvision": "torch, torchvision, safetensors and mlflow",
        "timm": "torch, timm, safetensors and mlflow",
        "function": f"torch, safetensors, mlflow and the code that defines {spec.get('name')}",
    }
    return needed[spec["kind"]]


def prediction(uri: str, spec: Mapping[str, Any]) -> str:
    """The exported graph through MLflow's own loaders."""
    return "\n".join(
        [
            "import mlflow",
            "import numpy as np",
            "import torch",
            "",
            f'exported = mlflow.pytorch.load_model("{uri}")',
            f'predictor = mlflow.pyfunc.load_model("{uri}")',
            f"images = np.random.randn(64, {_dimensions(spec)}).astype(np.float32)",
            "logits = exported(torch.from_numpy(images))",
            "same = predictor.predict(images)",
        ]
    )


def serving(uri: str) -> str:
    """A REST server on loopback."""
    return f"mlflow models serve -m {uri} --env-manager local --host 127.0.0.1 --port {PORT}"


def request(spec: Mapping[str, Any]) -> str:
    """A question to that server."""
    return "\n".join(
        [
            "import numpy as np",
            "import requests",
            "",
            f"images = np.random.randn(2, {_dimensions(spec)})",
            "answer = requests.post(",
            f'    "http://127.0.0.1:{PORT}/invocations", json={{"inputs": images.tolist()}}',
            ")",
            'print(np.array(answer.json()["predictions"]).shape)',
        ]
    )


def _dimensions(spec: Mapping[str, Any]) -> str:
    return ", ".join(map(str, spec["input_shape"]))


def _import_order(line: str) -> tuple[bool, str]:
    module = line.split()[1]
    return module.partition(".")[0] not in ("json", "os", "collections", "itertools"), module


_LOAD = "from safetensors.torch import load_model"
_ARGUMENTS = 'num_classes=spec["num_classes"], **spec.get("args", {})'


def _mlp(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    width, depth = spec["width"], spec["depth"]
    norm = "nn.BatchNorm1d(width), " if spec["batch_norm"] else ""
    return ["from collections import OrderedDict", "from torch import nn", _LOAD], [
        f"width, body = {width}, [nn.Flatten()]",
        f"for features in [{math.prod(spec['input_shape'])}] + [width] * {depth - 1}:",
        f"    body += [nn.Linear(features, width), {norm}nn.ReLU()]",
        'head = nn.Linear(width, spec["num_classes"])',
        "model = nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=head))",
    ]


def _torchvision(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    imports = ["import torchvision", _LOAD]
    arguments = _ARGUMENTS
    if spec["name"] in ("googlenet", "inception_v3"):
        arguments = "aux_logits=False, init_weights=False, " + arguments
    lines = [f'model = torchvision.models.get_model("{spec["name"]}", {arguments})']
    if spec["small_stem"]:
        imports.append("from torch import nn")
        lines += [
            f"model.conv1 = nn.Conv2d({spec['input_shape'][0]}, 64, 3, padding=1, bias=False)",
            "model.maxpool = nn.Identity()",
        ]
    return imports, lines


def _timm(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    line = f'model = timm.create_model("{spec["name"]}", {_ARGUMENTS})'
    return ["import timm", _LOAD], [line]


def _function(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    module, _, name = spec["name"].partition(":")
    line = f"model = {name}({_ARGUMENTS})"
    return [f"from {module} import {name}", _LOAD], [line]


_BUILDERS = {"mlp": _mlp, "torchvision": _torchvision, "timm": _timm, "function": _function}
