"""Proposals: a drawn or searched setting of the study becomes one point per arm.

All arms of a request get the same shared part, those with the add-on the same add-on part. The score
that a search is told favors neither side. Knows nothing of stages, blocks or streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aim_tune.protocol.sampling import Space, TpeSearch, contains, draw
from aim_tune.protocol.stages import Propose, Scores, mean
from aim_tune.spec.request import Point, Request
from aim_tune.spec.space import Domain, Fixed
from aim_tune.spec.study import BASELINE, Study
from aim_tune.spec.values import derive_seed

Recorded = Callable[[str], Request | None]
"""Position -> the request that was asked there before, if any."""


def nothing_recorded(position: str) -> Request | None:
    """Of a study that begins."""
    return None


def whole_space(
    study: Study,
    design: Mapping[str, Any] | None = None,
    shared: Mapping[str, Domain] | None = None,
) -> Space:
    """Shared settings (`shared` in place of the study's) and the add-on's, which stand still where
    explore has chosen a `design`."""
    addon: Space = study.addon.space if study.addon and study.addon_arms else {}
    if design is not None:
        addon = {name: Fixed(value) for name, value in design.items()}
    shared = study.shared if shared is None else shared
    return {**prefixed("shared.", shared), **prefixed("addon.", addon)}


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `prefix` before every key: shared and add-on settings may have one name."""
    return {f"{prefix}{name}": value for name, value in values.items()}


def random_points(
    study: Study, space: Space, home: str, arms: Sequence[str] | None = None
) -> Propose:
    """Seeded uniform draws, for all arms of the study or for `arms`."""

    def propose(number: int, results: Sequence[Scores | None]) -> dict[str, Point]:
        generator = np.random.default_rng(point_seed(study, home, number))
        return same_point(draw(space, generator), study.arms if arms is None else arms)

    return propose


def searched_points(
    study: Study,
    space: Space,
    home: str,
    trials: int,
    value: Callable[[Study, Scores], float | None],
    arms: Sequence[str] | None = None,
    recorded: Recorded = nothing_recorded,
) -> Propose:
    """Proposals by TPE told `value` of each result, for all arms of the study or for `arms`; what is
    `recorded` is not proposed again."""
    search = TpeSearch(space, trials=trials, lag=study.protocol.explore.lag)

    def propose(number: int, results: Sequence[Scores | None]) -> dict[str, Point]:
        def known(index: int) -> float | None:
            scores = results[index]
            assert scores is not None, "the lag holds a request back until this is told"
            return value(study, scores)

        found = search.ask(
            known,
            seed=point_seed(study, home, number),
            recorded=values_of(recorded(f"{home}/{number}"), space),
        )
        return same_point(found, study.arms if arms is None else arms)

    return propose


def same_point(values: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Point]:
    """One drawn point for all arms of a twin; the backbone alone leaves the add-on part out."""
    shared = _part(values, "shared.")
    addon = _part(values, "addon.")
    return {arm: Point(shared=shared, addon={} if arm == BASELINE else addon) for arm in arms}


def values_of(request: Request | None, space: Space) -> dict[str, Any] | None:
    """The proposal that became `request`, inverse of `same_point`; None where the request does not tell
    it (no arm has the add-on part) or it is no point of the space: it is then proposed again."""
    for point in request.arms.values() if request else ():
        values = {**prefixed("shared.", point.shared), **prefixed("addon.", point.addon)}
        if contains(space, values):
            return {name: values[name] for name in sorted(values)}
    return None


def addon_mean(study: Study, scores: Scores) -> float | None:
    """Mean of the arms of `scores` that have the add-on; of all arms where none has."""
    own = [scores[arm] for arm in study.addon_arms if arm in scores]
    return mean(own or list(scores.values()))


def even_mean(study: Study, scores: Scores) -> float | None:
    """Mean of the baseline's score and the add-on arms' mean: favors neither side."""
    sides = [addon_mean(study, scores)]
    if BASELINE in scores:
        sides.append(scores[BASELINE])
    return mean(sides)


def point_seed(study: Study, home: str, number: int) -> int:
    """Seed of the proposal number `number`."""
    return derive_seed(study.protocol.seed, f"{home}/{number}", "point")


def _part(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
