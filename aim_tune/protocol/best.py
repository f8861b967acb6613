"""The configuration worth keeping, as plain values for best_config.yaml. Pure: no files, no training.

Chosen by validation alone: in each block the arm's best point was trained anew in its confirm pairs;
the block whose confirm runs have the highest mean validation accuracy gives the point. With
`protocol.export_seeds` the study ends with re-runs of that point on fresh seeds and splits. The expected
score is the mean test accuracy over ALL confirm runs of the arm, what tuning like this gives on
average; never a maximum of a search. `recorded` is the training that a retraining repeats exactly: of the
re-runs the middle one by validation accuracy, neither the luckiest nor the unluckiest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from aim_tune.errors import UserError, unknown
from aim_tune.ledger import History, Training
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.amounts import MOST_FAILED, failures, requests_to_run, study_status
from aim_tune.stats.explored import pareto_set

FORMAT = "aim_tune.best_config/1"
WITHIN_POINTS = 1.0
"""Validation accuracy that may be given up for another objective."""
EXPECTED = ("test_accuracy", "test_accuracy_sd", "val_accuracy", "reruns")
ONE_TRAINING = "not measured: of the trade-offs in explore, where each point was trained once"


def best_config(
    study: Study,
    history: History,
    verdict: Mapping[str, Any] | None,
    arm: str | None = None,
    *,
    allow_unfinished: bool = False,
    sentence: str = "",
    objective: str | None = None,
    within_points: float = WITHIN_POINTS,
) -> dict[str, Any]:
    """The best configuration of `arm`, with where it comes from. Keys: see the file it becomes.

    Default arm: the add-on's after a verdict "better"; else the baseline, as nothing shows that the
    add-on is worth its cost; in plain search the arm with the best validation accuracy. `verdict` is
    Verdict.to_dict() and `sentence` its words. With `objective` the arm's Pareto set of explore gives the
    point: the one with the least of it, at most `within_points` less accurate than the best. Raises
    UserError for an unknown arm or objective, for an unfinished or failed study unless
    `allow_unfinished`, and where the arm has no finished training at all.
    """
    status = study_status(study, history)
    if status != "complete" and not allow_unfinished:
        raise UserError(_refusal(study, history, status))
    chosen = arm or _default_arm(study, history, verdict)
    if chosen not in study.arms:
        raise UserError(unknown("arm", chosen, study.arms))
    if objective is not None:
        found = _traded(study, history, chosen, objective, within_points)
    else:
        found = _found(history, chosen)
    others = [arm for arm in study.arms if arm != chosen and _runs(history, arm)]
    return {
        "format": FORMAT,
        "arm": chosen,
        "study": study.to_dict(),
        **found,
        "others": {arm: _found(history, arm) for arm in others},
        "provenance": _provenance(study, history, status, verdict, sentence),
    }


def _found(history: History, arm: str) -> dict[str, Any]:
    """What the study found for one arm: all that a retraining of it needs beside the study."""
    training = _recorded(history, arm)
    return {
        "point": training.point.to_dict(),
        "streams": dict(training.streams),
        "expected": _expected(history, arm),
        "recorded": _record(training),
    }


def _traded(
    study: Study, history: History, arm: str, objective: str, within_points: float
) -> dict[str, Any]:
    """The same for the training of the Pareto set with the least `objective`, accurate enough."""
    costs = [name for name in study.protocol.explore.objectives if name != "val_accuracy"]
    if objective not in costs:
        known = f"it has {', '.join(costs)}" if costs else "it has none beside val_accuracy"
        raise UserError(
            f"the study was not searched for {objective!r}: {known} (protocol.explore.objectives)."
        )
    offers = pareto_set(study, history, arm)
    if not offers:
        raise UserError(f"arm {arm!r} has no finished explore training: nothing to choose from.")
    least = offers[0].val_accuracy - within_points / 100
    good = [o for o in offers if o.val_accuracy >= least]
    best = min(good, key=lambda offer: getattr(offer, objective))
    training = history.trainings[best.position, arm]
    return {
        "point": training.point.to_dict(),
        "streams": dict(training.streams),
        "expected": {
            **dict.fromkeys(EXPECTED),
            "n_confirm": 0,
            "n_blocks": 0,
            "note": ONE_TRAINING,
        },
        "recorded": _record(training),
    }


def _refusal(study: Study, history: History, status: str) -> str:
    if status == "unfinished":
        done, planned = len(history.done), requests_to_run(study, history)
        return (
            f"the study is unfinished: {done} of {planned} requests are done. Run the same search "
            "command again to finish it, or export what there is with --allow-unfinished."
        )
    failed, ended = failures(history)
    return (
        f"the study has failed: {failed} of {ended} trainings failed or ran out of memory (at most "
        f"{MOST_FAILED:.0%} may). See the reasons in the report, or export all the same "
        "with --allow-unfinished."
    )


def _default_arm(study: Study, history: History, verdict: Mapping[str, Any] | None) -> str:
    word = (verdict or {}).get("verdict", "not_asked")
    if word == "better":
        return str((verdict or {})["arm"])
    if word != "not_asked" and BASELINE in study.arms:
        return BASELINE
    runs = {arm: _runs(history, arm) for arm in study.arms}
    return max(study.arms, key=lambda arm: _level(runs[arm][0]) if runs[arm] else -1.0)


def _recorded(history: History, arm: str) -> Training:
    """The training to keep: the middle one of the re-runs; without any the first of the best group."""
    reruns = sorted(_reruns(history, arm), key=lambda t: (t.score or 0.0, t.index))
    if reruns:
        return reruns[(len(reruns) - 1) // 2]
    runs = _runs(history, arm)
    if not runs:
        raise UserError(
            f"arm {arm!r} has no finished training with a score: nothing to export. Run the same "
            "search command again, or choose another arm."
        )
    return runs[0][0]


def _reruns(history: History, arm: str) -> list[Training]:
    """The scored re-runs of the arm's best point, of the study's latest end."""
    rows = [t for t in history.rows("export", arm) if t.score is not None]
    latest = max((_end(t) for t in rows), default=0)
    return [t for t in rows if _end(t) == latest]


def _end(rerun: Training) -> int:
    """After how many blocks a re-run was made."""
    return int(rerun.position.split("/")[1])


def _runs(history: History, arm: str) -> list[list[Training]]:
    """Trainings of one point each, best mean validation first: a block's confirm runs; without any,
    single twins; without any, single explore trials."""
    for stage in ("confirm", "twin", "explore"):
        groups: dict[object, list[Training]] = {}
        for row in history.rows(stage, arm):
            if row.score is not None and row.status != "pruned" and row.reused_from is None:
                key = row.block if stage == "confirm" else row.position
                groups.setdefault(key, []).append(row)
        if groups:
            return sorted(
                groups.values(), key=_level, reverse=True
            )  # stable: ties keep their order
    return []


def _level(rows: Sequence[Training]) -> float:
    return fmean(row.score for row in rows if row.score is not None)


def _expected(history: History, arm: str) -> dict[str, Any]:
    """What the configuration may be expected to reach."""
    rows = [t for t in history.rows("confirm", arm) if t.test_accuracy is not None]
    tests = [t.test_accuracy for t in rows if t.test_accuracy is not None]
    vals = [t.score for t in rows if t.score is not None]
    return {
        "test_accuracy": fmean(tests) if tests else None,
        "test_accuracy_sd": stdev(tests) if len(tests) > 1 else None,
        "val_accuracy": fmean(vals) if vals else None,
        "n_confirm": len(tests),
        "n_blocks": len({t.block for t in rows}),
        "reruns": _rerun_level(history, arm),
        "note": "mean over all confirm runs of the arm, not the maximum of a search"
        if tests
        else "not measured: the study has no finished confirm runs; a search maximum is no estimate",
    }


def _rerun_level(history: History, arm: str) -> dict[str, Any] | None:
    """Validation accuracy of this very point on fresh seeds and splits; None without re-runs."""
    scores = [t.score for t in _reruns(history, arm) if t.score is not None]
    if not scores:
        return None
    spread = stdev(scores) if len(scores) > 1 else None
    return {"n": len(scores), "val_accuracy": fmean(scores), "val_accuracy_sd": spread}


def _record(training: Training) -> dict[str, Any]:
    """The training as it happened, for an exact repetition."""
    result = training.result
    assert result is not None, "only finished trainings are kept"
    return {
        "position": training.position,
        "allotted_steps": result.allotted_steps,
        "steps": [m.step for m in training.curve],
        "val_accuracy": [m.val_accuracy for m in training.curve],
        "test_accuracy": training.test_accuracy,
        "status": result.status,
        "device": result.device,
        "weights_sha256": result.weights_sha256,
    }


def _provenance(
    study: Study,
    history: History,
    status: str,
    verdict: Mapping[str, Any] | None,
    sentence: str,
) -> dict[str, Any]:
    declared = history.declared or {}
    return {
        "study_name": study.name,
        "study_hash": declared.get("study_hash", study.study_hash),
        "code_hash": declared.get("code_hash"),
        "data_digest": declared.get("data_digest"),
        "versions": dict(declared.get("versions", {})),
        "seed": study.protocol.seed,
        "status": status,
        "verdict": (verdict or {}).get("verdict"),
        "sentence": sentence,
    }
