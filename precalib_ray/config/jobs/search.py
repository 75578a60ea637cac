"""The config of ``search``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from precalib_ray.config import space
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.config.jobs.train import FromRandom, TrainConfig
from precalib_ray.config.load import validate
from precalib_ray.config.sections import Flag, Named, Promotion
from precalib_ray.core.data_training import TrainData
from precalib_ray.core.optimizers import Adam, Optimizer
from precalib_ray.core.spec import Section, setting
from precalib_ray.errors import ConfigError, Problem, SettingError

Reference = Literal["untrained", "zero_head", "paper"]
_OF_THE_SEARCH = ("name", "storage", "scaling", "tracking", "promote")


@dataclass(frozen=True, kw_only=True)
class Asha(Section):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934), on the probed deviation."""

    grace_samples: int = setting(1024, ge=1, description="samples before a trial may be stopped")
    reduction_factor: float = setting(
        3.0, gt=1, le=100, description="one in so many goes on at each rung"
    )


@dataclass(frozen=True, kw_only=True)
class Downstream(Section):
    """The data training that recipes are judged by."""

    data: TrainData = setting(description="what is learned")
    num_samples: int | None = setting(
        None, ge=2, description="training images that are used; null: all"
    )
    epochs: int = setting(3, ge=1, le=1000, description="passes over them")
    batch_size: int = setting(128, ge=1, description="samples of a step")
    optimizer: Optimizer = setting(Adam(), description="optimizer of the data training")
    accuracy_loss: float = setting(
        0.005, ge=0, lt=1, description="accuracy that a recipe may lose, by the untrained network"
    )


@dataclass(frozen=True, kw_only=True)
class Trials(Section):
    """What a trial is given."""

    num_workers: int = setting(
        1, ge=1, le=1000, description="training processes; one runs in the trial itself"
    )
    cpus: float = setting(1.0, gt=0, description="CPUs of a worker")
    gpus: float = setting(0.0, ge=0, description="GPUs of a worker; a fraction shares one")
    max_concurrent: int | None = setting(None, ge=1, description="trials at once; null: what fits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers > 1 and self.gpus not in (0, 1):
            raise SettingError("gpus", self.gpus, "must be 0 or 1 where num_workers > 1")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Named):
    """Search for the recipe that brings a network to chance at the least cost."""

    flags = (Flag("--register", "register_best=true", choice="best"),)
    not_identity: ClassVar[frozenset[str]] = Named.not_identity | {
        "trials", "register_best", "register_seeds", "promote",
    }  # fmt: skip

    seed: int = setting(0, ge=0, lt=2**63, description="seed of everything random")
    recipe: dict[str, Any] = setting(
        description="fields of pretrain; any value may be {choice: [...]}, {uniform: [low, high]}, "
        "{loguniform: ...}, {randint: ...} or {quniform: [low, high, q]}"
    )
    algorithm: Literal["tpe", "random", "grid"] = setting(
        "tpe", description="tpe is Optuna's tree-structured Parzen estimator"
    )
    objective: Literal["deviation", "cost_to_target", "pareto", "downstream"] = setting(
        "cost_to_target",
        description="worst deviation; samples to until_deviation; both (a Pareto front); or the "
        "gap of confidence and accuracy in the data training that follows",
    )
    num_trials: int = setting(
        64, ge=1, le=1_000_000, description="trials; a grid has its own number"
    )
    asha: Asha | None = setting(Asha(), description="stops hopeless trials early; null: none")
    references: list[Reference] = setting(
        factory=lambda: ["untrained", "zero_head", "paper"],
        description="trials to compare with, outside the count",
    )
    paper_samples: int = setting(
        250_000, ge=1, description="length of the reference trial paper; as published 250,000"
    )
    downstream: Downstream | None = setting(None, description="for the objective downstream")
    trials: Trials = setting(Trials(), description="what a trial is given")
    register_best: bool = setting(
        False, description="re-run the best recipe with other seeds and register the median"
    )
    register_seeds: int = setting(3, ge=1, le=100, description="seeds of that")
    promote: Promotion | None = setting(
        None, description="make what is registered champion if the gate lets it; null: do not"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _OF_THE_SEARCH:
            if name in self.recipe:
                raise SettingError(f"recipe.{name}", self.recipe[name], f"is {name} above")
        if len(set(self.references)) < len(self.references):
            raise SettingError("references", self.references, "must not repeat a trial")
        if self.promote is not None and not self.register_best:
            raise SettingError("promote", "{...}", "has no effect without register_best")
        space.check(self.recipe, "recipe")
        for recipe in self.corners():
            if self.objective == "cost_to_target" and recipe.duration.until_deviation is None:
                allowed = "is required by objective=cost_to_target"
                raise SettingError("recipe.duration.until_deviation", None, allowed)
            if recipe.max_samples is None:
                allowed = "needs steps or samples: trials are compared by them"
                raise SettingError("recipe.duration", None, allowed)
        if self.algorithm == "grid":
            for _ in space.grid(self.recipe):
                pass
        if (self.objective == "downstream") != (self.downstream is not None):
            allowed = "goes with objective=downstream, and that with it"
            raise SettingError("downstream", self.objective, allowed)
        if self.downstream is not None and self.trials.num_workers > 1:
            allowed = "must be 1 with objective=downstream, which trains in the trial itself"
            raise SettingError("trials.num_workers", self.trials.num_workers, allowed)
        if self.downstream is not None and "untrained" not in self.references:
            allowed = "must hold untrained: its accuracy is what no recipe may lose"
            raise SettingError("references", self.references, allowed)

    def pretraining(
        self, recipe: dict[str, Any], *, name: str | None = None, **fields: Any
    ) -> PretrainConfig:
        """The job ``pretrain`` of a recipe; raises ConfigError with paths from ``recipe.`` on."""
        content = {
            "seed": self.seed,
            **recipe,
            "name": name or self.name,
            "storage": self.storage,
            "scaling": {
                "num_workers": self.trials.num_workers,
                "use_gpu": self.trials.gpus > 0,
                "cpus_per_worker": self.trials.cpus,
            },
        }
        try:
            return validate(PretrainConfig, content | fields)
        except ConfigError as error:
            raise ConfigError(
                [
                    Problem(f"recipe.{p.path}".rstrip("."), p.value, p.allowed, p.hint)
                    for p in error.problems
                ]
            ) from None

    def corners(self) -> list[PretrainConfig]:
        """Jobs that together use every choice and both ends of every range."""
        points = space.corners(self.recipe)
        return [self.pretraining(space.at(self.recipe, point)) for point in points]

    def reference(self, name: Reference) -> PretrainConfig:
        """The job ``pretrain`` of a reference trial, with model and probes of the search."""
        first = space.at(self.recipe, next(iter(space.corners(self.recipe))))
        kept = {key: first[key] for key in ("model", "probes", "compute") if key in first}
        nothing = {"noise": {"kind": "gaussian"}, "duration": {"steps": 0}}
        published = {
            "noise": {"kind": "gaussian"},
            "labels": {"kind": "hard"},
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
            "batch_size": 128,
            "duration": {"samples": self.paper_samples},
        }
        own: dict[str, dict[str, Any]] = {
            "untrained": nothing,
            "zero_head": {**nothing, "head_scale": 0.0},
            "paper": published,
        }
        return self.pretraining({**kept, **own[name]})

    def data_training(self, pretraining: PretrainConfig) -> TrainConfig:
        """The job ``train`` that a recipe is judged by."""
        assert self.downstream is not None, "checked above"
        return TrainConfig(
            name=self.name,
            storage=self.storage,
            seed=pretraining.seed,
            start=FromRandom(model=pretraining.model),
            data=self.downstream.data,
            epochs=self.downstream.epochs,
            batch_size=self.downstream.batch_size,
            optimizer=self.downstream.optimizer,
            num_unknown=0,
            save_every_epochs=self.downstream.epochs,
        )
