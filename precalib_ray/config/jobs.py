"""What the YAML of each job may say."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from precalib_ray.config.base import ContradictionError, Flag, Strict
from precalib_ray.config.recipe import (
    Adam,
    CrossEntropy,
    HardLabels,
    Labels,
    Loss,
    MLPModel,
    Model,
    Noise,
    Optimizer,
    Schedule,
)
from precalib_ray.core.engine import Limits
from precalib_ray.core.labels import SOFT
from precalib_ray.core.losses import ID_LOSSES, SOFT_LOSSES

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = rf"([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}"
_LABEL_SELECTOR = rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))"
Trainable = Literal["all", "head"] | Annotated[list[str], Field(min_length=1)]


class Duration(Strict):
    """What ends noise pretraining, whichever comes first."""

    steps: int | None = Field(None, ge=0, description="most steps; 0 measures and trains nothing")
    samples: int | None = Field(None, ge=1, description="most samples, of all workers together")
    seconds: float | None = Field(None, gt=0, description="most seconds of training steps")
    until_deviation: float | None = Field(
        None, gt=1e-6, description="deviation on the noise probes that is enough"
    )
    patience: int = Field(1, ge=1, description="probings in a row that must reach it")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.steps is None and self.samples is None and self.seconds is None:
            raise ContradictionError("", {}, "needs at least one of steps, samples, seconds")
        if self.patience > 1 and self.until_deviation is None:
            raise ContradictionError(
                "patience", self.patience, "has no effect without until_deviation"
            )
        return self


class DataProbe(Strict):
    """Real images of a Parquet data set."""

    path: str = Field(description="directory of the data set")
    split: Literal["train", "val", "test"] = Field("test", description="split the images are of")
    held_out: bool = Field(True, description="measure, but hide from the stopping rule")


class Panel(Strict):
    """What confidence is measured on."""

    noise: dict[str, Noise] = Field(
        {
            "gaussian": {"kind": "gaussian"},
            "pink": {"kind": "pink"},
            "patches": {"kind": "patches"},
        },
        validate_default=True,
        description="probes of noise, by name (as noise)",
    )
    data: dict[str, DataProbe] = Field({}, description="probes of real images, by name")
    size: int = Field(128, ge=2, le=100_000, description="inputs of a probe")
    seed: int = Field(0x9E37, ge=0, description="seed of the probes")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.noise and not self.data:
            raise ContradictionError("", {}, "needs at least one probe")
        for name in self.noise.keys() & self.data.keys():
            raise ContradictionError(f"data.{name}", name, "is the name of a noise probe too")
        for kind, names in (("noise", self.noise), ("data", self.data)):
            for name in names:
                if not re.fullmatch(r"[\w. -]+", name):
                    allowed = "a probe's name may hold letters, digits, '_', '.', '-' and spaces"
                    raise ContradictionError(f"{kind}.{name}", name, allowed)
        return self


class Probes(Panel):
    """The panel that confidence is measured on, and when."""

    stop_size: int = Field(
        64, ge=2, description="inputs of a probe that the stopping rule looks at"
    )
    every: int = Field(10, ge=1, description="steps between probings")
    max_share: float = Field(
        0.05, gt=0, le=10, description="most forward passes for probing, by those of training"
    )

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.stop_size > self.size:
            raise ContradictionError("stop_size", self.stop_size, f"must be <= size, {self.size}")
        return self

    @property
    def stopping(self) -> list[str]:
        """Names of the probes that the stopping rule sees."""
        return [*self.noise, *(name for name, probe in self.data.items() if not probe.held_out)]


class Compute(Strict):
    """How a step is computed."""

    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 is autocast; CPUs that only emulate it are slower with it"
    )
    channels_last: bool = Field(False, description="memory format of images and weights")
    compile: bool = Field(False, description="torch.compile")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    sync_batch_norm: bool = Field(False, description="BatchNorm over the batches of all workers")


class Scaling(Strict):
    """What Ray is asked for."""

    num_workers: int | tuple[int, int] = Field(
        1, description="training processes; [min, max]: as many as there is room for, at any time"
    )
    use_gpu: bool = Field(False, description="one GPU per worker (nccl); otherwise CPU (gloo)")
    cpus_per_worker: float | None = Field(
        None, gt=0, description="CPUs per worker; null: a share of this machine, on a cluster 1"
    )
    max_failures: int = Field(
        2, ge=0, description="how often lost workers are replaced, from the last checkpoint"
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="workers on few nodes, or on many; STRICT_: on one, or one on each"
    )
    accelerator_type: str | None = Field(
        None, min_length=1, description="kind of GPU by Ray's name, such as H100; null: any"
    )
    labels: dict[str, str] = Field(
        {}, description="labels of the nodes that workers run on (Ray's label selector)"
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        pair = value if isinstance(value, list | tuple) else (value, value)
        whole = all(type(number) is int and 1 <= number <= 100_000 for number in pair)
        if len(pair) != 2 or not whole or pair[0] > pair[1]:
            allowed = "must be a whole number from 1 to 100,000, or two of them: [min, max]"
            raise ContradictionError("", value, allowed)
        return value

    @model_validator(mode="after")
    def _placeable(self) -> Self:
        if self.accelerator_type is not None and not self.use_gpu:
            raise ContradictionError("accelerator_type", self.accelerator_type, "needs use_gpu")
        for name, selector in self.labels.items():
            if not re.fullmatch(_LABEL_NAME, name):
                raise ContradictionError(f"labels.{name}", name, "is not the name of a label")
            if not re.fullmatch(_LABEL_SELECTOR, selector):
                allowed = "must be a label's value, !VALUE, in(VALUE, VALUE) or !in(VALUE, VALUE)"
                raise ContradictionError(f"labels.{name}", selector, allowed)
        # Ray 2.60 counts room for an elastic group by resources alone.
        strict = self.placement.startswith("STRICT_")
        if not isinstance(self.num_workers, int) and (self.labels or strict):
            path = "labels" if self.labels else "placement"
            allowed = "must be left out where num_workers is [min, max]: Ray resizes without it"
            raise ContradictionError(path, getattr(self, path), allowed)
        return self

    @property
    def max_workers(self) -> int:
        """The most workers that there may be."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class Checkpoints(Strict):
    """When a run is saved, and how much of it is kept."""

    every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: at the end"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept on storage")


def _refuse_secrets(field: str, uri: str | None) -> None:
    parts = urlsplit(uri or "")
    keys = [key.lower() for key, _ in parse_qsl(parts.query)]
    if "@" in parts.netloc or any(w in k for k in keys for w in ("password", "secret", "token")):
        allowed = "must hold no user, password or key; libraries read them from their environment"
        raise ContradictionError(field, "(not shown)", allowed)


class Server(Strict):
    """Where MLflow is."""

    uri: str | None = Field(
        None, description="tracking server; null: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db"
    )

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        _refuse_secrets("uri", self.uri)
        return self


class Tracking(Server):
    """Where MLflow is, and what a job does there."""

    experiment: str = Field("precalib_ray", min_length=1, description="experiment's name")
    offline: bool = Field(False, description="do without MLflow: nothing is tracked or registered")
    register_as: str | None = Field(
        None, pattern=_NAME, description="registered model; null: MODEL-kK-precalibrated"
    )
    tags: dict[str, str] = Field({}, description="more tags of the run and of what it registers")
    max_wait: float = Field(
        60.0, ge=0, le=86_400, description="seconds that the end of a job waits for a server"
    )


TOLERANCE = 0.005
"""What the gate lets through unless it is told otherwise."""


class Promotion(Strict):
    """What the gate lets through, measured on the job's own probes."""

    tolerance: float = Field(
        TOLERANCE, ge=0, lt=1, description="largest deviation on the worst probe of a champion"
    )


NOT_IDENTITY = {
    "scaling",
    "on_save_error",
    "tracking",
    "storage",
    "trials",
    "register_best",
    "register_seeds",
    "promote",
}
"""Fields of a job that say where and on what it runs, not what it is."""


class Stored(Strict):
    """Where a run is."""

    name: str = Field(pattern=_NAME, description="the run's name, a folder under storage")
    storage: str = Field(
        "runs", min_length=1, description="where checkpoints go; all nodes share it"
    )

    @model_validator(mode="after")
    def _storage_without_secrets(self) -> Self:
        _refuse_secrets("storage", self.storage)
        return self


class Named(Stored):
    """What every job that can be submitted again has."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random")
    tracking: Tracking = Field(Tracking(), description="where MLflow is")


class Job(Named):
    """What both phases of training have."""

    batch_size: int = Field(128, ge=1, description="samples of a step, of all workers together")
    compute: Compute = Field(Compute(), description="how a step is computed")
    scaling: Scaling = Field(Scaling(), description="what Ray is asked for")
    on_save_error: Literal["stop", "continue"] = Field(
        "stop", description="where a checkpoint on the way cannot be written: end, or train on"
    )

    @model_validator(mode="after")
    def _workers(self) -> Self:
        workers = self.scaling.max_workers
        if self.batch_size < workers:
            allowed = f"must be >= scaling.num_workers, {workers}"
            raise ContradictionError("batch_size", self.batch_size, allowed)
        if self.compute.sync_batch_norm and not self.scaling.use_gpu:
            raise ContradictionError(
                "compute.sync_batch_norm", True, "needs scaling.use_gpu (torch)"
            )
        return self


class PretrainConfig(Job):
    """Noise pretraining: random noise and random labels until confidence is at chance."""

    model: Model = Field(description="the network")
    noise: Noise = Field(description="distribution of the inputs")
    labels: Labels = Field(HardLabels(kind="hard"), description="scheme of the targets")
    head_scale: float = Field(
        1.0, ge=0, le=1000, description="factor on the last layer's weights before the first step"
    )
    trainable: Trainable = Field("all", description="all, head, or patterns of parameter names")
    optimizer: Optimizer = Field(Adam(kind="adam"), description="optimizer")
    schedule: Schedule = Field(Schedule(), description="learning rate over the steps")
    loss: Loss = Field(CrossEntropy(kind="cross_entropy"), description="loss")
    duration: Duration = Field(description="when to stop")
    probes: Probes = Field(Probes(), description="where confidence is measured")
    checkpoints: Checkpoints = Field(Checkpoints(), description="when the run is saved")
    promote: Promotion | None = Field(
        None, description="make the version champion if the gate lets it; null: do not"
    )

    @property
    def max_samples(self) -> int | None:
        """The most samples that the duration allows; None if only time ends it."""
        num_steps = self.limits.num_steps(self.batch_size)
        return None if num_steps is None else num_steps * self.batch_size

    @property
    def limits(self) -> Limits:
        """The duration, as the engine takes it."""
        return Limits(**self.duration.model_dump())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        soft = self.labels.kind in SOFT
        fitting = SOFT_LOSSES if soft else ID_LOSSES
        if self.loss.kind not in fitting:
            raise ContradictionError(
                "loss.kind",
                self.loss.kind,
                f"does not take the {'soft targets' if soft else 'class ids'} of "
                f"labels.kind={self.labels.kind}; use {' or '.join(sorted(fitting))}",
            )
        smoothing = getattr(self.loss, "label_smoothing", 0.0)
        if self.labels.kind == "smoothed" and smoothing > 0:
            allowed = "labels.kind=smoothed smooths already"
            raise ContradictionError("loss.label_smoothing", smoothing, allowed)
        num_steps = self.limits.num_steps(self.batch_size)
        if self.schedule.kind != "constant" and num_steps is None:
            raise ContradictionError(
                "schedule.kind", self.schedule.kind, "needs duration.steps or samples"
            )
        if self.promote is not None and self.tracking.offline:
            raise ContradictionError("promote", "{...}", "has no effect with tracking.offline")
        workers = self.scaling.num_workers
        if not isinstance(workers, int) and self.checkpoints.every_steps is None:
            allowed = (
                "needs checkpoints.every_steps: where workers come or go, the run goes on from its "
                "last checkpoint, and without one from its start"
            )
            raise ContradictionError("scaling.num_workers", list(workers), allowed)
        self._check_target(num_steps)
        return self

    def _check_target(self, num_steps: int | None) -> None:
        target, path = self.duration.until_deviation, "duration.until_deviation"
        if target is None:
            return
        largest = 1 - 1 / self.model.num_classes
        if target >= largest:
            raise ContradictionError(
                path, target, f"must be < 1 - 1/K = {largest:.3g}: every model shows it"
            )
        if not self.probes.stopping:
            raise ContradictionError(path, target, "no probe can show it: all are held out")
        if num_steps is not None:
            # One BatchNorm mode at least: the cheapest that a probing can be.
            forwards = len(self.probes.stopping) * self.probes.stop_size
            affordable = forwards / (3 * self.batch_size * self.probes.max_share)
            if self.probes.every > num_steps or affordable > num_steps:
                first = max(self.probes.every, int(affordable) + 1)
                raise ContradictionError(
                    path, target, f"no probe can show it: the first would be at step {first} or "
                    f"later, and the run ends at {num_steps}; raise probes.max_share, or lower "
                    "probes.every or probes.stop_size",
                )  # fmt: skip


class FromRegistry(Strict):
    """The pre-calibrated model of an MLflow registry."""

    kind: Literal["registry"]
    uri: str = Field(
        pattern=r"^models:/[^/@]+(/\d+|@[\w.-]+)$",
        description="models:/NAME@ALIAS or models:/NAME/VERSION",
    )
    trust_code: bool = Field(False, description="run the function that makes the model")


class FromCheckpoint(Strict):
    """A checkpoint directory."""

    kind: Literal["checkpoint"]
    path: str = Field(description="the directory")
    trust_code: bool = Field(False, description="run the function that makes the model")


class FromRandom(Strict):
    """Random initialization: the control."""

    kind: Literal["random"]
    model: Model = Field(description="the network")


class FromZeroHead(Strict):
    """Random initialization with the last layer zeroed: at chance for free."""

    kind: Literal["zero_head"]
    model: Model = Field(description="the network")


Start = Annotated[
    FromRegistry | FromCheckpoint | FromRandom | FromZeroHead, Field(discriminator="kind")
]


class Augmentation(Strict):
    """Random changes to training images."""

    crop_padding: int = Field(0, ge=0, le=64, description="pixels of padding before a random crop")
    flip: bool = Field(False, description="horizontal flips")


class TrainData(Strict):
    """A Parquet data set."""

    path: str = Field(description="directory with train, val and perhaps test.parquet")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="refuse the file, or skip bad rows, count and list them"
    )
    augmentation: Augmentation = Field(Augmentation(), description="of training images")


class TrainConfig(Job):
    """Data training: from a pre-calibrated checkpoint, or from one of its baselines."""

    start: Start = Field(description="where the weights come from")
    data: TrainData = Field(description="what is learned")
    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training split")
    trainable: Trainable = Field("all", description="all, head, or patterns of parameter names")
    optimizer: Optimizer = Field(Adam(kind="adam"), description="optimizer")
    schedule: Schedule = Field(Schedule(), description="learning rate over the steps")
    loss: Loss = Field(CrossEntropy(kind="cross_entropy"), description="loss")
    num_unknown: int = Field(
        512, ge=0, le=100_000, description="patches of photographs used as unknown images; 0: none"
    )
    save_every_epochs: int = Field(1, ge=1, description="epochs between checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss.kind not in ID_LOSSES:
            allowed = f"does not take class ids; use {' or '.join(sorted(ID_LOSSES))}"
            raise ContradictionError("loss.kind", self.loss.kind, allowed)
        return self


class FromDigits(Strict):
    """scikit-learn's 1,797 handwritten digits, 8x8, which need no download."""

    kind: Literal["digits"]


class FromTorchvision(Strict):
    """A data set of torchvision."""

    kind: Literal["torchvision"]
    name: str = Field(description="class in torchvision.datasets, such as CIFAR10")
    root: str = Field("data/torchvision", description="where its files are")
    download: bool = Field(False, description="fetch them if they are not there")


class FromIdx(Strict):
    """The four files of MNIST's format, gzipped or not, in one folder."""

    kind: Literal["idx"]
    path: str = Field(description="the folder")
    class_names: list[str] | None = Field(None, description="null: the labels' numbers")


class FromFolder(Strict):
    """A folder of images in one folder per class."""

    kind: Literal["folder"]
    path: str = Field(description="the folder")
    test_path: str | None = Field(None, description="another one, of test images")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=3, max_length=3, description="[C, H, W] that all images are brought to"
    )


class ConvertConfig(Strict):
    """Conversion of a data set to Parquet."""

    source: Annotated[
        FromDigits | FromTorchvision | FromIdx | FromFolder, Field(discriminator="kind")
    ] = Field(description="what is converted")
    output: str = Field(min_length=1, description="directory that is written")
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="part of train that becomes val; the digits have their own"
    )
    seed: int = Field(0, ge=0, description="seed of that cut")


class QuickstartConfig(Strict):
    """The first thing to run: digits, a small network, everything on this machine."""

    output: str = Field("runs/quickstart", min_length=1, description="where everything is written")
    seed: int = Field(0, ge=0, description="seed of everything random")
    epochs: int = Field(15, ge=1, le=1000, description="data training of both networks")
    model: Model = Field(
        MLPModel(kind="mlp", num_classes=10, input_shape=(1, 8, 8), depth=6, width=256, init="he"),
        description="the network; it must take 1x8x8 images and give 10 classes",
    )


class PromoteConfig(Strict):
    """The gate: a registered version becomes champion if it is close enough to chance."""

    flags = (Flag("--rollback", "rollback=true"),)

    name: str = Field(pattern=_NAME, description="registered model")
    version: str = Field(
        "candidate",
        pattern=r"^[\w.-]+$",
        coerce_numbers_to_str=True,  # as a command line's version=3 comes
        description="the version, by number or alias",
    )
    tolerance: float = Field(
        TOLERANCE, ge=0, lt=1, description="largest deviation on the worst probe of a champion"
    )
    probes: Panel = Field(Panel(), description="what it is measured on")
    rollback: bool = Field(False, description="go back to the champion before, unmeasured")
    trust_code: bool = Field(False, description="run the function that makes the model")
    tracking: Server = Field(Server(), description="where MLflow is")


class RegisterConfig(Strict):
    """Registration of a checkpoint directory, however old."""

    path: str = Field(min_length=1, description="the directory")
    probes: Panel = Field(Panel(), description="what its deviation is measured on")
    trust_code: bool = Field(False, description="run the function that makes the model")
    tracking: Tracking = Field(Tracking(), description="where MLflow is")

    @model_validator(mode="after")
    def _online(self) -> Self:
        if self.tracking.offline:
            raise ContradictionError("tracking.offline", True, "nothing is registered offline")
        return self


class SyncConfig(Stored):
    """Sending of what MLflow did not take of a run that has ended."""

    tracking: Tracking | None = Field(
        None, description="where MLflow is; null: as the run was submitted"
    )


class BenchmarkConfig(Strict):
    """What drawing noise and running on Ray cost, as ratios measured on this machine."""

    recipe: str = Field("configs/pretrain_mlp.yaml", description="pretraining to measure with")
    steps: int = Field(500, ge=1, description="steps of a measured pretraining")
    cpus: int = Field(1, ge=1, description="threads of the plain process, and CPUs of the worker")
    repeats: int = Field(3, ge=1, le=100, description="measurements, of which the best counts")
