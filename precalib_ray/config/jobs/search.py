"""The config of ``search``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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
        3.0, gt=1, le=100, description="1 of so many trials continues at each rung"
    )


@dataclass(frozen=True, kw_only=True)
class Downstream(Section):
    """The data training that evaluates a recipe."""

    data: TrainData = setting(description="data set to train on")
    num_samples: int | None = setting(
        None, ge=2, description="number of training images used; null: all"
    )
    epochs: int = setting(3, ge=1, le=1000, description="passes over the training images")
    batch_size: int = setting(128, ge=1, description="samples per step")
    optimizer: Optimizer = setting(Adam(), description="optimizer of the data training")
    accuracy_loss: float = setting(
        0.005,
        ge=0,
        lt=1,
        description="allowed loss of accuracy relative to the untrained reference",
    )


@dataclass(frozen=True, kw_only=True)
class Trials(Section):
    """The resources of a trial."""

    num_workers: int = setting(
        1,
        ge=1,
        le=1000,
        description="number of training processes; a single one is the trial's own",
    )
    cpus: float = setting(1.0, gt=0, description="CPUs per worker")
    gpus: float = setting(0.0, ge=0, description="GPUs per worker; a fraction shares one")
    max_concurrent: int | None = setting(
        None, ge=1, description="maximum concurrent trials; null: as many as fit"
    )

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
    recipe: Annotated[dict[str, Any], space.SpaceOf(PretrainConfig)] = setting(
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
        64, ge=1, le=1_000_000, description="number of trials; a grid determines its own"
    )
    asha: Asha | None = setting(Asha(), description="early stopping of trials; null: none")
    references: list[Reference] = setting(
        factory=lambda: ["untrained", "zero_head", "paper"],
        description="reference trials, not counted in num_trials",
    )
    paper_samples: int = setting(
        250_000,
        ge=1,
        description="samples of the reference trial paper (250,000 as published)",
    )
    downstream: Downstream | None = setting(None, description="required by objective=downstream")
    trials: Trials = setting(Trials(), description="resources of a trial")
    register_best: bool = setting(
        False, description="re-run the best recipe with other seeds and register the median"
    )
    register_seeds: int = setting(3, ge=1, le=100, description="number of seeds for register_best")
    promote: Promotion | None = setting(
        None,
        description="promote the registered version to champion if it passes the gate; "
        "null: do not",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _OF_THE_SEARCH:
            if name in self.recipe:
                allowed = "belongs at the top level of the search, not in recipe"
                raise SettingError(f"recipe.{name}", self.recipe[name], allowed)
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
                allowed = "needs steps or samples, by which trials are compared"
                raise SettingError("recipe.duration", None, allowed)
        if self.algorithm == "grid":
            for _ in space.grid(self.recipe):
                pass
        if (self.objective == "downstream") != (self.downstream is not None):
            allowed = "must be set if and only if objective=downstream"
            raise SettingError("downstream", self.objective, allowed)
        if self.downstream is not None and self.trials.num_workers > 1:
            allowed = "must be 1 with objective=downstream, which trains in the trial itself"
            raise SettingError("trials.num_workers", self.trials.num_workers, allowed)
        if self.downstream is not None and "untrained" not in self.references:
            allowed = "must hold untrained: downstream.accuracy_loss is relative to its accuracy"
            raise SettingError("references", self.references, allowed)

    def pretraining(
        self, recipe: dict[str, Any], *, name: str | None = None, **fields: Any
    ) -> PretrainConfig:
        """The job ``pretrain`` of a recipe; raises ConfigError with paths under ``recipe``."""
        if not isinstance(recipe, dict):
            raise ConfigError([Problem("recipe", recipe, "must be a mapping")])
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

    def data_training(self, pretraining: PretrainConfig) -> TrainConfig:
        """The job ``train`` that evaluates a recipe."""
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
