import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from precalib_ray.core.head import find_head, scale_head, select_trainable
from precalib_ray.core.models import Model
from precalib_ray.core.models.shapes import check_input
from precalib_ray.core.models.torchvision import names as torchvision_names
from precalib_ray.core.probes import confidence
from precalib_ray.core.spec import from_plain, plain

ONE_OF_A_FAMILY = {
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vit_b_16",
}  # fmt: skip
CLASSIFIERS = [
    pytest.param(name, marks=[] if name in ONE_OF_A_FAMILY else pytest.mark.e2e)
    for name in torchvision_names()
]


def torchvision(name, shape=(3, 224, 224), num_classes=7, **more):
    return {
        "kind": "torchvision", "name": name, "num_classes": num_classes, "input_shape": shape
    } | more  # fmt: skip


def mlp(**more):
    return {"kind": "mlp", "num_classes": 5, "input_shape": (3, 4, 4), "depth": 2} | more


def function(name, module="user_functions", **more):
    name = f"tests.core.{module}:{name}"
    return {"kind": "function", "name": name, "num_classes": 5, "input_shape": (12,)} | more


def build(spec, **options):
    return from_plain(Model, spec).build(**options)


def check(spec):
    check_input(from_plain(Model, spec))


def test_there_are_as_many_classifiers_as_we_say():
    names = set(torchvision_names())
    assert len(names) >= 80
    assert names >= ONE_OF_A_FAMILY


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_head_is_the_layer_that_makes_the_output(name):
    size = 299 if name == "inception_v3" else 224
    model = build(torchvision(name), device="meta").eval()
    assert {p.device.type for p in model.state_dict().values()} == {"meta"}
    ran = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda m, _, out: ran.append((m, out.shape)))
    with torch.no_grad():
        output = model(torch.empty(2, 3, size, size, device="meta"))
    assert output.shape == (2, 7)
    last = ran[-1]
    ((layer_name, head),) = find_head(model, from_plain(Model, torchvision(name))).items()
    assert last[0] is head is model.get_submodule(layer_name)
    assert last[1][:2] == (2, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_one_output_in_train_mode(name):
    model = build(torchvision(name), device="meta").train()
    output = model(torch.empty(2, 3, 299, 299, device="meta"))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 7)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("resnet81", r" \(did you mean .*resnet18"),
        ("vitb16", r" \(did you mean .*vit_b_16"),
        ("qqqqqqqqqqq", "$"),
    ],
)
def test_unknown_name(given, near):
    message = f"name: '{given}': is not the name of a torchvision classifier{near}"
    with pytest.raises(ValueError, match=message):
        build(torchvision(given))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("shape", [(20,), (3, 4, 4)])
def test_mlp(shape, batch_norm):
    spec = mlp(input_shape=shape, depth=3, width=16, batch_norm=batch_norm)
    model = build(spec)
    assert model(torch.randn(6, *shape)).shape == (6, 5)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    widths = [(m.in_features, m.out_features) for m in linear]
    assert widths == [(math.prod(shape), 16), (16, 16), (16, 16), (16, 5)]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model.modules()) == 3 * batch_norm
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 3
    assert find_head(model, from_plain(Model, spec)) == {"head": linear[-1]}


def test_head_is_found_where_hidden_layers_are_as_wide():
    settings = from_plain(Model, mlp(width=5))
    model = settings.build()
    assert find_head(model, settings) == {"head": model.head}
    with pytest.raises(ValueError, match="no linear or convolution layer of the model has 6"):
        find_head(model, replace(settings, num_classes=6))


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "resnext50_32x4d"])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_stem(name, channels):
    spec = torchvision(name, (channels, 32, 32), small_stem=True)
    model = build(spec, device="meta").eval()
    shapes = {}
    model.layer1.register_forward_pre_hook(lambda _, x: shapes.update(layer1=x[0].shape))
    model.layer4.register_forward_hook(lambda _, x, y: shapes.update(layer4=y.shape))
    assert model(torch.empty(2, channels, 32, 32, device="meta")).shape == (2, 7)
    assert shapes["layer1"] == (2, 64, 32, 32)
    assert shapes["layer4"][2:] == (4, 4)
    check(spec)


@pytest.mark.parametrize("spec", [mlp(width=400), torchvision("resnet18")], ids=["mlp", "resnet18"])
def test_he_initialization(spec):
    model = build(spec | {"init": "he"}, seed=0)
    tested = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            n = module.weight.numel()
            expected = math.sqrt(2 / fan_in)
            assert abs(module.weight.mean()) < 5 * expected / math.sqrt(n)
            assert abs(module.weight.std() / expected - 1) < 5 / math.sqrt(2 * n)
            assert module.bias is None or (module.bias == 0).all()
            tested += 1
    assert tested == (3 if spec["kind"] == "mlp" else 21)
    default, head = build(spec, seed=0), "head" if spec["kind"] == "mlp" else "fc"
    assert not torch.equal(default.get_submodule(head).weight, model.get_submodule(head).weight)


@pytest.mark.parametrize(
    "spec",
    [mlp(), mlp(init="he"), torchvision("squeezenet1_1"), function("with_dropout")],
    ids=["mlp", "he", "squeezenet", "function"],
)
def test_seed_decides_and_the_global_generator_is_left_alone(spec):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (build(spec, seed=s).state_dict() for s in (1, 1, 2))
    build(spec, device="meta")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    unseeded, next_one = build(spec).state_dict(), build(spec).state_dict()
    assert all(torch.equal(unseeded[key], next_one[key]) for key in first)  # of the global state


def test_zero_head_is_at_chance_exactly():
    for spec in (mlp(num_classes=10), torchvision("squeezenet1_1", (3, 64, 64), 10)):
        model = build(spec, seed=0).eval()
        body = {k: v.clone() for k, v in model.state_dict().items()}
        scale_head(head := find_head(model, from_plain(Model, spec)), 0.0)
        inputs = torch.randn(4, *spec["input_shape"]) * 30
        with torch.no_grad():
            assert (confidence(model(inputs)) == 0.1).all()
        (name,) = head
        for key, value in model.state_dict().items():
            assert torch.equal(
                value, torch.zeros_like(value) if key.startswith(name) else body[key]
            )


def test_head_is_scaled():
    model = build(mlp(), seed=0)
    weight, bias = model.head.weight.clone(), model.head.bias.clone()
    scale_head({"head": model.head}, 0.25)
    assert torch.equal(model.head.weight, weight * 0.25)
    assert torch.equal(model.head.bias, bias * 0.25)
    assert model.head.weight.requires_grad


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_select_trainable():
    def select(which):
        settings = from_plain(Model, mlp())
        model = settings.build(device="meta")
        select_trainable(model, settings, which)
        return trainable(model)

    everything = select("all")
    assert everything == {
        "body.1.weight", "body.1.bias", "body.3.weight", "body.3.bias", "head.weight", "head.bias"
    }  # fmt: skip
    assert select("head") == {"head.weight", "head.bias"}
    assert select(["body.3.*", "*.bias"]) == everything - {"body.1.weight", "head.weight"}
    with pytest.raises(ValueError, match=r"'boddy\.\*' matches no parameter.*body\."):
        select(["head.*", "boddy.*"])


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("resnet18", (1, 32, 32), (3, 32, 32)),
        ("vit_b_16", (3, 32, 32), (3, 224, 224)),
        ("inception_v3", (3, 32, 32), (3, 224, 224)),
        ("alexnet", (3, 32, 32), (3, 64, 64)),
        ("resnet18", (12,), (3, 32, 32)),
    ],
)
def test_refused_shape_is_told_with_one_that_fits(name, shape, taken):
    with pytest.raises(ValueError, match="the model refuses inputs of shape") as caught:
        check(torchvision(name, shape))
    message = f"the model refuses inputs of shape {shape}; it takes {taken}"
    assert str(caught.value) == message
    check(torchvision(name, taken))


def test_wrong_number_of_outputs_is_told():
    check(function("three_classes", num_classes=3))
    with pytest.raises(ValueError, match=r"its output is \(2, 3\), not \(batch, 5\)"):
        check(function("three_classes"))


def test_function_models():
    model = build(function("with_dropout", args={"width": 3}))
    assert model[1].out_features == 3
    with pytest.raises(ValueError, match=r"no_module returned str, not a torch\.nn\.Module"):
        build(function("no_module"))
    with pytest.raises(ValueError, match="has no function 'absent'"):
        build(function("absent"))


def test_meta_is_for_constructors_that_compute_too():
    """As the constructors of torchvision's RegNets do."""
    check(function("computing"))
    model = build(function("computing"), device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model = build(function("Computes", module="user_models"), device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert build(mlp()).head.weight.device.type == "cpu"  # nothing is left behind


SNIPPETS = {
    "mlp": mlp(depth=1),
    "mlp_norm": mlp(depth=3, width=8, batch_norm=True),
    "flat": mlp(input_shape=(6,)),
    "torchvision": torchvision("squeezenet1_1"),
    "arguments": torchvision("resnet18", args={"groups": 1, "replace_stride_with_dilation": None}),
    "small_stem": torchvision("resnet18", (1, 32, 32), small_stem=True),
    "googlenet": torchvision("googlenet"),
    "inception": torchvision("inception_v3", (3, 299, 299)),
    "timm": {
        "kind": "timm", "name": "resnet10t", "num_classes": 7, "input_shape": (3, 64, 64),
        "args": {"drop_rate": 0.1},
    },
    "function": function("with_dropout", args={"width": 7}),
}  # fmt: skip


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet_builds_the_same_module_without_this_package(name):
    settings = from_plain(Model, SNIPPETS[name])
    snippet = settings.snippet()
    assert not any("precalib_ray" in line for line in snippet.imports + snippet.lines)
    assert settings.kind not in ("torchvision", "timm") or settings.kind in snippet.requires
    found = {"spec": json.loads(json.dumps(plain(settings)))}
    with torch.device("meta"):
        exec("\n".join(snippet.imports + snippet.lines), found)
    built = settings.build(device="meta").state_dict()
    assert found["model"].state_dict().keys() == built.keys()
    for key, value in found["model"].state_dict().items():
        assert value.shape == built[key].shape, key


def test_every_kind_of_model_has_its_snippet_tested():
    assert {spec["kind"] for spec in SNIPPETS.values()} == {
        kind for kind, cls in Model.members.items() if cls.__module__.startswith("precalib_ray.")
    }
