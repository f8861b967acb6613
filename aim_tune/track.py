"""The verb: MLflow is brought up to the ledger, or made anew from it. Trains nothing.

A run is known by study, position and arm, so that filling twice adds nothing. `--rebuild` puts the
study's runs into MLflow's waste bin first, for a store that was edited by hand or half copied.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aim_tune import options
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
from aim_tune.report import decided, read_results

if TYPE_CHECKING:
    from aim_tune.ledger import History
    from aim_tune.spec.study import Study

FILES = ("study.yaml", "verdict.json", "report.html", "best_config.yaml")
"""Artifacts of the verdict run, where they are there."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.track",
        description="Brings MLflow up to the ledger of a study: runs, verdict, saved views. Seconds per "
        "hundred trainings. Doing it twice adds nothing. A search that runs does it by itself.",
        epilog="Exit codes: 0 MLflow holds everything, 2 bad input or a store that does not answer.",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="results of a study: results/NAME")
    p.add_argument(
        "--rebuild",
        action="store_true",
        help="first put the study's runs into MLflow's waste bin (`mlflow gc` empties it)",
    )
    options.add_tracking_uri(p, "mlflow.db in the folder above")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    uri = options.tracking_uri(args)
    from aim_tune.ledger import Ledger

    try:
        study, history = read_results(args.folder)
        with Ledger(args.folder / "ledger.jsonl"):  # nobody writes meanwhile
            if args.rebuild:
                _discard(args.folder, study, history, uri)
            return _fill(args.folder, study, history, uri)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT


def _discard(folder: Path, study: Study, history: History, uri: str | None) -> None:
    """Put the study's runs into the waste bin; those of other studies stay."""
    from aim_tune.tracking.content import experiment_name
    from aim_tune.tracking.notes import experiment_note
    from aim_tune.tracking.place import default_uri
    from aim_tune.tracking.store import Store

    artifacts = None if uri else folder.parent / "mlartifacts" / study.name
    store = Store(uri or default_uri(folder.parent), artifacts=artifacts)
    declared = (history.declared or {}).get("study_hash", study.study_hash)
    store.open(experiment_name(study), experiment_note(study))
    runs = store.runs(declared)
    for seen in runs.values():
        store.delete(seen)
    store.close()
    print(f"{len(runs)} runs are in MLflow's waste bin.")


def _fill(folder: Path, study: Study, history: History, uri: str | None) -> int:
    """Write what is missing; the exit code."""
    from aim_tune.reporting.plots_verdict import strip_png
    from aim_tune.reporting.words import sentence
    from aim_tune.tracking.mirror import Mirror
    from aim_tune.tracking.place import shown

    verdict = decided(study, history)
    mirror = Mirror(folder=folder, study=study, uri=uri)
    mirror.start()
    files = [folder / name for name in FILES]
    mirror.finish(verdict.to_dict(), sentence(verdict), files, strip_png(verdict))
    missing = mirror.close()
    if missing:
        options.complain(missing)
        return EXIT_BAD_INPUT
    print(f"MLflow at {shown(mirror.uri)} holds every training of the ledger.")
    for name, address in mirror.views.items():
        print(f"  {name:<29} {address}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
