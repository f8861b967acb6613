"""How many slots were training, in words: one line, and where that is little, why and what to do."""

from __future__ import annotations

from aim_tune.spec.study import Study
from aim_tune.stats.slots import SlotUse


def slots_line(use: SlotUse) -> str:
    """1.9 of 2 slots training on average (95 %)."""
    many = "slot" if use.slots == 1 else "slots"
    return f"{use.busy:.1f} of {use.slots} {many} training on average ({100 * use.share:.0f} %)"


def slots_warning(study: Study, use: SlotUse) -> str:
    """What is said where slots were idle; "" where they were not."""
    if not use.low:
        return ""
    why = {"explore": _explore, "looks": _looks, "between": _between}[use.cause](study, use)
    return f"Only {slots_line(use)}. {why}"


def _explore(study: Study, use: SlotUse) -> str:
    lag = study.protocol.explore.lag
    jobs = lag * (len(study.explore_arms) if study.resources.pack == "arm" else 1)
    if jobs < use.slots:
        return (
            f"Explore caused most of it: explore.lag {lag} lets {jobs} of them train at a time. Fewer slots "
            f"are as fast there; a new study may take a larger lag (--set protocol.explore.lag={use.slots}), "
            "with proposals that know less."
        )
    return (
        "Explore caused most of it: the blocks wait until its last training is over. Fewer slots are "
        "nearly as fast."
    )


def _looks(study: Study, use: SlotUse) -> str:
    return (
        "Planned looks caused most of it: each waits until the blocks before it are whole. Fewer slots are "
        "nearly as fast."
    )


def _between(study: Study, use: SlotUse) -> str:
    gap = use.between * use.training_s / use.share
    pack = ", and resources.pack: twin starts fewer jobs" if study.resources.pack == "arm" else ""
    return (
        f"Trainings are short: one takes {use.training_s:.1f} s, and {gap:.1f} s pass before the slot trains "
        f"again. Longer ones (recipe.steps) waste less{pack}."
    )
