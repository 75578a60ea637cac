"""Models as users write them, for 12 numbers: good ones, and ones that fail where a run begins.

The first ones differ in their last layers, the others in what they do in training.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Body(nn.Module):
    """A hidden layer, by default as wide as K, and a last layer."""

    def __init__(self, num_classes, width=None):
        super().__init__()
        width = width or num_classes
        self.body = nn.Sequential(nn.Linear(12, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x))


# last layers


class Registered(nn.Module):
    """The last layer is not the last one that is registered."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(num_classes, num_classes)
        self.body = nn.Linear(12, num_classes)
        self.spare = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Distilled(Body):
    """Two heads, averaged in evaluation, as DeiT's."""

    def __init__(self, num_classes, width=None):
        super().__init__(num_classes, width)
        self.head_dist = nn.Linear(12, num_classes)

    def forward(self, x):
        first, second = self.head(self.body(x)), self.head_dist(x)
        return first if self.training else (first + second) / 2


class InTraining(Distilled):
    """The second head counts in training alone."""

    def forward(self, x):
        logits = self.head(self.body(x))
        return logits + self.head_dist(x) if self.training else logits


class Pooled(nn.Module):
    """A convolution with K outputs, then ReLU and pooling, as SqueezeNet's."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv1d(1, num_classes, 3)

    def forward(self, x):
        return self.conv(x[:, None]).relu().mean(2)


class Temperature(Body):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return super().forward(x) * self.scale.exp()


class Mixed(Body):
    """A learned average of several heads, as EfficientViM's."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.heads = nn.ModuleList(nn.Linear(num_classes, num_classes) for _ in range(3))
        self.weights = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        features, weights = self.body(x), self.weights.softmax(0)
        return sum(w * head(features) for w, head in zip(weights, self.heads, strict=True))


class Repeated(Body):
    """The last layer runs twice."""

    def forward(self, x):
        return (self.head(self.body(x)) + self.head(self.body(-x))) / 2


class Offset(Body):
    """A learned bias after the last layer, which begins at 0."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.offset = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x):
        return super().forward(x) + self.offset


class Prior(Offset):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        del self.offset
        self.register_buffer("offset", torch.ones(num_classes))


class LogSoftmax(Body):
    def forward(self, x):
        return super().forward(x).log_softmax(-1)


class Normalized(Body):
    """BatchNorm after the last layer undoes its scale."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(num_classes, affine=False, track_running_stats=False)

    def forward(self, x):
        return self.norm(super().forward(x))


class Skip(Body):
    def forward(self, x):
        return super().forward(x) + x[:, : self.head.out_features]


class Residual(Body):
    """The logits are a hidden layer's output and the last layer's."""

    def forward(self, x):
        features = self.body(x)
        return features + self.head(features)


class Tied(Body):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.body.append(nn.Linear(num_classes, num_classes))
        self.head.weight = self.body[2].weight


class WeightNorm(Body):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.head = parametrizations.weight_norm(self.head)


class Matrix(Body):
    """The last layer is a parameter; a hidden one has K outputs."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.matrix = nn.Parameter(torch.eye(num_classes))

    def forward(self, x):
        return self.body(x) @ self.matrix


# training


class Squeezed(Body):
    """A batch of one loses its dimension."""

    def forward(self, x):
        return super().forward(x).squeeze()


class OtherClasses(Body):
    def forward(self, x):
        logits = super().forward(x)
        return logits[:, 1:] if self.training else logits


class Dictionary(Body):
    def forward(self, x):
        logits = super().forward(x)
        return {"logits": logits} if self.training else logits


class NotANumber(Body):
    def forward(self, x):
        logits = super().forward(x)
        return logits * float("nan") if self.training else logits


class InPlace(Body):
    """A gradient needs what was overwritten."""

    def forward(self, x):
        features = torch.sigmoid(self.body(x))
        logits = self.head(features)
        features.zero_()
        return logits


class Detached(Body):
    def forward(self, x):
        return super().forward(x).detach() if self.training else super().forward(x)


class Unused(Body):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.spare = nn.Linear(3, 3)


class Doubles(Body):
    """Its weights are float64; without values, torch does not notice."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.double()


class Views(nn.Module):
    """``view`` refuses the strides of channels_last."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


class Scattered(Body):
    """``index_add`` wants both tensors in one format, which autocast does not see to."""

    def forward(self, x):
        logits = super().forward(x)
        return torch.zeros(logits.shape).index_add(0, torch.arange(len(x)), logits)


class Skips(Body):
    """LayerDrop: whether a layer is used depends on a value."""

    def forward(self, x):
        if self.training and torch.rand((), device=x.device) < 0.5:
            x = x + 1
        return super().forward(x)


class Logarithm(Body):
    """For inputs that are not negative."""

    def forward(self, x):
        return super().forward(torch.log(x + 1e-3))


class Ghost(Body):
    """BatchNorm over quarters of the batch."""

    def forward(self, x):
        parts = self.body(x).chunk(4) if self.training else [self.body(x)]
        return self.head(torch.cat([F.batch_norm(p, None, None, training=True) for p in parts]))


class Branches(Body):
    """What it does depends on values, which the device meta does not have."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


class Computes(Body):
    """Its constructor needs the values of a parameter."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.largest = self.head.weight.abs().max().item()


class NoParameters(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        return x[:, : self.num_classes]
