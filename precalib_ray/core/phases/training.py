"""Data training: the second phase, on real images, with calibration measured after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from precalib_ray.calibration import metrics, ood
from precalib_ray.core import checkpoint
from precalib_ray.core.data_training import DataTrainingSettings
from precalib_ray.core.dataset import DatasetInfo, Split
from precalib_ray.core.engine import Engine
from precalib_ray.core.head import find_head, scale_head, select_trainable
from precalib_ray.core.loop import Host, Phase, restore, run, training_state
from precalib_ray.core.models import Model
from precalib_ray.core.probes import chunk_sizes, predict
from precalib_ray.core.progress import Progress
from precalib_ray.core.seeding import AUGMENTATION, INITIALIZATION, ORDER, mix
from precalib_ray.core.spec import from_plain, plain
from precalib_ray.core.stopping import Duration
from precalib_ray.core.stream import shard
from precalib_ray.core.transforms import augment, to_input
from precalib_ray.errors import CheckpointError

_EVALUATION_CHUNK = 256

OOD_METRIC = "auroc_unknown"
"""AUROC of confidence against out-of-distribution images, among the metrics of a split."""


@dataclass(frozen=True, eq=False)
class Start:
    """The network that data training starts from."""

    model: Model
    weights: Mapping[str, Tensor] | None = None
    """A state dict; None for random initialization."""
    zero_head: bool = False
    """Whether to zero the last layer."""


@dataclass(frozen=True)
class Bins:
    """A reliability diagram as plain data; confidence and accuracy of empty bins are 0."""

    count: list[int]
    confidence: list[float]
    accuracy: list[float]

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Self:
        """The diagram of logits (N, K) against labels (N,)."""
        bins = metrics.reliability(logits, labels)
        return cls(
            count=bins.count.tolist(),
            confidence=bins.confidence.nan_to_num().tolist(),
            accuracy=bins.accuracy.nan_to_num().tolist(),
        )


@dataclass(frozen=True)
class Reliability:
    """Reliability before and after training, on test; on val where there is no test split."""

    before: Bins
    after: Bins


@dataclass(frozen=True)
class Epoch:
    """Evaluation on the validation split after an epoch; epoch 0 is before training."""

    step: int
    samples: int
    epoch: int
    train_loss: float | None
    metrics: dict[str, float]
    """Metrics of ``calibration.metrics.evaluate``, by name."""
    reliability: Bins | None = None
    """Reliability before training, on test or val; only in epoch 0."""

    deviation = float("nan")
    num_forwards = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, the metrics beside the other fields."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "metrics"}
        if self.reliability is None:
            del own["reliability"]
        return plain(own) | self.metrics  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        own = {f.name for f in fields(cls)}
        return cls(
            **{k: v for k, v in content.items() if k in own and k != "reliability"},
            metrics={k: v for k, v in content.items() if k not in own},
            reliability=from_plain(Bins, content.get("reliability")),
        )


@dataclass(frozen=True)
class Best:
    """The step with the best validation NLL, and its validation metrics."""

    step: int
    metrics: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data, the metrics beside the step."""
        return {"step": self.step, **self.metrics}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(content["step"], {k: v for k, v in content.items() if k != "step"})


@dataclass(frozen=True)
class Outcome:
    """The result of data training, with the weights of the best validation NLL."""

    progress: Progress[Epoch]
    best: Best
    splits: dict[str, dict[str, float]]
    """Metrics of ``val`` and, if there is one, ``test``, with ``OOD_METRIC`` where it applies."""
    reliability: Reliability

    @property
    def last(self) -> dict[str, float]:
        """Metrics of ``test``; of ``val`` where there is no test split."""
        return self.splits.get("test", self.splits["val"])

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``metrics.json`` and ``run.json``."""
        return {
            "progress": plain(self.progress),
            "best": self.best.to_json(),
            **self.splits,
            "reliability": asdict(self.reliability),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(
            Progress.restore(content["progress"], Epoch),
            Best.from_json(content["best"]),
            {name: content[name] for name in ("val", "test") if name in content},
            from_plain(Reliability, content["reliability"]),
        )


def evaluation_sizes(num_images: int, world_size: int) -> set[int]:
    """Sizes of the batches in which ``Training.logits`` runs so many images, over all ranks."""
    parts = {num_images // world_size, -(-num_images // world_size)}
    chunks = {min(part, _EVALUATION_CHUNK) for part in parts}
    chunks |= {part % _EVALUATION_CHUNK for part in parts}
    return {size for chunk in chunks - {0} for size in chunk_sizes(chunk)}


class Training(Phase[Epoch]):
    """One rank's training on a data set that fits in memory.

    The samples of a step are a function of seed and step: epochs are permutations seeded by their
    number, and the few samples that do not fill a batch are left out of an epoch.
    """

    def __init__(
        self,
        settings: DataTrainingSettings,
        start: Start,
        splits: Mapping[str, Split],
        *,
        ood_images: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build model and engine.

        Args:
            settings: how to train.
            start: the network.
            splits: ``train``, ``val`` and, if there is one, ``test``.
            ood_images: out-of-distribution images (N, C, H, W) uint8.
            device: where to train.
        """
        self._settings, self._model, self._splits = settings, start.model, splits
        self._ood_images = ood_images
        self._info: DatasetInfo = splits["train"].info
        model = start.model.build(seed=mix(settings.seed, INITIALIZATION))
        if start.weights is not None:
            model.load_state_dict(start.weights)
        if start.zero_head:
            scale_head(find_head(model, start.model), 0.0)
        select_trainable(model, start.model, settings.trainable)
        num_samples = len(splits["train"].labels)
        self.batch_size = min(settings.batch_size, num_samples)
        self.steps_per_epoch = num_samples // self.batch_size
        num_steps = settings.epochs * self.steps_per_epoch
        self.duration = Duration(steps=num_steps)
        self.save_every = settings.save_every_epochs * self.steps_per_epoch
        self.engine = Engine(model, settings, num_steps=num_steps, device=device)
        self._shard = shard(self.batch_size, self.engine.rank, self.engine.world_size)
        self._epoch, self._order = -1, torch.empty(0)
        self.progress: Progress[Epoch] = Progress()
        self._best = Best(0, {"nll": float("inf")})
        self._best_weights: dict[str, Tensor] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (b, *input_shape) and class ids (b,) of this rank for a step."""
        train, (epoch, index) = self._splits["train"], divmod(step, self.steps_per_epoch)
        seed = self._settings.seed
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(seed, ORDER, epoch))
            self._order = torch.randperm(len(train.labels), generator=generator)
            self._epoch = epoch
        first = index * self.batch_size
        chosen = self._order[first : first + self.batch_size][self._shard]
        images = train.images[chosen].to(self.engine.device)
        how = self._settings.data.augmentation
        if how.crop_padding or how.flip:
            generator = torch.Generator()
            generator.manual_seed(mix(seed, AUGMENTATION, step, self.engine.rank))
            images = augment(
                images, generator=generator, crop_padding=how.crop_padding, flip=how.flip
            )
        return self._inputs(images), train.labels[chosen]

    def evaluates_now(self) -> bool:
        return self.progress.step % self.steps_per_epoch == 0

    def evaluate(self) -> Epoch:
        return self._validate()

    def resume(self, directory: Path | str) -> None:
        """Resume from a checkpoint; raises CheckpointError if it cannot be used."""
        state = checkpoint.load_trainer_state(directory)
        checkpoint.load_weights(directory, self.engine.model)
        try:
            self.progress = restore(self.engine, state, Epoch)
            self._best, self._best_weights = Best.from_json(state["best"]), state["best_weights"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            file = Path(directory) / checkpoint.STATE_FILE
            raise CheckpointError(f"{file}: of another run: {error}") from error

    def write(self, directory: Path | str, outcome: Outcome | None = None) -> None:
        """Write a checkpoint of the current state; with the outcome, that of ``run``, whose weights
        are those of the best validation NLL.
        """
        state = training_state(self.engine, self.progress)
        state |= {"best": self._best.to_json(), "best_weights": self._best_weights}
        checkpoint.save(
            directory,
            model=self.engine.model,
            settings=self._model,
            metrics=outcome.to_json() if outcome else {"progress": plain(self.progress)},
            normalization={"mean": list(self._info.mean), "std": list(self._info.std)},
            trainer_state=state,
        )

    def run(self, host: Host[Epoch] | None = None) -> Outcome:
        """Train for all epochs, then restore the weights of the best validation NLL.

        Raises:
            DivergedError, InterruptedRunError: as ``loop.run``.
        """
        if self.progress.step == 0:
            last = self._splits.get("test", self._splits["val"])
            bins = Bins.of(self.logits(last.images), last.labels)
            self.progress.history.append(self._validate(reliability=bins))
        run(self, host)
        self.engine.model.load_state_dict(self._best_weights)
        scores, after = {}, None
        for name in ("val", "test"):
            if name not in self._splits:
                continue
            split = self._splits[name]
            logits = self.logits(split.images)
            scores[name] = metrics.evaluate(logits, split.labels)
            after = Bins.of(logits, split.labels)
            if self._ood_images is not None:
                known, unknown = (
                    ood.max_softmax(each) for each in (logits, self.logits(self._ood_images))
                )
                scores[name][OOD_METRIC] = ood.auroc(known, unknown)
        before = self.progress.history[0].reliability
        assert before is not None, "measured before the first step"
        assert after is not None, "there is a val split"
        return Outcome(self.progress, self._best, scores, Reliability(before, after))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, K) on the CPU of images (N, C, H, W) uint8; ranks share the work."""
        if self.engine.world_size > 1:  # running statistics differ by rank, rank 0's are kept
            for buffer in self.engine.model.buffers():
                dist.broadcast(buffer, src=0)
        part = shard(len(images), self.engine.rank, self.engine.world_size)
        chunks = [
            predict(self.engine.model, self._inputs(chunk.to(self.engine.device)))
            for chunk in images[part].split(_EVALUATION_CHUNK)  # type: ignore[no-untyped-call]
            if len(chunk)
        ]
        if self.engine.world_size == 1:
            return torch.cat(chunks).cpu()
        gathered = torch.zeros(len(images), self._model.num_classes, device=self.engine.device)
        if chunks:
            gathered[part] = torch.cat(chunks)
        dist.all_reduce(gathered)
        return gathered.cpu()

    def _validate(self, reliability: Bins | None = None) -> Epoch:
        split = self._splits["val"]
        measured = metrics.evaluate(self.logits(split.images), split.labels)
        if measured["nll"] < self._best.metrics["nll"]:
            self._best = Best(self.progress.step, measured)
            self._best_weights = {
                name: value.detach().cpu().clone()
                for name, value in self.engine.model.state_dict().items()
            }
        return Epoch(
            step=self.progress.step,
            samples=self.progress.samples,
            epoch=self.progress.step // self.steps_per_epoch,
            train_loss=self.progress.mean_loss,
            metrics=measured,
            reliability=reliability,
        )

    def _inputs(self, images: Tensor) -> Tensor:
        return to_input(
            images, shape=self._model.input_shape, mean=self._info.mean, std=self._info.std
        )
