"""The verb: a study file becomes a verdict. Parses and shows; `launch` does the work.

Everything that can be wrong is found before the first training. Starts light: nothing heavy is
imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune import options
from aim_tune.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NOT_MET,
    EXIT_TOO_MANY_FAILED,
    UserError,
)

if TYPE_CHECKING:
    from aim_tune.engine.stop import Stop
    from aim_tune.launch import Outcome
    from aim_tune.reporting.terminal import Console


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.search",
        description="Does the add-on help? Tunes every arm with the same budget, compares, decides.",
        epilog="Without STUDY the quick start runs: real digits, about 5 minutes on 2 CPU cores. The "
        "same command again goes on where it stopped. Exit codes: 0 done, 2 bad input, 3 too many "
        "failed trainings, 4 --fail-unless not met, 130 interrupted.",
    )
    p.add_argument("study", nargs="?", type=Path, metavar="STUDY", help="study file (YAML)")
    p.add_argument(
        "--out", type=Path, default=Path("results"), help="results go to OUT/NAME (results)"
    )
    options.add_set(p, "protocol.blocks=10")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan (trainings, time, detectable effect, costs), write nothing",
    )
    p.add_argument(
        "--effect",
        type=float,
        metavar="POINTS",
        help="with --dry-run: the chance to find this difference, and the blocks it takes",
    )
    p.add_argument(
        "--status",
        type=Path,
        metavar="FOLDER",
        help="print how the study in results/NAME stands, also while it runs elsewhere, and change nothing",
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, at the end, and nothing else; progress goes to standard error",
    )
    p.add_argument(
        "--fork",
        action="store_true",
        help="start a new study, NAME-2, where OUT/NAME holds another one",
    )
    p.add_argument(
        "--engine",
        choices=("ray", "in_process"),
        default="ray",
        help="ray: Ray Tune on all cores or a cluster; in_process: one at a time, here",
    )
    p.add_argument(
        "--slots", type=options.count, metavar="N", help="trials at a time (all that fit)"
    )
    p.add_argument("--address", help="a running Ray cluster: auto, or HOST:PORT")
    p.add_argument(
        "--storage",
        metavar="PLACE",
        help="folder or s3://BUCKET/PREFIX that all machines share: checkpoints, a copy of the ledger and "
        "the results (on a cluster: metadata.storage of its file; also AIM_TUNE_STORAGE)",
    )
    options.add_fail_unless(p)
    options.add_tracking(p, "sqlite:///OUT/mlflow.db")
    p.add_argument("--quiet", action="store_true", help="print the verdict only")
    return p  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    if args.json and args.dry_run:
        parser().error("--json: a plan is text; leave --dry-run or --json out")
    from aim_tune.engine.stop import Interrupted, Stop

    try:
        if args.status is not None:
            return _status(args.status, as_json=args.json)
        with Stop() as stop:
            return _search(args, stop)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    except Interrupted as error:
        options.complain("Interrupted; the same command goes on from here.")
        return error.exit_code


def quick_start() -> Path:
    """The study that runs when none is named: beside the package, or inside an installed one."""
    package = Path(__file__).resolve().parent
    places = [package.parent / "search_spaces", package / "search_spaces"]
    return next(p for p in [folder / "quickstart.yaml" for folder in places] if p.is_file())


def _search(args: argparse.Namespace, stop: Stop) -> int:
    from aim_tune.engine.warm_start import warm_started
    from aim_tune.launch import How, look, run_study
    from aim_tune.planning import show_plan
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    study, catalog = load_study(args.study or quick_start(), HOUSE, args.overrides)
    console = Console(quiet=args.quiet, highlight=False, stderr=args.json)
    console.print(f"{study.name}: looking at the data and trying every design...")
    if args.dry_run:
        info = look(study, catalog)
        study, earlier = warm_started(study, info)
        show_plan(study, info, console, effect=args.effect, slots=args.slots, earlier=earlier)
        return EXIT_DONE
    how = How(out=args.out, fork=args.fork, engine=args.engine, slots=args.slots,
              address=args.address, storage=args.storage, tracking=args.tracking,
              tracking_uri=args.tracking_uri)  # fmt: skip
    outcome = run_study(study, catalog, how, console=console, stop=stop)
    if args.json:
        print(json.dumps(_as_json(outcome), indent=2))
    else:
        _show(outcome, console, far=_on_the_head(args.address))
    return _exit_code(outcome, args.fail_unless)


def _status(folder: Path, *, as_json: bool) -> int:
    from aim_tune.ledger import holder
    from aim_tune.report import read_results
    from aim_tune.reporting.status import status_of, words

    study, history = read_results(folder, curves=False)
    status = status_of(study, history, holder(folder / "ledger.jsonl"))
    print(json.dumps(status.to_dict(), indent=2) if as_json else words(status))
    return EXIT_DONE


def _as_json(outcome: Outcome) -> dict[str, Any]:
    """What a script wants to know: the verdict, as in verdict.json, and where everything lies."""
    from aim_tune.reporting.words import sentence

    return {
        "study": outcome.study.name,
        "status": outcome.status,
        "sentence": sentence(outcome.verdict),
        "verdict": json.loads(outcome.paths["verdict"].read_text(encoding="utf-8")),
        "folder": str(outcome.folder),
        "files": {what: str(path) for what, path in outcome.paths.items()},
        "views": outcome.views,
    }


def _show(outcome: Outcome, console: Console, *, far: bool = False) -> None:
    """The verdict, where everything lies, and what to do next; of a quiet console the verdict only.

    `far`: this is the head of a cluster, and who reads it sits elsewhere.
    """
    from aim_tune.reporting.terminal import show_summary
    from aim_tune.reporting.words import sentence

    if console.quiet:
        print(sentence(outcome.verdict))
    shown = {what: _short(path) for what, path in outcome.paths.items()}
    commands = _from_the_laptop(outcome.study.name) if far else _next_commands(outcome.folder)
    show_summary(console, outcome.verdict, paths=shown, commands=commands, views=outcome.views)


def _next_commands(results: Path) -> dict[str, str]:
    folder = _short(results)
    return {
        "browse": _browse(results.parent),
        "report": f"python -m aim_tune.report {folder}",
        "export": f"python -m aim_tune.export {folder} -o best_config.yaml",
        "retrain": "python -m aim_tune.retrain best_config.yaml",
    }


def _from_the_laptop(name: str) -> dict[str, str]:
    """The same with FILE, the cluster file, in place of paths of the head."""
    return {
        "browse": "python -m aim_tune.cluster ui FILE",
        "fetch": f"python -m aim_tune.cluster fetch FILE {name}",
        "retrain": f"python -m aim_tune.retrain results/{name}/best_config.yaml",
        "end": "ray down -y FILE",
    }


def _on_the_head(address: str | None) -> bool:
    if not address:
        return False
    from aim_tune.engine.nodes import storage_of_the_cluster

    return storage_of_the_cluster() is not None


def _exit_code(outcome: Outcome, wanted: str | None) -> int:
    if outcome.status == "failed":
        options.complain("Too many trainings failed; see the reasons in the report.")
        return EXIT_TOO_MANY_FAILED
    if wanted and outcome.verdict.verdict != wanted:
        options.complain(f"The verdict is {outcome.verdict.verdict}, not {wanted}.")
        return EXIT_NOT_MET
    return EXIT_DONE


def _browse(results: Path) -> str:
    """What shows a results folder in MLflow: a checkout's script, or MLflow itself."""
    script = Path(__file__).resolve().parents[1] / "mlflow" / "serve.sh"
    if script.is_file():
        return f"sh {_short(script)} {_short(results)}"
    return f"mlflow server --backend-store-uri sqlite:///{results / 'mlflow.db'}"


def _short(path: Path) -> str:
    """Relative to the current folder where it lies within."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    sys.exit(main())
