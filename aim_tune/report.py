"""The verb: a ledger becomes verdict.json and report.html again. Trains nothing, reads no test label.

Everything shown is rebuilt from ledger.jsonl, so a deleted or outdated page costs nothing, and the
page of a search that still runs shows its whole blocks so far. Starts light.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_tune import options
from aim_tune.artifacts.files import write_whole
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_NOT_MET, UserError

if TYPE_CHECKING:
    from aim_tune.ledger import History
    from aim_tune.reporting.side_by_side import Result
    from aim_tune.spec.study import Study
    from aim_tune.stats.verdict import Verdict


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.report",
        description="Writes verdict.json and report.html of a study anew, from its ledger. Takes "
        "seconds; also while the search runs (then: whole blocks so far, interim). Several studies get "
        "a page side by side as well.",
        epilog="Exit codes: 0 done, 2 bad input, 4 --fail-unless not met.",
    )
    p.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="results of a study: results/NAME"
    )
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="page of several studies (side_by_side.html in the folder that holds the first one)",
    )
    p.add_argument(
        "--importance",
        choices=("fANOVA", "PED-ANOVA"),
        default="fANOVA",
        help="how the report says which setting matters (fANOVA; it finds a choice that decides alone "
        "more often)",
    )
    options.add_fail_unless(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    try:
        results = [_report(folder, args) for folder in args.folders]
        if len(results) > 1:
            _side_by_side(results, args.output)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    wanted = args.fail_unless
    others = [v for v in (r.verdict.verdict for r in results) if wanted and v != wanted]
    for verdict in others:
        options.complain(f"The verdict is {verdict}, not {wanted}.")
    return EXIT_NOT_MET if others else EXIT_DONE


def read_results(folder: Path, *, curves: bool = True) -> tuple[Study, History]:
    """The study of a results folder, with blocks that were added, and what has happened to it; without
    `curves` the validation passes are left out, which is faster.

    Raises LedgerError where there is no ledger or a damaged one, UserError where it is still empty.
    """
    from aim_tune.ledger import holder, read_history
    from aim_tune.spec.study import Study

    if not (folder / "ledger.jsonl").is_file() and (near := sorted(folder.glob("*/ledger.jsonl"))):
        names = ", ".join(str(path.parent) for path in near[:5])
        raise UserError(f"{folder} holds studies and is none itself; name one, such as {names}")
    history = read_history(folder / "ledger.jsonl", curves=curves)
    if history.declared is None:
        who = holder(folder / "ledger.jsonl")
        begun = f"the search is starting ({who})" if who else "the search has not begun yet"
        raise UserError(f"{folder / 'ledger.jsonl'} is empty: {begun}")
    study = Study.from_dict(history.declared["study"])
    if history.blocks is not None:
        study = replace(study, protocol=replace(study.protocol, blocks=history.blocks))
    return study, history


def decided(study: Study, history: History) -> Verdict:
    """The verdict that the history supports now; which study on its test data it is stays as recorded."""
    from aim_tune.stats.verdict import decide

    return decide(study, history, study_number=(history.verdict or {}).get("study_number"))


def _report(folder: Path, args: argparse.Namespace) -> Result:
    """Write what is derived from one ledger, and show it."""
    from aim_tune.protocol.importance import importances
    from aim_tune.reporting.html import write_report
    from aim_tune.reporting.side_by_side import Result
    from aim_tune.reporting.terminal import Console, show_summary
    from aim_tune.reporting.words import document
    from aim_tune.stats import slot_use

    study, history = read_results(folder)
    verdict = decided(study, history)
    paths = {"report": folder / "report.html", "verdict": folder / "verdict.json"}
    write_whole(
        paths["verdict"], json.dumps(document(verdict, slot_use(study, history)), indent=2) + "\n"
    )
    weights = importances(study, history, args.importance)
    write_report(paths["report"], study, history, verdict, weights, args.importance)
    console = Console(highlight=False)
    show_summary(
        console, verdict, paths={what: str(path) for what, path in paths.items()}, commands={}
    )
    return Result(study=study, history=history, verdict=verdict, report=paths["report"])


def _side_by_side(results: Sequence[Result], output: Path | None) -> None:
    from aim_tune.reporting.side_by_side import summary, write_side_by_side

    path = output or results[0].report.resolve().parent.parent / "side_by_side.html"
    try:
        write_side_by_side(path, results)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"\n{summary(results)}\n  side by side  {path}")


if __name__ == "__main__":
    sys.exit(main())
