"""The last layers of a classifier, and which parameters are trained."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from precalib_ray.core.models.base import Model, nearest
from precalib_ray.core.models.shapes import explain, require_logits
from precalib_ray.core.probes import batch_norms, evaluation


def find_head(model: nn.Module, settings: Model) -> dict[str, nn.Module]:
    """The last layers, by name: the linear and convolution layers with K outputs that make the
    logits. A model may have several, and they need not be the last ones in order.

    They are found by following the logits back, and verified by the output: in evaluation and in
    training mode, their parameters times 0 give logits of exactly 0; times 1/2, logits times 1/2.
    The rest of the network is on the device ``meta`` meanwhile, where nothing is computed. The
    model itself is not changed.

    Args:
        model: the classifier, on any device.
        settings: the model's.

    Raises:
        ValueError: there are none, or the output does not follow them alone.
    """
    tracer = _Tracer(model, settings)
    head, gains = tracer.trace()
    shared = tracer.shared(head)
    if shared:
        raise ValueError(_refusal(head, f"another layer has {shared} too"))
    for training in (False, True):
        if tracer.logits(head, gains, factor=0, training=training).any():  # NaN is true
            raise ValueError(_refusal(head, "with their parameters zeroed, the logits are not 0"))
    full, half = (tracer.logits(head, gains, factor=f, training=True) for f in (1, 0.5))
    if not torch.allclose(half, full / 2):
        raise ValueError(_refusal(head, "scaling their parameters does not scale the logits"))
    return head


@torch.no_grad()
def scale_head(head: Mapping[str, nn.Module], factor: float) -> None:
    """Multiply the parameters of the last layers; 0 gives the zero-head baseline."""
    for layer in head.values():
        for parameter in layer.parameters():
            parameter.mul_(factor)


def select_trainable(model: nn.Module, settings: Model, which: str | Sequence[str]) -> None:
    """Freeze every parameter but ``all``, those of the ``head``, or those that patterns match.

    Patterns are shell-style, over the parameters' names: ``layer4.*``.

    Raises:
        ValueError: a pattern matches no parameter, or the last layers are not found.
    """
    if which == "all":
        return
    names = [name for name, _ in model.named_parameters()]
    patterns = [which] if isinstance(which, str) else list(which)
    if which == "head":
        patterns = [f"{name}.*" for name in find_head(model, settings)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = ", ".join(nearest(pattern, names)) or names[-1]
            raise ValueError(f"{pattern!r} matches no parameter; there are for example {near}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


_SAMPLES = 32
"""Samples of a pass without values: enough for every BatchNorm."""


class _Tracer:
    """Runs a model whose parameters, buffers and inputs have no values but where it is told."""

    def __init__(self, model: nn.Module, settings: Model) -> None:
        self._model, self._num_classes = model, settings.num_classes
        self._shape = (_SAMPLES, *settings.input_shape)

    def trace(self) -> tuple[dict[str, nn.Module], set[str]]:
        """The layers with K outputs that reach the logits without passing another one, and the
        names of the parameters, scalars and vectors, that come after them; in any mode.

        Raises:
            ValueError: there is no such layer, the logits depend on other layers too, or one of
                the layers comes before another.
        """
        heads, gains = zip(*(self._trace(training) for training in (False, True)), strict=True)
        return heads[0] | heads[1], gains[0] | gains[1]

    def shared(self, head: Mapping[str, nn.Module]) -> str | None:
        """The name of a parameter of the last layers that another module has too."""
        given = [id(p) for _, p in self._model.named_parameters(remove_duplicate=False)]
        for name, layer in head.items():
            for key, parameter in layer.named_parameters(prefix=name):
                if given.count(id(parameter)) > 1:
                    return key
        return None

    def _trace(self, training: bool) -> tuple[dict[str, nn.Module], set[str]]:
        candidates = self._candidates()
        outputs: list[tuple[str, Tensor]] = []
        attached: list[Tensor] = []

        def cut(name: str, output: Tensor) -> Tensor:
            attached.append(output)
            outputs.append((name, output.detach().requires_grad_()))
            return outputs[-1][1].clone()  # which the model may change in place

        inputs, state = torch.empty(self._shape, device="meta", requires_grad=True), self._state()
        parameters = [(n, state[n].requires_grad_()) for n, _ in self._model.named_parameters()]
        hooks = [
            layer.register_forward_hook(lambda _m, _x, y, name=name: cut(name, y))
            for name, layer in candidates.items()
        ]
        with torch.enable_grad(), evaluation(self._model), _removed(hooks):
            logits = self._run(state, inputs, training=training)
        if not logits.requires_grad:
            raise ValueError("the logits depend on no parameter")
        sources = [*outputs, *parameters, ("the input", inputs)]
        reached = _reached([logits], [source for _, source in sources])
        last = [i for i in reached if i < len(outputs)]
        head = {outputs[i][0]: candidates[outputs[i][0]] for i in last}
        after = [sources[i] for i in reached if i >= len(outputs)]
        if not head:
            raise ValueError(f"the logits come from no layer with {self._num_classes} outputs")
        for name, source in after:
            if source is inputs or source.dim() > 1:
                raise ValueError(_refusal(head, f"the logits depend on {name} too"))
        if _reached([attached[i] for i in last], [outputs[i][1] for i in last]):
            raise ValueError(_refusal(head, "one of these layers comes before another"))
        return head, {name for name, _ in after}

    def logits(
        self, head: Mapping[str, nn.Module], gains: Set[str], *, factor: float, training: bool
    ) -> Tensor:
        """Logits (B, K) from random features and parameters of the last layers, and nothing else.

        Args:
            head: the last layers.
            gains: names of parameters that have values, positive ones, besides the layers'.
            factor: on the layers' parameters.
            training: the mode.

        Raises:
            ValueError: the logits depend on more than that.
        """
        generator, state = torch.Generator().manual_seed(0), self._state()

        def random(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        for name in sorted(gains):
            state[name] = random(state[name]).abs() + 0.1
        for name, layer in head.items():
            for key, _ in layer.named_parameters(prefix=name):
                state[key] = random(state[key]) * factor
            for key, _ in layer.named_buffers(prefix=name):
                state[key] = random(state[key])
        hooks = [
            layer.register_forward_pre_hook(lambda _m, given: tuple(random(g) for g in given))
            for layer in head.values()
        ]
        with torch.no_grad(), evaluation(self._model), _removed(hooks):
            try:
                inputs = torch.empty(self._shape, device="meta")
                logits = self._run(state, inputs, training=training)
            except ValueError:  # what has no values meets what has
                logits = None
        if logits is None or logits.is_meta:
            reason = "the logits depend on more than its output, such as a buffer"
            raise ValueError(_refusal(head, reason))
        return logits

    def _candidates(self) -> dict[str, nn.Module]:
        """The linear and convolution layers with K outputs; raises ValueError if there are none."""
        found: dict[str, nn.Module] = {}
        for name, module in self._model.named_modules():
            linear = isinstance(module, nn.Linear) and module.out_features
            conv = isinstance(module, nn.modules.conv._ConvNd) and module.out_channels
            if self._num_classes in (linear, conv):
                found[name] = module
        if not found:
            raise ValueError(
                f"no linear or convolution layer of the model has {self._num_classes} outputs"
            )
        return found

    def _state(self) -> dict[str, Tensor]:
        """Parameters and buffers without values."""
        both = itertools.chain(self._model.named_parameters(), self._model.named_buffers())
        return {name: torch.empty_like(value, device="meta") for name, value in both}

    def _run(self, state: dict[str, Tensor], inputs: Tensor, *, training: bool) -> Tensor:
        """Logits, (B, K); raises ValueError if the model fails, or its output is anything else."""
        self._model.train(training)
        for norm in batch_norms(self._model):
            norm.eval()  # the mode of its statistics is no matter, and batches of them take time
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of dropout after the last layers
            try:
                output = functional_call(self._model, state, (inputs,))
            except Exception as error:  # a model may raise anything
                raise ValueError(explain(error)) from error
        return require_logits(output, (len(inputs), self._num_classes))


def _reached(ends: Sequence[Tensor], sources: Sequence[Tensor]) -> list[int]:
    """Indices of the sources that one of the ends depends on."""
    total = torch.stack([end.sum() for end in ends if end.requires_grad])
    found = torch.autograd.grad(total.sum(), sources, allow_unused=True, retain_graph=True)
    return [i for i, gradient in enumerate(found) if gradient is not None]


@contextlib.contextmanager
def _removed(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove the hooks at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(head: Mapping[str, nn.Module], reason: str) -> str:
    return f"{', '.join(head)} cannot serve as the last layer: {reason}"
