"""The verb: a finished study becomes best_config.yaml, all that a retraining needs in one file.

Which configuration is best is decided in protocol.best; this file words and writes it. The loop of
search and retraining closes through this file, never through an import. Starts light.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune import options
from aim_tune.artifacts.files import write_whole
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError
from aim_tune.report import read_results

if TYPE_CHECKING:
    from aim_tune.ledger import History
    from aim_tune.spec.study import Study


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.export",
        description="Writes the best configuration of a study, with its provenance, as one YAML file "
        "for `python -m aim_tune.retrain`. Takes seconds.",
        epilog="Default arm: the add-on's where it was shown to be better, else the baseline (in plain "
        "search: the best by validation). A file that is there is replaced only if it is a "
        "configuration of the same study, or with --force. Exit codes: 0 done, 2 bad input.",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="results of a study: results/NAME")
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write; - prints it (FOLDER/best_config.yaml)",
    )
    p.add_argument("--arm", help="another arm than the default")
    p.add_argument(
        "--objective",
        choices=("step_ms", "parameters"),
        help="not the most accurate configuration but, of those that explore found within --within points "
        "of it, the one with the least of this (the study names it in protocol.explore.objectives)",
    )
    p.add_argument(
        "--within",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="validation accuracy that may be given up for --objective (1.0)",
    )
    p.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="also export from a study that is unfinished or has failed; the file says so",
    )
    p.add_argument("--force", action="store_true", help="replace any file")
    p.add_argument(
        "--optuna",
        type=Path,
        metavar="FILE",
        help="write the searches as Optuna studies into a new sqlite file instead, for optuna-dashboard",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    from aim_tune.artifacts.config import config_text
    from aim_tune.tables import catalog_of

    try:
        study, history = read_results(args.folder)
        if args.optuna is not None:
            print(_write_optuna(args.optuna, study, history))
            return EXIT_DONE
        best = _best(study, history, args)
        text = config_text(best, catalog_of(study.plugins))
        if args.output == "-":
            print(text, end="")
            return EXIT_DONE
        path = Path(args.output) if args.output else args.folder / "best_config.yaml"
        _check_target(path, best, force=args.force)
        write_whole(path, text)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    print(_summary(best, path))
    return EXIT_DONE


def _write_optuna(path: Path, study: Study, history: History) -> str:
    from aim_tune.protocol.dashboard import earlier_trials, write_dashboard

    written = write_dashboard(path, study, history)
    left_out = earlier_trials(study)
    return (
        f"{len(written)} Optuna studies, {sum(written.values())} trials: {path}\n"
        + (f"  not in there  {left_out}\n" if left_out else "")
        + f"  show them     pip install optuna-dashboard && optuna-dashboard sqlite:///{path}"
    )


def _best(study: Study, history: History, args: argparse.Namespace) -> dict[str, Any]:
    from aim_tune.protocol.best import best_config
    from aim_tune.reporting.words import sentence
    from aim_tune.stats.verdict import decide

    verdict = decide(study, history)
    return best_config(
        study,
        history,
        verdict.to_dict(),
        args.arm,
        allow_unfinished=args.allow_unfinished,
        sentence=sentence(verdict),
        objective=args.objective,
        within_points=args.within,
    )


def _check_target(path: Path, best: Mapping[str, Any], *, force: bool) -> None:
    """Raise UserError where writing would destroy a file of another kind or study."""
    from aim_tune.spec.yaml_io import load_plain

    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, such as {path / 'best_config.yaml'}")
    if force or not path.exists():
        return
    try:
        there = load_plain(path)
    except UserError:
        there = {}
    if there.get("format") != best["format"]:
        raise UserError(
            f"{path} is there and is no exported configuration. Choose another -o, or --force."
        )
    name, other = best["provenance"]["study_name"], there.get("provenance", {}).get("study_name")
    if other != name:
        raise UserError(
            f"{path} holds the configuration of study {other!r}, this is {name!r}. Choose another "
            "-o, or --force."
        )


def _summary(best: Mapping[str, Any], path: Path) -> str:
    expected = best["expected"]
    score, runs = expected["test_accuracy"], expected["n_confirm"]
    text = (
        f"{100 * score:.2f} % test accuracy (mean of {runs} fresh training{'s' * (runs != 1)})"
        if score is not None
        else "not measured (no finished confirm runs)"
    )
    reruns = expected.get("reruns")
    if score is None and reruns:
        text = f"{100 * reruns['val_accuracy']:.2f} % validation accuracy (mean of {reruns['n']} re-runs)"
    status = best["provenance"]["status"]
    warning = "" if status == "complete" else f"\nThe study is {status}; the file says so."
    return (
        f"Wrote {path}: arm {best['arm']}, expected {text}.{warning}\n"
        f"Next: python -m aim_tune.retrain {path}"
    )


if __name__ == "__main__":
    sys.exit(main())
