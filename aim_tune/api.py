"""For notebooks: a study as a function call, its outcome as a value. The code is `search`'s (see launch).

Raises UserError where the command would end with exit code 2. Of the top layer: `aim_tune.run` and
`aim_tune.load` bring it in on first use.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.errors import Fault, StudyError, UserError
from aim_tune.ledger import History
from aim_tune.spec import Catalog, Study, dump, load_study
from aim_tune.tables import HOUSE, catalog_of

if TYPE_CHECKING:
    import pandas as pd

FILES = {
    "report": "report.html",
    "verdict": "verdict.json",
    "best": "best_config.yaml",
    "study": "study.yaml",
    "ledger": "ledger.jsonl",
}


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study and what it has come to. In a notebook its last line shows the verdict."""

    study: Study
    folder: Path
    """results/NAME."""
    history: History = field(repr=False)
    """Everything that happened: requests, trainings with their curves, looks."""
    verdict: dict[str, Any] = field(repr=False)
    """As in verdict.json: verdict, effect_points, ci95_points, comparisons, arms..."""
    sentence: str
    """The verdict in words."""
    status: str
    """complete, unfinished or failed."""
    paths: dict[str, Path] = field(repr=False)
    """report, verdict, best, study, ledger -> file, for those that are there."""

    @property
    def report_html(self) -> str:
        """The whole report as one page; save it, or show it in a frame."""
        from aim_tune.protocol.importance import importances
        from aim_tune.reporting.html import report_html
        from aim_tune.stats import Verdict

        verdict = Verdict.from_dict(self.verdict)
        return report_html(self.study, self.history, verdict, importances(self.study, self.history))

    def table(self) -> pd.DataFrame:
        """One row per training: position, stage, block, arm, status, its point (`shared.*`, `addon.*`),
        val_accuracy, test_accuracy, parameters, seconds..."""
        import pandas as pd

        return pd.DataFrame([_row(training) for training in self.history.rows()])

    def _repr_html_(self) -> str:
        from html import escape

        arms = [
            f"<tr><td>{escape(name)}</td><td>{_figure(arm['mean_points'])}</td>"
            f"<td>{_figure(arm['sd_points'])}</td><td>{arm['runs']}</td></tr>"
            for name, arm in self.verdict["arms"].items()
        ]
        head = "<tr><th>arm</th><th>test accuracy, %</th><th>sd</th><th>confirm runs</th></tr>"
        return (
            f"<div><p><b>{escape(self.study.name)}</b>: {escape(self.sentence)}</p>"
            f"<table>{head}{''.join(arms)}</table><p><code>{escape(str(self.folder))}</code></p></div>"
        )


def run(
    study: Study | Mapping[str, Any] | Path | str,
    *,
    out: Path | str = "results",
    engine: str = "ray",
    slots: int | None = None,
    quiet: bool = False,
    tracking: str = "on",
    tracking_uri: str | None = None,
    fork: bool = False,
    overrides: tuple[str, ...] | list[str] = (),
) -> StudyResult:
    """Run a study to its verdict, or go on with it: the same call again trains nothing twice.

    `study` is a file, a mapping in the shape of a study file (plug-ins relative to the current folder),
    or a Study. `engine`: ray, or in_process (one training at a time, here). `tracking` to MLflow: on,
    optional, off. `overrides` are texts such as "protocol.blocks=10". Raises UserError (StudyError,
    DataError, ResumeError...) with what to do; KeyboardInterrupt leaves a study that goes on.

        result = aim_tune.run("search_spaces/quickstart.yaml", engine="in_process")
        result.table().groupby("arm").test_accuracy.mean()
    """
    from aim_tune.engine.stop import Stop
    from aim_tune.launch import How, run_study
    from aim_tune.reporting.terminal import Console

    _check("engine", engine, ("ray", "in_process"))
    _check("tracking", tracking, ("on", "optional", "off"))
    asked, catalog = _read(study, overrides)
    how = How(out=Path(out), fork=fork, engine=engine, slots=slots, tracking=tracking,
              tracking_uri=tracking_uri)  # fmt: skip
    main = threading.current_thread() is threading.main_thread()  # signals are its alone
    with Stop() if main else nullcontext() as stop:
        outcome = run_study(
            asked, catalog, how, console=Console(quiet=quiet, highlight=False), stop=stop
        )
    return load(outcome.folder)


def load(folder: Path | str) -> StudyResult:
    """The outcome of a results folder, finished or not. Raises LedgerError where there is none."""
    from aim_tune.report import decided, read_results
    from aim_tune.reporting.words import document, sentence
    from aim_tune.stats import slot_use
    from aim_tune.stats.amounts import study_status

    home = Path(folder)
    study, history = read_results(home)
    verdict = decided(study, history)
    return StudyResult(
        study=study,
        folder=home,
        history=history,
        verdict=document(verdict, slot_use(study, history)),
        sentence=sentence(verdict),
        status=study_status(study, history),
        paths={what: home / name for what, name in FILES.items() if (home / name).is_file()},
    )


def _read(
    study: Study | Mapping[str, Any] | Path | str, overrides: tuple[str, ...] | list[str]
) -> tuple[Study, Catalog]:
    """A study from whatever form it is given in, checked as a file is."""
    if isinstance(study, Study):
        if not overrides:
            return study, catalog_of(study.plugins)
        study = study.to_dict()
    if isinstance(study, Mapping):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=".", encoding="utf-8") as file:
            file.write(dump(dict(study)))
            file.flush()
            try:
                return load_study(Path(file.name), HOUSE, overrides)
            except StudyError as error:
                name = Path(file.name).name
                raise StudyError([_named(fault, name) for fault in error.faults]) from None
    return load_study(Path(study), HOUSE, overrides)


def _named(fault: Fault, name: str) -> Fault:
    """A fault of the temporary file as one of the mapping."""
    return Fault(where="study", key=fault.key, text=fault.text) if name in fault.where else fault


def _check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{what}={value!r}: one of {', '.join(map(repr, allowed))}")


def _row(training: Any) -> dict[str, Any]:
    result = training.result
    return {
        "position": training.position,
        "stage": training.stage,
        "block": training.block,
        "arm": training.arm,
        "status": training.status,
        **{f"shared.{name}": value for name, value in training.point.shared.items()},
        **{f"addon.{name}": value for name, value in training.point.addon.items()},
        "val_accuracy": training.score,
        "test_accuracy": training.test_accuracy,
        "steps": result.steps if result else None,
        "seconds": result.seconds if result else None,
        "step_ms": result.step_ms if result else None,
        "parameters": result.parameters if result else None,
        "device": result.device if result else None,
    }


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
