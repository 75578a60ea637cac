"""What the YAML of a search may say."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from precalib_ray.config import space
from precalib_ray.config.base import ContradictionError, Flag, Strict, validate
from precalib_ray.config.jobs import (
    Named,
    PretrainConfig,
    Promotion,
    TrainConfig,
    TrainData,
)
from precalib_ray.config.recipe import Adam, Optimizer
from precalib_ray.errors import ConfigError, Problem

Reference = Literal["untrained", "zero_head", "paper"]
_OF_THE_SEARCH = ("name", "storage", "scaling", "tracking", "promote")


class Asha(Strict):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934), on the probed deviation."""

    grace_samples: int = Field(1024, ge=1, description="samples before a trial may be stopped")
    reduction_factor: float = Field(
        3.0, gt=1, le=100, description="one in so many goes on at each rung"
    )


class Downstream(Strict):
    """The data training that recipes are judged by."""

    data: TrainData = Field(description="what is learned")
    num_samples: int | None = Field(
        None, ge=2, description="training images that are used; null: all"
    )
    epochs: int = Field(3, ge=1, le=1000, description="passes over them")
    batch_size: int = Field(128, ge=1, description="samples of a step")
    optimizer: Optimizer = Field(Adam(kind="adam"), description="optimizer of the data training")
    accuracy_loss: float = Field(
        0.005, ge=0, lt=1, description="accuracy that a recipe may lose, by the untrained network"
    )


class Trials(Strict):
    """What a trial is given."""

    num_workers: int = Field(
        1, ge=1, le=1000, description="training processes; one runs in the trial itself"
    )
    cpus: float = Field(1.0, gt=0, description="CPUs of a worker")
    gpus: float = Field(0.0, ge=0, description="GPUs of a worker; a fraction shares one")
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; null: what fits")

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.num_workers > 1 and self.gpus not in (0, 1):
            raise ContradictionError("gpus", self.gpus, "must be 0 or 1 where num_workers > 1")
        return self


class SearchConfig(Named):
    """Search for the recipe that brings a network to chance at the least cost."""

    flags = (Flag("--register", "register_best=true", choice="best"),)

    recipe: dict[str, Any] = Field(
        description="fields of pretrain; any value may be {choice: [...]}, {uniform: [low, high]}, "
        "{loguniform: ...}, {randint: ...} or {quniform: [low, high, q]}"
    )
    algorithm: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="tpe is Optuna's tree-structured Parzen estimator"
    )
    objective: Literal["deviation", "cost_to_target", "pareto", "downstream"] = Field(
        "cost_to_target",
        description="worst deviation; samples to until_deviation; both (a Pareto front); or the "
        "gap of confidence and accuracy in the data training that follows",
    )
    num_trials: int = Field(64, ge=1, le=1_000_000, description="trials; a grid has its own number")
    asha: Asha | None = Field(Asha(), description="stops hopeless trials early; null: none")
    references: list[Reference] = Field(
        ["untrained", "zero_head", "paper"], description="trials to compare with, outside the count"
    )
    paper_samples: int = Field(
        250_000, ge=1, description="length of the reference trial paper; as published 250,000"
    )
    downstream: Downstream | None = Field(None, description="for the objective downstream")
    trials: Trials = Field(Trials(), description="what a trial is given")
    register_best: bool = Field(
        False, description="re-run the best recipe with other seeds and register the median"
    )
    register_seeds: int = Field(3, ge=1, le=100, description="seeds of that")
    promote: Promotion | None = Field(
        None, description="make what is registered champion if the gate lets it; null: do not"
    )

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        for name in _OF_THE_SEARCH:
            if name in self.recipe:
                raise ContradictionError(f"recipe.{name}", self.recipe[name], f"is {name} above")
        if self.promote is not None and not self.register_best:
            raise ContradictionError("promote", "{...}", "has no effect without register_best")
        space.check(self.recipe, "recipe")
        for recipe in self.corners():
            if self.objective == "cost_to_target" and recipe.duration.until_deviation is None:
                allowed = "is required by objective=cost_to_target"
                raise ContradictionError("recipe.duration.until_deviation", None, allowed)
            if recipe.max_samples is None:
                allowed = "needs steps or samples: trials are compared by them"
                raise ContradictionError("recipe.duration", None, allowed)
        if self.algorithm == "grid":
            for _ in space.grid(self.recipe):
                pass
        if (self.objective == "downstream") != (self.downstream is not None):
            allowed = "goes with objective=downstream, and that with it"
            raise ContradictionError("downstream", self.objective, allowed)
        if self.downstream is not None and self.trials.num_workers > 1:
            allowed = "must be 1 with objective=downstream, which trains in the trial itself"
            raise ContradictionError("trials.num_workers", self.trials.num_workers, allowed)
        if self.downstream is not None and "untrained" not in self.references:
            allowed = "must hold untrained: its accuracy is what no recipe may lose"
            raise ContradictionError("references", self.references, allowed)
        return self

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
        content = {
            "name": self.name,
            "storage": self.storage,
            "seed": pretraining.seed,
            "start": {"kind": "random", "model": pretraining.model.model_dump()},
            "data": self.downstream.data.model_dump(),
            "epochs": self.downstream.epochs,
            "batch_size": self.downstream.batch_size,
            "optimizer": self.downstream.optimizer.model_dump(),
            "num_unknown": 0,
            "save_every_epochs": self.downstream.epochs,
        }
        return validate(TrainConfig, content)
