"""A study: everything that was asked, as frozen values with units. No YAML, no files, no torch.

`spec.load_study` makes one from a file and reports all faults at once; `to_dict` is the resolved form that
is hashed and written to results/NAME/study.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from aim_tune.spec.space import Domain, domain_from_json
from aim_tune.spec.values import short_hash

BASELINE = "baseline"
"""The arm that is the backbone alone."""

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("one_cycle", "cosine", "plateau", "constant")
AUGMENTS = ("flip", "crop", "cutout", "flip_vertical", "rotate", "translate", "contrast")
PACKS = ("twin", "arm")
FINAL_SEEDS = 3
"""Fresh seeds of every explore finalist."""
PLANS = {
    "default": {"blocks": 10, "twins": 5, "confirm": 2},
    "quick": {"blocks": 6, "twins": 4, "confirm": 1},
    "full": {"blocks": 20, "twins": 5, "confirm": 2},
}
"""Short forms for `protocol: {plan: ...}`; keys that are written out win."""
ATTRIBUTIONS = ("always", "after_better")
SAMPLERS = ("auto", "random", "tpe")
MOST_RANDOM_TWINS = 10
"""Up to so many twins per block, sampler auto draws at random."""
MOST_TRIALS = 1000
"""Of explore: a proposal takes TPE longer for every trial before it (5 ms at 100, 26 ms at 1,000)."""
OBJECTIVES = ("val_accuracy", "step_ms", "parameters")
TIME_MATCHED, STEP_MATCHED = "time_matched", "step_matched"
MEASURED = (TIME_MATCHED, STEP_MATCHED)
"""Arms that are made to cost what the primary arm costs, by a measurement of the study itself."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A named row of a table with all its settings filled in."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every arm is trained. The fields in TUNABLE may be searched under `shared` instead."""

    steps: int | None = None
    """Optimizer steps; exactly one of steps and epochs is given."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int = 32
    """Images per step."""
    optimizer: str = "adamw"
    """Weight decay is decoupled in adamw, part of the gradient in adam and sgd."""
    schedule: str = "one_cycle"
    """one_cycle (30 % warm-up), cosine (to zero), plateau (x 0.1 after 3 evaluations without gain),
    constant."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Of all parameters alike."""
    momentum: float = 0.9
    """SGD only."""
    label_smoothing: float = 0.0
    """In [0, 1)."""
    grad_clip: float | None = None
    """Largest allowed gradient norm; None: not clipped."""
    augment: tuple[str, ...] = ()
    """Training only: flip (left-right), flip_vertical, crop (shift by up to 1/8 of the side, zeros move in),
    cutout (a square of 1/4); as published: rotate (up to 0.15 turn), translate (up to 0.1 of the side; edges
    reflect), contrast (up to 0.1)."""
    evaluations: int = 10
    """Validation passes, evenly spread; the last is at the last step."""
    early_stopping_patience: int | None = None
    """Passes without a gain after which a training ends, in every arm by the same rule; the network of its
    best pass is kept. None: trainings run to their last step. Budgets are compared by granted steps."""
    early_stopping_min_delta: float = 0.0
    """Gains in validation accuracy up to this do not count as such."""
    amp: bool = False
    """bfloat16 autocast, in every arm."""
    channels_last: bool = False
    """Memory format, in every arm."""
    compile: bool = False
    """torch.compile for the training steps, in every arm: the same function, rounded otherwise. Compiling is
    not counted in step times; validation and what is kept are not compiled."""

    def at(self, shared: Mapping[str, Any]) -> Recipe:
        """This recipe with the values of a point's shared part put in."""
        return replace(self, **{k: _plain(v) for k, v in shared.items()})


TUNABLE = (
    "lr", "weight_decay", "momentum", "label_smoothing", "grad_clip",
    "batch_size", "optimizer", "schedule", "augment",
)  # fmt: skip
"""Recipe fields that `shared` may search."""


@dataclass(frozen=True, kw_only=True)
class Addon:
    """The add-on and the domain of each of its settings (every setting is present)."""

    name: str
    space: Mapping[str, Domain] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What explore goes on from: so many trials of an earlier study. The ledger holds them."""

    study: str
    """Its name."""
    study_hash: str
    trials: int
    digest: str
    """Of the trials: what makes two warm starts the same, wherever the earlier study lies."""

    @property
    def said(self) -> str:
        """In words.

        >>> WarmStart(study="first", study_hash="ab", trials=1, digest="cd").said
        '1 trial of study first'
        """
        return f"{self.trials} trial{'s' * (self.trials != 1)} of study {self.study}"


@dataclass(frozen=True, kw_only=True)
class Explore:
    """Stage that looks for the add-on's design."""

    trials: int = 0
    """Requests of the search, each a training of every arm in `arms`; 0: no explore."""
    lag: int = 4
    """Exactly results 0..i-lag are told before ask i: makes the sequence independent of the slots."""
    finalists: int = 0
    """Best designs that are trained again with 3 fresh seeds before one is chosen: the best of many
    single trainings is partly luck. 0: the best trial's design is taken."""
    arms: tuple[str, ...] = ()
    """The arms that explore trains; none named: all of the study's. With fewer, the design is chosen
    for these alone, and the verdict says so."""
    narrow: bool = False
    """After explore the blocks draw shared settings only from where some arm was good; from 20 different
    trials on."""
    stopping: bool = False
    """Bad trials end early, at a quarter or half of their steps: below the median of the same arm's earlier
    trials. They keep the score they reached and count as pruned."""
    objectives: tuple[str, ...] = ("val_accuracy",)
    """What the search trades off: validation accuracy, and beside it step_ms or parameters (less is
    better). The design is chosen by accuracy; the trade-offs are shown per arm."""
    warm_start: str | WarmStart | None = None
    """Folder of an earlier study of the same space, such as ../results/NAME: TPE is told its explore trials
    first, and trial 1 is the best of them. Relative to the study file; in --set to the current folder."""

    @property
    def went_on_from(self) -> WarmStart | None:
        """The earlier trials; None without any, and before its folder was read."""
        return self.warm_start if isinstance(self.warm_start, WarmStart) else None

    @property
    def requests(self) -> int:
        """Trials, and the finalists' further trainings."""
        return self.trials + FINAL_SEEDS * min(self.finalists, self.trials)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How much evidence is gathered and how it is judged."""

    explore: Explore = Explore()
    blocks: int = 10
    """Units of evidence; 0: plain search."""
    twins: int = 5
    """Random draws per block."""
    confirm: int = 2
    """Pairs of fresh trainings per block, read on the sealed test examples."""
    rope_points: float = 0.5
    """Region of practical equivalence: differences below it do not matter, percentage points."""
    seed: int = 0
    """Where every draw, split and initialization of the study comes from."""
    looks: tuple[int, ...] = ()
    """Planned looks, in blocks: the study stops at the first that decides. The last is `blocks`."""
    budget_gpu_hours: float | None = None
    """Device hours (GPU hours; core hours where trials have no GPU). Chooses blocks, twins and confirm
    where they are not written out; no block begins that would not fit."""
    search_fraction: float = 1.0
    """Share of the recipe's steps that twins are trained for, in every arm; confirm pairs take all."""
    sampler: str = "auto"
    """How a block's points are proposed: random draws; tpe, told both sides alike; auto: random up to 10
    twins, tpe beyond. Asking once with each shows whether the verdict hangs on it."""
    attribution: str = "always"
    """after_better: only baseline and the primary arm at first; the others, on the same streams, once
    the primary arm is better."""
    export_seeds: int = 0
    """Times that each arm's best point is trained again at the end, with fresh seeds and splits, for
    best_config.yaml; on validation images only."""
    chosen: tuple[str, ...] = field(default=(), compare=False)
    """Keys that the planner has still to choose from budget_gpu_hours. Not part of the written form."""

    @property
    def draws_at_random(self) -> bool:
        """Whether a block's twins are random draws: exchangeable, and none waits for another."""
        if self.sampler == "auto":
            return self.twins <= MOST_RANDOM_TWINS
        return self.sampler == "random"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets."""

    cpu: int = 1
    """Threads and Ray CPUs of a trial, shared by its GPUs. Part of the study: 1 and 2 threads give different
    weights."""
    gpu: float = 0.0
    """GPUs of a trial. A share, such as 0.5, puts several trials on one card; 2 or more train one network on
    so many GPUs of one machine."""
    pack: str = "twin"
    """twin: all arms of a request in one trial; arm: one trial per arm. Results are the same."""
    time_limit_s: float | None = None
    """Longest allowed training, seconds; it then ends with status timeout."""
    checkpoint_s: float = 60.0
    """Shortest time between two checkpoints of a training, seconds."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A user's file that adds rows; its text travels with the study to the workers."""

    path: str
    """As written in the study, relative to it."""
    sha256: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question, fully resolved."""

    name: str
    backbone: Component
    data: Component
    arms: tuple[str, ...]
    recipe: Recipe
    shared: Mapping[str, Domain]
    addon: Addon | None
    protocol: Protocol = Protocol()
    resources: Resources = Resources()
    plugins: tuple[Plugin, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arm -> recipe fields in which it is trained otherwise. Such differences are confounds."""
    declared_confounds: Mapping[str, str] = field(default_factory=dict)
    """In what the arms differ beside the add-on (a recipe field, an arm, anything) -> how, in words."""

    def recipe_of(self, arm: str, shared: Mapping[str, Any], steps: int | None = None) -> Recipe:
        """How `arm` is trained at a point with this shared part; `steps` if a request grants others."""
        own = {k: _plain(v) for k, v in self.overrides.get(arm, {}).items()}
        if steps is not None:
            own = {k: v for k, v in own.items() if k != "epochs"} | {"steps": steps}
        if "steps" in own or "epochs" in own:
            own = {"steps": None, "epochs": None, **own}
        return replace(self.recipe.at(shared), **own)

    @property
    def primary(self) -> str | None:
        """The arm that is asked about: aim, else the first that is not the baseline."""
        return "aim" if "aim" in self.addon_arms else next(iter(self.addon_arms), None)

    @property
    def main_arms(self) -> tuple[str, ...]:
        """The arms of the first pass: all, or (attribution after_better) baseline and primary."""
        if self.protocol.attribution == "after_better" and self.compares:
            return tuple(a for a in self.arms if a in (BASELINE, self.primary))
        return self.arms

    @property
    def later_arms(self) -> tuple[str, ...]:
        """The arms that are trained only after a "better"."""
        return tuple(a for a in self.arms if a not in self.main_arms)

    @property
    def explore_arms(self) -> tuple[str, ...]:
        """The arms that explore trains; measured ones cannot, they need the design that it chooses."""
        named = self.protocol.explore.arms or self.main_arms
        return tuple(a for a in self.arms if a in named and a not in MEASURED)

    @property
    def addon_arms(self) -> tuple[str, ...]:
        """The arms that have the add-on, in order."""
        return tuple(a for a in self.arms if a != BASELINE)

    @property
    def compares(self) -> bool:
        """Whether the study asks for a comparison (else it is plain search, verdict not_asked)."""
        return BASELINE in self.arms and len(self.arms) > 1 and self.protocol.blocks > 0

    @property
    def requests_planned(self) -> int:
        """Twins, confirm pairs, explore trials and re-runs of the whole study."""
        p = self.protocol
        return p.explore.requests + p.blocks * (p.twins + p.confirm) + p.export_seeds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/YAML form, in the shape of a study file; `from_dict` inverts it."""
        recipe = asdict(self.recipe)
        recipe = {k: _plain_list(v) for k, v in recipe.items() if k not in self.shared}
        value: dict[str, Any] = {
            "name": self.name,
            "backbone": {"name": self.backbone.name, **self.backbone.settings},
            "data": {"name": self.data.name, **self.data.settings},
            "arms": list(self.arms),
            "recipe": recipe,
            "shared": {k: d.to_json() for k, d in self.shared.items()},
        }
        if self.addon is not None:
            space = {k: d.to_json() for k, d in self.addon.space.items()}
            value["addon"] = {"name": self.addon.name, **space}
        value["protocol"] = asdict(self.protocol)
        value["protocol"].pop("chosen")
        value["resources"] = asdict(self.resources)
        value["plugins"] = [asdict(p) for p in self.plugins]
        value["overrides"] = self.overrides
        value["declared_confounds"] = self.declared_confounds
        return _jsonable(value)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Study:
        """Inverse of `to_dict`, for values that were validated before."""
        protocol = dict(value["protocol"])
        explore = dict(protocol["explore"])
        if isinstance(explore.get("warm_start"), Mapping):
            explore["warm_start"] = WarmStart(**explore["warm_start"])
        addon = value.get("addon")
        return cls(
            name=value["name"],
            backbone=_component(value["backbone"]),
            data=_component(value["data"]),
            arms=tuple(value["arms"]),
            recipe=Recipe(**{k: _plain(v) for k, v in value["recipe"].items()}),
            shared={k: domain_from_json(v) for k, v in value["shared"].items()},
            addon=Addon(
                name=addon["name"],
                space={k: domain_from_json(v) for k, v in addon.items() if k != "name"},
            )
            if addon
            else None,
            protocol=Protocol(
                **{
                    **{k: _plain(v) for k, v in protocol.items()},
                    "explore": Explore(**{k: _plain(v) for k, v in explore.items()}),
                }
            ),
            resources=Resources(**value["resources"]),
            plugins=tuple(Plugin(**p) for p in value["plugins"]),
            overrides={
                arm: {k: _plain(v) for k, v in own.items()}
                for arm, own in value.get("overrides", {}).items()
            },
            declared_confounds=dict(value.get("declared_confounds", {})),
        )

    def identity(self) -> dict[str, Any]:
        """What makes two studies the same question: the resolved form without what cannot change a
        result (packing, where files lie on this machine, checkpoint rhythm)."""
        value = self.to_dict()
        for key in ("root", "workers", "in_memory_mib"):
            value["data"].pop(key, None)  # the data's digest is recorded instead of the place
        for key in ("pack", "time_limit_s", "checkpoint_s"):
            value["resources"].pop(key)
        for plugin in value["plugins"]:
            plugin.pop("source")
        _drop_defaults(value["recipe"], Recipe, LATER_RECIPE)
        _drop_defaults(value["protocol"]["explore"], Explore, LATER_EXPLORE)
        _drop_defaults(value["protocol"], Protocol, LATER_PROTOCOL)
        if went_on_from := self.protocol.explore.went_on_from:
            what = {"trials": went_on_from.trials, "digest": went_on_from.digest}
            value["protocol"]["explore"]["warm_start"] = what  # the content, wherever it lies
        for key in ("overrides", "declared_confounds"):
            if not value[key]:
                value.pop(key)
        if self.addon is not None and self.addon.name == "memory":
            own = value["addon"]
            value["addon"] = {k: v for k, v in own.items() if (k, v) not in LATER_MEMORY}
        return value

    @property
    def study_hash(self) -> str:
        """Short hash of `identity`."""
        return short_hash(self.identity())


LATER_RECIPE = ("early_stopping_patience", "early_stopping_min_delta", "compile")
LATER_EXPLORE = ("finalists", "arms", "narrow", "stopping", "objectives", "warm_start")
LATER_MEMORY = (("init", "zero"), ("update_every", None))
LATER_PROTOCOL = ("looks", "budget_gpu_hours", "search_fraction", "attribution", "export_seeds",
                  "sampler")  # fmt: skip
"""Keys that came after the first version: studies that leave them at their default keep their hash."""


def _drop_defaults(value: dict[str, Any], section: type, keys: tuple[str, ...]) -> None:
    """Remove those of `keys` that are at the default of `section`."""
    defaults = {f.name: _jsonable(f.default) for f in fields(section)}
    for key in keys:
        if value[key] == defaults[key]:
            value.pop(key)


def _component(value: Mapping[str, Any]) -> Component:
    settings = {k: v for k, v in value.items() if k != "name"}
    return Component(name=value["name"], settings=settings)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _jsonable(value: Any) -> Any:
    """`value` with tuples turned into lists, so that it equals what JSON gives back."""
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return value


RECIPE_FIELDS = tuple(f.name for f in fields(Recipe))
