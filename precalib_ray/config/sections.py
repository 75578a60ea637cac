"""Sections that several jobs have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import StrictInt

from precalib_ray.core.engine import Compute
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import SettingError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs and of registered models."""

TOLERANCE = 0.005
"""The default of the maximum deviation of a champion."""

_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = rf"([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}"
_LABEL_SELECTOR = rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))"
_MOST_WORKERS = 100_000
_WORKERS = "must be a whole number from 1 to 100,000, or two of them: [min, max]"


@dataclass(frozen=True)
class Flag:
    """A flag of the command line that stands for an override."""

    name: str
    override: str
    choice: str | None = None
    """The required argument of the flag, if any."""


@dataclass(frozen=True, kw_only=True)
class JobConfig(Section):
    """The config of a job."""

    flags: ClassVar[tuple[Flag, ...]] = ()
    """Flags of its command line, besides overrides."""
    not_identity: ClassVar[frozenset[str]] = frozenset({"storage", "tracking"})
    """Fields that say where and on what it runs; they do not identify the job."""


@dataclass(frozen=True, kw_only=True)
class Scaling(Section):
    """Workers and their resources."""

    num_workers: StrictInt | tuple[StrictInt, StrictInt] = setting(
        1,
        allowed=_WORKERS,
        description="number of training processes; [min, max]: elastic, as many as fit at any time",
    )
    use_gpu: bool = setting(False, description="one GPU per worker (nccl); otherwise CPU (gloo)")
    cpus_per_worker: float | None = setting(
        None,
        gt=0,
        description="CPUs per worker; null: an equal share of this machine, or 1 on a cluster",
    )
    max_failures: int = setting(
        2,
        ge=0,
        description="how often lost workers are replaced, resuming from the last checkpoint",
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = setting(
        "PACK",
        description="Ray's placement strategy: workers on few nodes (PACK) or many (SPREAD); "
        "STRICT_: on one, or one on each",
    )
    accelerator_type: str | None = setting(
        None, min_length=1, description="Ray's name of the GPU type, such as H100; null: any"
    )
    labels: dict[str, str] = setting(
        factory=dict, description="labels of the nodes that workers run on (Ray's label selector)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.num_workers
        low, high = given if isinstance(given, tuple) else (given, given)
        if not 1 <= low <= high <= _MOST_WORKERS:
            shown = list(given) if isinstance(given, tuple) else given
            raise SettingError("num_workers", shown, _WORKERS)
        if self.accelerator_type is not None and not self.use_gpu:
            raise SettingError("accelerator_type", self.accelerator_type, "needs use_gpu")
        for name, selector in self.labels.items():
            if not re.fullmatch(_LABEL_NAME, name):
                raise SettingError(f"labels.{name}", name, "is not the name of a label")
            if not re.fullmatch(_LABEL_SELECTOR, selector):
                allowed = "must be a label's value, !VALUE, in(VALUE, VALUE) or !in(VALUE, VALUE)"
                raise SettingError(f"labels.{name}", selector, allowed)
        # Ray 2.60 sizes an elastic group by resources alone.
        if self.is_elastic and (self.labels or self.placement.startswith("STRICT_")):
            path = "labels" if self.labels else "placement"
            allowed = (
                "must be left out where num_workers is [min, max]: Ray ignores it when it resizes"
            )
            raise SettingError(path, getattr(self, path), allowed)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers follows the available resources."""
        return isinstance(self.num_workers, tuple)

    @property
    def world_sizes(self) -> range:
        """The numbers of workers that there may be."""
        given = self.num_workers
        low, high = given if isinstance(given, tuple) else (given, given)
        return range(low, high + 1)

    @property
    def max_workers(self) -> int:
        """Maximum number of workers."""
        return self.world_sizes[-1]


_WITH_PASSWORD = r"[\w+.-]+://[^@/]*:[^@]*@"
"""SQLAlchemy lets a password hold slashes."""


def refuse_secrets(field: str, uri: str | None) -> None:
    """Raise SettingError if a URI holds credentials."""
    try:
        parts = urlsplit(uri or "")
        keys = [key.lower() for key, _ in parse_qsl(parts.query)]
    except ValueError as error:
        raise SettingError(field, "(not shown)", f"is not a URI: {error}") from None
    in_front = "@" in parts.netloc or re.match(_WITH_PASSWORD, uri or "")
    if in_front or any(w in k for k in keys for w in ("password", "secret", "token")):
        allowed = "must hold no user, password or key; libraries read them from their environment"
        raise SettingError(field, "(not shown)", allowed)


@dataclass(frozen=True, kw_only=True)
class Server(Section):
    """The MLflow server."""

    uri: str | None = setting(
        None,
        path=True,
        description="tracking server; null: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db",
    )

    def __post_init__(self) -> None:
        refuse_secrets("uri", self.uri)  # before messages show parts of it, and after variables
        super().__post_init__()
        refuse_secrets("uri", self.uri)


@dataclass(frozen=True, kw_only=True)
class Tracking(Server):
    """The MLflow server, and what a job logs there."""

    experiment: str = setting("precalib_ray", min_length=1, description="name of the experiment")
    offline: bool = setting(
        False, description="run without MLflow: nothing is tracked or registered"
    )
    register_as: str | None = setting(
        None, pattern=NAME, description="name of the registered model; null: MODEL-kK-precalibrated"
    )
    tags: dict[str, str] = setting(
        factory=dict, description="additional tags of the run and of the version it registers"
    )
    max_wait: float = setting(
        60.0,
        ge=0,
        le=86_400,
        description="maximum seconds to wait for a server at the end of a job",
    )


@dataclass(frozen=True, kw_only=True)
class Promotion(Section):
    """The gate's condition, measured on the job's own probes."""

    tolerance: float = setting(
        TOLERANCE, ge=0, lt=1, description="maximum deviation of a champion, on its worst probe"
    )


@dataclass(frozen=True, kw_only=True)
class Stored(JobConfig):
    """A run's folder."""

    name: str = setting(pattern=NAME, description="the run's name, a folder under storage")
    storage: str = setting(
        "runs",
        min_length=1,
        path=True,
        description="directory or URI of run folders, shared by all nodes",
    )

    def __post_init__(self) -> None:
        refuse_secrets("storage", self.storage)
        super().__post_init__()
        refuse_secrets("storage", self.storage)


@dataclass(frozen=True, kw_only=True)
class Named(Stored):
    """A run that is tracked, and can be resubmitted."""

    tracking: Tracking = setting(
        Tracking(), description="MLflow server, and what the job logs there"
    )


@dataclass(frozen=True, kw_only=True)
class Distributed(Named):
    """A run of training workers."""

    not_identity: ClassVar[frozenset[str]] = Named.not_identity | {"scaling", "on_save_error"}

    scaling: Scaling = setting(Scaling(), description="workers and their resources")
    on_save_error: Literal["stop", "continue"] = setting(
        "stop",
        description="if an intermediate checkpoint cannot be written: stop, or continue training",
    )


def check_workers(scaling: Scaling, batch_size: int, compute: Compute) -> None:
    """Refuse a step that the workers cannot share; raises SettingError."""
    workers = scaling.max_workers
    if batch_size < workers:
        raise SettingError("batch_size", batch_size, f"must be >= scaling.num_workers, {workers}")
    if compute.sync_batch_norm and not scaling.use_gpu:
        raise SettingError("compute.sync_batch_norm", True, "needs scaling.use_gpu (torch)")
