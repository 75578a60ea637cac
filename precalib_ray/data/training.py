"""Data training: the second phase, on real images, with calibration measured after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from precalib_ray.calibration import metrics, ood
from precalib_ray.core import checkpoint, models
from precalib_ray.core.engine import Call, Engine, Limits, Progress, restore, run, training_state
from precalib_ray.core.probes import predict
from precalib_ray.core.seeding import AUGMENTATION, INITIALIZATION, ORDER, mix
from precalib_ray.core.stream import shard
from precalib_ray.data.dataset import DatasetInfo, Split
from precalib_ray.data.transforms import augment, to_input
from precalib_ray.errors import CheckpointError

_EVALUATION_CHUNK = 256


class DataTraining:
    """One rank's training on a data set that fits in memory.

    The samples of a step are a function of seed and step: epochs are permutations seeded by their
    number, and the few samples that do not fill a batch are left out of an epoch.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        start: Mapping[str, Any],
        splits: Mapping[str, Split],
        *,
        unknown: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build model and engine.

        Args:
            config: the resolved config of a training job.
            start: ``spec`` of the model, ``weights`` (a state dict) or None for random
                initialization, and whether to zero the last layer, ``zero_head``.
            splits: ``train``, ``val`` and, if there is one, ``test``.
            unknown: images (N, C, H, W) uint8 that belong to no class.
            device: where to train.
        """
        self.spec, self._splits, self._unknown = start["spec"], splits, unknown
        self._config, self._seed = config, config["seed"]
        self._info: DatasetInfo = splits["train"].info
        num_classes = self.spec["num_classes"]
        model = models.build(self.spec, seed=mix(self._seed, INITIALIZATION))
        if start["weights"] is not None:
            model.load_state_dict(start["weights"])
        if start["zero_head"]:
            models.scale_head(model, num_classes, 0.0)
        num_samples = len(splits["train"].labels)
        self._batch_size = min(config["batch_size"], num_samples)
        self.steps_per_epoch = num_samples // self._batch_size
        self._limits = Limits(steps=config["epochs"] * self.steps_per_epoch)
        self.engine = Engine.of_job(
            model,
            config,
            num_classes=num_classes,
            num_steps=self._limits.steps,
            device=device,
        )
        self._shard = shard(self._batch_size, self.engine.rank, self.engine.world_size)
        self._epoch, self._order = -1, torch.empty(0)
        self.progress = Progress()
        self._best: dict[str, Any] = {"nll": float("inf")}
        self._best_weights: dict[str, Tensor] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (b, *input_shape) and class ids (b,) of this rank for a step."""
        train, (epoch, index) = self._splits["train"], divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mix(self._seed, ORDER, epoch))
            self._order = torch.randperm(len(train.labels), generator=generator)
            self._epoch = epoch
        first = index * self._batch_size
        chosen = self._order[first : first + self._batch_size][self._shard]
        images = train.images[chosen].to(self.engine.device)
        augmentation = self._config["data"]["augmentation"]
        if augmentation["crop_padding"] or augmentation["flip"]:
            seed = mix(self._seed, AUGMENTATION, step, self.engine.rank)
            images = augment(images, generator=torch.Generator().manual_seed(seed), **augmentation)
        return self._inputs(images), train.labels[chosen]

    def resume(self, directory: Path | str) -> None:
        """Go on from a checkpoint; raises CheckpointError if it cannot be used."""
        state = checkpoint.load_trainer_state(directory)
        checkpoint.load_weights(directory, self.engine.model)
        try:
            self.progress = restore(self.engine, state)
            self._best, self._best_weights = state["best"], state["best_weights"]
        except (KeyError, TypeError, ValueError) as error:
            file = Path(directory) / checkpoint.STATE_FILE
            raise CheckpointError(f"{file}: of another run: {error}") from error

    def write(self, directory: Path | str, outcome: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of this moment; with the outcome of ``run``, whose weights are those
        of the best validation NLL.
        """
        state = training_state(self.engine, self.progress)
        state |= {"best": self._best, "best_weights": self._best_weights}
        checkpoint.save(
            directory,
            model=self.engine.model,
            spec=self.spec,
            metrics=outcome or {"progress": asdict(self.progress)},
            normalization={"mean": list(self._info.mean), "std": list(self._info.std)},
            trainer_state=state,
        )

    def run(
        self,
        *,
        save: Callable[[Progress], str] | None = None,
        on_progress: Callable[[Progress, dict[str, float]], None] | None = None,
        on_work: Callable[[list[float]], None] | None = None,
        call: Callable[[], Call] | None = None,
    ) -> dict[str, Any]:
        """Train for all epochs, then go back to the weights of the best validation NLL.

        Returns:
            ``progress``, whose history has the metrics of every epoch; ``best``, step and metrics;
            ``val`` and ``test``: metrics, with unknown images also the AUROC of confidence
            against them; and ``reliability`` on the latter, ``before`` and ``after`` training:
            count, confidence and accuracy of each bin.

        Raises:
            DivergedError, InterruptedRunError: as ``engine.run``.
        """
        every = self._config["save_every_epochs"] * self.steps_per_epoch
        if self.progress.step == 0:
            last = self._splits.get("test", self._splits["val"])
            bins = _bins(self.logits(last.images), last.labels)
            first = {"step": 0, "samples": 0, "reliability": bins, **self._validate(self.progress)}
            self.progress.history.append(first)
        self.progress = run(
            self.engine,
            self.batch,
            batch_size=self._batch_size,
            limits=self._limits,
            progress=self.progress,
            evaluate=self._validate,
            evaluate_at=lambda progress: progress.step % self.steps_per_epoch == 0,
            save=save,
            save_every=every,
            on_progress=on_progress,
            on_work=on_work,
            call=call,
        )
        self.engine.model.load_state_dict(self._best_weights)
        outcome: dict[str, Any] = {"progress": asdict(self.progress), "best": self._best}
        for name in ("val", "test"):
            if name not in self._splits:
                continue
            split = self._splits[name]
            logits = self.logits(split.images)
            outcome[name] = metrics.evaluate(logits, split.labels)
            outcome["reliability"] = {
                "before": self.progress.history[0]["reliability"],
                "after": _bins(logits, split.labels),
            }
            if self._unknown is not None:
                scores = ood.max_softmax(logits), ood.max_softmax(self.logits(self._unknown))
                outcome[name]["auroc_unknown"] = ood.auroc(*scores)
        return outcome

    @torch.no_grad()
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
        gathered = torch.zeros(len(images), self.spec["num_classes"], device=self.engine.device)
        if chunks:
            gathered[part] = torch.cat(chunks)
        dist.all_reduce(gathered)
        return gathered.cpu()

    def _validate(self, progress: Progress) -> dict[str, Any]:
        split = self._splits["val"]
        record = metrics.evaluate(self.logits(split.images), split.labels)
        if record["nll"] < self._best["nll"]:
            self._best = {"step": progress.step, **record}
            self._best_weights = {
                name: value.detach().cpu().clone()
                for name, value in self.engine.model.state_dict().items()
            }
        return {
            "epoch": progress.step // self.steps_per_epoch,
            "train_loss": progress.mean_loss,
            **record,
        }

    def _inputs(self, images: Tensor) -> Tensor:
        return to_input(
            images, shape=self.spec["input_shape"], mean=self._info.mean, std=self._info.std
        )


def _bins(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Count, confidence and accuracy of each bin; those of empty bins are 0."""
    bins = metrics.reliability(logits, labels)
    return {
        "count": bins.count.tolist(),
        "confidence": bins.confidence.nan_to_num().tolist(),
        "accuracy": bins.accuracy.nan_to_num().tolist(),
    }
