"""What must hold between the keys of `protocol.explore` and the rest of a study. Yields faults in words."""

from __future__ import annotations

from collections.abc import Iterator

from aim_tune.errors import unknown
from aim_tune.spec.study import BASELINE, MEASURED, Study

PLACE = "protocol.explore"


def explore_faults(study: Study) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of everything that does not go together."""
    explore = study.protocol.explore
    yield from _arms(study)
    for key in ("narrow", "stopping", "warm_start"):
        if getattr(explore, key) and not explore.trials:
            yield f"{PLACE}.{key}", "there is no explore: set protocol.explore.trials, or remove it"
    if explore.narrow and study.compares and not _both_sides(study):
        text = (
            "needs the explore scores of the baseline and of an arm with the add-on, else the ranges "
            f"would suit one side only; explore trains {', '.join(study.explore_arms)}"
        )
        yield f"{PLACE}.narrow", text
    if "val_accuracy" not in explore.objectives:
        yield f"{PLACE}.objectives", "must name val_accuracy: the design is chosen by it"
    if explore.warm_start and "step_ms" in explore.objectives:
        text = "does not go with the objective step_ms: step times of another run do not compare"
        yield f"{PLACE}.warm_start", text + "; remove one of the two"
    if explore.stopping and len(explore.objectives) > 1:
        text = "does not go with several objectives: Optuna's TPE takes no stopped trials there"
        yield f"{PLACE}.stopping", text


def _arms(study: Study) -> Iterator[tuple[str, str]]:
    named, key = study.protocol.explore.arms, f"{PLACE}.arms"
    for arm in named:
        if arm not in study.arms:
            yield key, unknown("arm", arm, study.arms)
        elif arm in MEASURED:
            yield (
                key,
                f"{arm} cannot take part: it must cost what the design costs that explore chooses",
            )
    if named and study.addon_arms and not set(named) & set(study.addon_arms):
        text = (
            f"names no arm with the add-on, whose design is looked for; add {study.addon_arms[0]}"
        )
        yield key, text


def _both_sides(study: Study) -> bool:
    arms = study.explore_arms
    return BASELINE in arms and any(arm in study.addon_arms for arm in arms)
