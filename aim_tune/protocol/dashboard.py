"""A study as Optuna studies in a sqlite file, for optuna-dashboard; made from the ledger, never read back.

One Optuna study per arm and kind of search: NAME/explore/ARM holds the trials of explore, NAME/twins/ARM
those of all blocks. Values are validation accuracies. Trials that explore went on from are not among them:
they were trained on other streams, and their own study has them. Search itself keeps no such file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from aim_tune.errors import UserError
from aim_tune.ledger import History, Training
from aim_tune.protocol.points import prefixed, whole_space
from aim_tune.protocol.sampling import Space, distributions, encode
from aim_tune.spec.study import BASELINE, Study


def write_dashboard(path: Path, study: Study, history: History) -> dict[str, int]:
    """Write a new file at `path`; name of each Optuna study -> its trials.

    Raises UserError where something is at `path` already: a search may use it.
    """
    if path.exists():
        raise UserError(f"{path} is there already; name another file, or remove it")
    storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
    written = {}
    for stage, kind in (("explore", "explore"), ("twin", "twins")):
        for arm in study.arms:
            rows = [t for t in history.rows(stage, arm) if t.done]
            if rows:
                name = f"{study.name}/{kind}/{arm}"
                left_out = earlier_trials(study) if kind == "explore" else ""
                _write(storage, name, _space(study, arm), rows, left_out)
                written[name] = len(rows)
    return written


def earlier_trials(study: Study) -> str:
    """What explore went on from and the file leaves out, in words; "": nothing."""
    start = study.protocol.explore.went_on_from
    return f"{start.said}, which explore went on from" if start else ""


def _space(study: Study, arm: str) -> Space:
    space = whole_space(study)
    return {k: d for k, d in space.items() if arm != BASELINE or k.startswith("shared.")}


def _write(
    storage: optuna.storages.RDBStorage,
    name: str,
    space: Space,
    rows: Sequence[Training],
    left_out: str,
) -> None:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        found = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        found.add_trials([_trial(space, training) for training in rows])
        if left_out:
            found.set_user_attr("not_in_here", left_out)
    finally:
        optuna.logging.set_verbosity(level)


def _trial(space: Space, training: Training) -> FrozenTrial:
    """One training; a narrowed or fixed setting stays a parameter of its own range."""
    point = training.point
    values = {**prefixed("shared.", point.shared), **prefixed("addon.", point.addon)}
    known: Space = {name: domain for name, domain in space.items() if name in values}
    scored = training.score is not None
    return create_trial(
        state=TrialState.COMPLETE if scored else TrialState.FAIL,
        value=training.score,
        params=encode(known, values),
        distributions=distributions(known),
        user_attrs={"position": training.position, "status": training.status},
        intermediate_values={m.step: m.val_accuracy for m in training.curve},
    )
