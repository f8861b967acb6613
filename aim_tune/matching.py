"""The request match/0: how long a step of each arm takes here, and how wide the baseline must be to take as
long as the add-on. Workers run it; `time_matched` and `step_matched` are made from what it reports.

A step time depends on the machine, so it is measured once for a study and recorded; nothing is trained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import nn

from aim_tune.arms import build_arm
from aim_tune.data.source import Source
from aim_tune.errors import AttachError
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.request import Point, Request
from aim_tune.spec.study import BASELINE, STEP_MATCHED, Study
from aim_tune.training.group import ALONE, Group
from aim_tune.training.step_times import interleaved_step_ms

WIDER = (1.0, 1.15, 1.4, 1.8, 2.5, 4.0)
"""Candidates for the widened baseline: so many times its parameters. Where the last is too fast (small
networks wait for the CPU, not for arithmetic), it is doubled up to MOST_WIDER."""
MOST_WIDER = 256.0
NEAR = (0.0, 0.01, -0.01, 0.02, -0.02, 0.04, -0.04)
"""Where whole channels do not give a number of parameters, these shares beside it are tried."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What match/0 says of one arm."""

    step_ms: float
    parameters: int
    detail: str = ""


def match(
    study: Study,
    catalog: Catalog,
    source: Source,
    request: Request,
    device: torch.device,
    group: Group = ALONE,
) -> dict[str, Measured]:
    """Step time and parameters of the arms of a match request; of step_matched, of the width that fits.

    With a `group` all its ranks call this alike. Raises AttachError where the baseline cannot be widened so
    far, and what the builders raise.
    """
    bench = _Bench(study=study, catalog=catalog, source=source, request=request, device=device,
                   group=group)  # fmt: skip
    if STEP_MATCHED not in request.arms:
        return bench.measured(dict.fromkeys(request.arms))
    wide, detail = bench.width()
    found = bench.measured({arm: wide if arm == STEP_MATCHED else None for arm in request.arms})
    return {**found, STEP_MATCHED: replace(found[STEP_MATCHED], detail=detail)}


@dataclass(frozen=True, kw_only=True)
class _Bench:
    study: Study
    catalog: Catalog
    source: Source
    request: Request
    device: torch.device
    group: Group

    def width(self) -> tuple[int, str]:
        """Parameters at which a step takes as long as one of the primary arm; and how that was found."""
        own = _parameters(self.build(BASELINE, None))
        found = self.compared([round(own * times) for times in WIDER])
        widest = WIDER[-1]
        while (wanted := interpolated(found)) is None and widest < MOST_WIDER:
            widest *= 2
            found += self.compared([round(own * widest)])
        detail = ", ".join(f"{n:,} parameters {share:.3f}" for n, share in found)
        detail = f"step times over that of {self.study.primary}: {detail}"
        if wanted is None:
            raise AttachError(
                f"step_matched: with {widest:g} times the parameters the baseline is still faster than "
                f"{self.study.primary} ({detail}); leave it out"
            )
        fits = (max(own, round(wanted * (1 + share))) for share in NEAR)
        return next((n for n in fits if self.widened(n) is not None), own), detail

    def compared(self, sizes: Sequence[int]) -> list[tuple[int, float]]:
        """Baselines of about these sizes: parameters, and step time over that of the primary arm."""
        candidates = {str(n): m for n in sizes if (m := self.widened(n)) is not None}
        times = self.times({"primary": self.build(str(self.study.primary), None), **candidates})
        return [(_parameters(m), times[n] / times["primary"]) for n, m in candidates.items()]

    def measured(self, widths: Mapping[str, int | None]) -> dict[str, Measured]:
        """Arms, built as wide as said, measured together."""
        models = {arm: self.build(arm, widen_to) for arm, widen_to in widths.items()}
        times = self.times(models)
        return {
            arm: Measured(step_ms=times[arm], parameters=widths[arm] or _parameters(model))
            for arm, model in models.items()
        }

    def times(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        recipe = self.study.recipe_of(BASELINE, self.request.arms[BASELINE].shared)
        streams = self.request.streams
        return interleaved_step_ms(
            models,
            self.source,
            split=self.source.split(streams["split"]),
            recipes=dict.fromkeys(models, recipe),
            streams=streams,
            device=self.device,
            group=self.group,
        )

    def widened(self, parameters: int) -> nn.Module | None:
        """The baseline with about so many parameters; None where whole channels do not give it."""
        try:
            return self.build(STEP_MATCHED, parameters)
        except AttachError as error:
            if "cannot match" in str(error):
                return None
            raise

    def build(self, arm: str, widen_to: int | None) -> nn.Module:
        point = self.request.arms[arm]
        if widen_to is not None:
            point = Point(shared=point.shared, addon={**point.addon, "widen_to": widen_to})
        return build_arm(
            self.study,
            self.catalog,
            arm,
            point,
            streams=self.request.streams,
            info=self.source.info,
        )


def interpolated(found: Sequence[tuple[int, float]], wanted: float = 1.0) -> int | None:
    """The number of parameters at which a step takes `wanted`; step times grow with it, noise aside.

    The smallest where even that takes longer; None where none takes so long.

    >>> interpolated([(100, 0.5), (200, 1.5), (400, 2.5)])
    150
    """
    sizes, times = [n for n, _ in found], list(accumulate((time for _, time in found), max))
    place = bisect_left(times, wanted)
    if place == len(times):
        return None
    if place == 0:
        return sizes[0]
    share = (wanted - times[place - 1]) / (times[place] - times[place - 1])
    return round(sizes[place - 1] + share * (sizes[place] - sizes[place - 1]))


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
