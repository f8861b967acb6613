"""The verb: a study file becomes a verdict. Parses, then wires; every decision is made elsewhere.

Order: read the study, look at the data, try every design; lock the folder, open the engine; declare
or resume; run; decide, write, show. Everything that can be wrong is found before the first training.
Starts light: nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NOT_MET,
    EXIT_TOO_MANY_FAILED,
    StudyError,
    UserError,
)

if TYPE_CHECKING:
    from aim_tune.data.info import DataInfo
    from aim_tune.engine.stop import Stop
    from aim_tune.ledger import History, Ledger
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import Catalog, Study
    from aim_tune.stats import Verdict
    from aim_tune.tracking.mirror import Mirror

VERDICTS = ("better", "worse", "equivalent", "no_evidence", "withheld", "not_asked")
CLOSE_S = 4.0
"""How long an interrupted search waits for MLflow."""
TRIAL_STEPS = 20
"""Steps of each arm that a dry run trains to time them."""
STARVED = 0.6
"""Below this share of busy slots the summary says so."""


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
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the study, such as protocol.blocks=10; may be repeated",
    )
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
    p.add_argument("--slots", type=int, metavar="N", help="trials at a time (all that fit)")
    p.add_argument("--address", help="a running Ray cluster: auto, or HOST:PORT")
    p.add_argument(
        "--fail-unless",
        choices=VERDICTS,
        metavar="VERDICT",
        help=f"exit with 4 unless the verdict is this one: {', '.join(VERDICTS)}",
    )
    p.add_argument(
        "--tracking",
        choices=("on", "optional", "off"),
        default="on",
        help="MLflow: on (fail early where it cannot be reached), optional, off",
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (sqlite:///OUT/mlflow.db; also MLFLOW_TRACKING_URI)",
    )
    p.add_argument("--quiet", action="store_true", help="print the verdict only")
    return p  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    if args.slots is not None and args.slots < 1:
        parser().error(f"--slots {args.slots}: give 1 or more")
    from aim_tune.engine.stop import Interrupted, Stop

    try:
        with Stop() as stop:
            return _search(args, stop)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except Interrupted as error:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        return error.exit_code


def quick_start() -> Path:
    """The study that runs when none is named: beside the package, or inside an installed one."""
    package = Path(__file__).resolve().parent
    places = [package.parent / "search_spaces", package / "search_spaces"]
    return next(p for p in [folder / "quickstart.yaml" for folder in places] if p.is_file())


def _search(args: argparse.Namespace, stop: Stop) -> int:
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    study, catalog = load_study(args.study or quick_start(), HOUSE, args.overrides)
    console = Console(quiet=args.quiet, highlight=False)
    console.print(f"{study.name}: looking at the data and trying every design...")
    info = _checked(study, catalog)
    if args.dry_run:
        _show_plan(study, catalog, info, args, console)
        return EXIT_DONE
    study = _forked(study, info, args)
    folder = args.out.resolve() / study.name
    job = _Search(args=args, study=study, catalog=catalog, info=info, folder=folder,
                  console=console, stop=stop)  # fmt: skip
    return job.run()


def _checked(study: Study, catalog: Catalog) -> DataInfo:
    """The data looked at and every design tried; raises what is wrong with them."""
    from aim_tune.arms import check_points
    from aim_tune.data.source import check_data

    info = check_data(study.data, catalog)
    faults = check_points(study, catalog, info)
    if faults:
        raise StudyError(faults)
    return info


def _forked(study: Study, info: DataInfo, args: argparse.Namespace) -> Study:
    """The study itself where its folder is free or its own; with --fork, under a free name."""
    from aim_tune.engine.resume import check_same
    from aim_tune.ledger import read_history

    for number in range(1, 1000):
        named = study if number == 1 else replace(study, name=f"{study.name}-{number}")
        folder = args.out / named.name
        if not (folder / "ledger.jsonl").is_file():
            return named
        history = read_history(folder / "ledger.jsonl")
        if history.declared is None:
            return named
        try:
            check_same(history, named, info, folder=folder)
        except UserError:
            if not args.fork:
                raise
        else:
            return named
    raise UserError(f"{args.out} holds a thousand forks of {study.name}; choose another --out")


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One run of the verb on one results folder."""

    args: argparse.Namespace
    study: Study
    catalog: Catalog
    info: DataInfo
    folder: Path
    console: Console
    stop: Stop

    def run(self) -> int:
        """From the locked folder to the exit code."""
        from aim_tune.ledger import Ledger
        from aim_tune.protocol.best import study_status

        with Ledger(self.folder / "ledger.jsonl") as ledger:
            done = (
                ledger.history.declared and study_status(self.study, ledger.history) != "unfinished"
            )
            if done and not self._grown(ledger.history):
                with self._tracking(ledger) as mirror:
                    verdict = self._finish(ledger, mirror)
            else:
                with self._engine() as engine:
                    self.stop.arm()
                    self._declare(ledger)
                    self._count(ledger.history)  # before the first look
                    with self._tracking(ledger) as mirror:
                        self._conduct(ledger, engine, mirror)
                        verdict = self._finish(ledger, mirror)
            return self._exit_code(ledger.history, verdict)

    def _grown(self, history: History) -> bool:
        from aim_tune.engine.resume import blocks_then

        return self.study.protocol.blocks > blocks_then(history)

    def _engine(self) -> Any:
        """The engine asked for, not yet entered."""
        if self.args.engine == "in_process":
            from aim_tune.engine import in_process

            return in_process.opened(self.study)
        if self.study.resources.gpu > 0 and not self.args.address:
            from aim_tune.twin import prepare

            prepare(self.study.resources)  # says in a second that there is no GPU
        if self.args.address:
            from aim_tune.engine import nodes

            return nodes.opened(
                self.study,
                address=self.args.address,
                storage=self.folder,
                slots=self.args.slots,
                say=self.console.print,
            )
        from aim_tune.engine import ray_tune

        return ray_tune.opened(self.study, slots=self.args.slots)

    def _declare(self, ledger: Ledger) -> None:
        """The first record of a new study, or that it goes on; study.yaml beside it."""
        from aim_tune.engine.resume import declaration, other_versions
        from aim_tune.report import write_whole
        from aim_tune.spec import dump

        history = ledger.history
        if history.declared is None:
            ledger.append(declaration(self.study, self.info))
        else:
            self._say_what_is_there(history)
            ledger.append({"event": "resumed", "node": platform.node(), "pid": os.getpid()})
            changed = other_versions(history)
            if changed:
                self.console.print(f"Versions have changed: {', '.join(changed)}.")
        if self._grown(history):
            ledger.append({"event": "extended", "blocks": self.study.protocol.blocks})
        text = dump(self.study.to_dict(), f"Resolved study {self.study.study_hash}. Do not edit.")
        write_whole(self.folder / "study.yaml", text)

    def _say_what_is_there(self, history: History) -> None:
        done = sum(t.done for t in history.trainings.values())
        self.console.print(f"Going on in {self.folder}: {done} trainings are done.")
        if history.dropped_bytes:
            self.console.print(
                f"The ledger's last line was cut ({history.dropped_bytes} bytes) and dropped."
            )

    @contextmanager
    def _tracking(self, ledger: Ledger) -> Iterator[Mirror | None]:
        """MLflow, kept equal to the ledger; None where it is off."""
        if self.args.tracking == "off":
            yield None
            return
        from aim_tune.engine.stop import Interrupted
        from aim_tune.tracking.mirror import Mirror

        mirror = Mirror(
            folder=self.folder,
            study=self.study,
            uri=self.args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
            required=self.args.tracking == "on",
            notify=self.console.print,
        )
        mirror.start()
        try:
            yield mirror
        except Interrupted:
            mirror.close(CLOSE_S)
            raise
        missing = mirror.close()
        if missing:
            self.console.print(missing)

    def _conduct(self, ledger: Ledger, engine: Any, mirror: Mirror | None) -> None:
        """Run all that is left."""
        from aim_tune.data.sealed import test_labels
        from aim_tune.engine.conductor import Conductor
        from aim_tune.engine.stop import Interrupted
        from aim_tune.protocol import Machine
        from aim_tune.reporting.progress import Progress
        from aim_tune.training.schedules import total_steps

        study, began = self.study, time.time()
        labels = test_labels(study.data, self.catalog) if study.protocol.confirm else None
        history = ledger.history
        listeners = [mirror.event] if mirror else []
        try:
            with Progress(study, console=self.console, slots=engine.slots, history=history) as bar:
                conductor = Conductor(
                    study,
                    Machine(study),
                    ledger,
                    labels,
                    [bar.event, *listeners],
                    allotted_steps=lambda recipe: total_steps(recipe, self.info.train),
                )
                engine.run(conductor, study, str(self.folder / "checkpoints"), stop=self.stop)
        except Interrupted as error:
            record = ledger.append({"event": "interrupted", "reason": str(error)})
            for listener in listeners:
                listener(record)
            raise
        self._say_if_starved(history, began, engine.slots)

    def _say_if_starved(self, history: History, began: float, slots: int) -> None:
        wall = time.time() - began
        here = [t for t in history.trainings.values()
                if t.started and t.finished and t.started >= began and not t.reused_from]  # fmt: skip
        busy = sum(t.finished - t.started for t in here if t.finished and t.started)
        share = busy / (wall * slots)
        if wall > 60 and slots > 1 and share < STARVED:
            self.console.print(
                f"Only {share * slots:.1f} of {slots} slots were busy on average: requests are few or "
                "short, or explore.lag is small. Fewer slots would have been as fast."
            )

    def _finish(self, ledger: Ledger, mirror: Mirror | None) -> Verdict:
        """Decide, write everything that is derived from the ledger, and show it."""
        from aim_tune.reporting.terminal import show_summary
        from aim_tune.reporting.words import sentence
        from aim_tune.stats import decide

        number = self._count(ledger.history)
        verdict = decide(self.study, ledger.history, study_number=number)
        if ledger.history.verdict != verdict.to_dict():
            record = ledger.append({"event": "verdict", "verdict": verdict.to_dict()})
            if mirror:
                mirror.event(record)
        paths = self._write(ledger.history, verdict)
        if mirror:
            mirror.finish(
                verdict.to_dict(), sentence(verdict), [p for p in paths.values() if p.is_file()]
            )
        if self.args.quiet:
            print(sentence(verdict))
        shown = {what: _short(path) for what, path in paths.items()}
        show_summary(
            self.console, verdict, paths=shown, commands=self._next_commands(),
            views=mirror.views if mirror else {},
        )  # fmt: skip
        return verdict

    def _count(self, history: History) -> int | None:
        """Enter the study and its looks into the registry: it is the nth on this test data. None: it
        never looks."""
        from aim_tune.registry import Entry, record, registry_path

        if not self.study.protocol.confirm * self.study.protocol.blocks:
            return None
        declared = history.declared or {}
        entry = Entry(
            data_digest=declared["data_digest"],
            study_hash=declared["study_hash"],
            code_hash=declared["code_hash"],
            name=self.study.name,
            folder=str(self.folder),
            looks=len(history.looks),
        )
        return record(registry_path(), entry).number

    def _write(self, history: History, verdict: Verdict) -> dict[str, Path]:
        """All files that are derived from the ledger: what -> where."""
        from aim_tune.protocol.importance import importances
        from aim_tune.report import write_whole
        from aim_tune.reporting.html import write_report

        paths = {
            "report": self.folder / "report.html",
            "verdict": self.folder / "verdict.json",
            "best": self.folder / "best_config.yaml",
            "study": self.folder / "study.yaml",
        }
        write_whole(paths["verdict"], json.dumps(verdict.to_dict(), indent=2) + "\n")
        write_report(
            paths["report"], self.study, history, verdict, importances(self.study, history)
        )
        if not self._write_best(paths["best"], history, verdict):
            del paths["best"]
        return paths

    def _write_best(self, path: Path, history: History, verdict: Verdict) -> bool:
        from aim_tune.export import config_text
        from aim_tune.protocol.best import best_config
        from aim_tune.report import write_whole
        from aim_tune.reporting.words import sentence

        words = sentence(verdict)
        try:
            best = best_config(self.study, history, verdict.to_dict(), sentence=words)
        except UserError as error:
            self.console.print(f"No best_config.yaml: {error}")
            return False
        write_whole(path, config_text(best))
        return True

    def _next_commands(self) -> dict[str, str]:
        folder = _short(self.folder)
        return {
            "browse": _browse(self.folder.parent),
            "report": f"python -m aim_tune.report {folder}",
            "export": f"python -m aim_tune.export {folder} -o best_config.yaml",
            "retrain": "python -m aim_tune.retrain best_config.yaml",
        }

    def _exit_code(self, history: History, verdict: Verdict) -> int:
        from aim_tune.protocol.best import study_status

        if study_status(self.study, history) == "failed":
            print("Too many trainings failed; see the reasons in the report.", file=sys.stderr)
            return EXIT_TOO_MANY_FAILED
        wanted = self.args.fail_unless
        if wanted and verdict.verdict != wanted:
            print(f"The verdict is {verdict.verdict}, not {wanted}.", file=sys.stderr)
            return EXIT_NOT_MET
        return EXIT_DONE


def _show_plan(
    study: Study, catalog: Catalog, info: DataInfo, args: argparse.Namespace, console: Console
) -> None:
    """What the study takes and what it can show; trains a few steps of each arm to time them."""
    from aim_tune.protocol.plan import make_plan
    from aim_tune.reporting.progress import duration

    plan = make_plan(study, info, effect=args.effect)
    stages = ", ".join(f"{stage} {count}" for stage, count in plan.by_stage.items() if count)
    lines = {
        "study": f"{study.name} ({study.study_hash})",
        "data": f"{info.name}: {info.train} training, {info.val} validation, {info.test} sealed test images",
        "requests": f"{plan.requests}",
        "trainings": f"{plan.trainings} ({stages}), {plan.steps_per_training} steps each",
        "test looks": f"{plan.test_looks}",
    }
    if plan.mde_points is not None:
        lines["detectable"] = (
            f"a true difference of about {plan.mde_points:.1f} points in 80 % of studies (guess: "
            f"{plan.seed_sd_points:.2f} points between seeds)"
        )
        reach = "can" if plan.equivalence_reachable else "cannot"
        lines["equivalence"] = f"within +-{study.protocol.rope_points:g} points {reach} be shown"
    if plan.effect_power is not None:
        found = f"{args.effect:g} points are found in {100 * plan.effect_power:.0f} % of studies like this"
        enough = plan.effect_blocks
        lines["effect"] = (
            f"{found}; 80 % takes {f'{enough} blocks' if enough else 'more blocks than we plan for'}"
        )
    costs = [_trial_run(study, arm) for arm in study.arms]
    slots = args.slots or max(1, len(os.sched_getaffinity(0)) // study.resources.cpu)
    seconds = sum(c.seconds for c in costs) / len(costs) * plan.trainings / slots
    lines["time"] = (
        f"about {duration(seconds)} with {slots} slot{'s' * (slots > 1)} like this machine's"
    )
    for key, text in lines.items():
        console.print(f"{key:<12} {text}", soft_wrap=True)
    console.print(
        f"\n{'arm':<12} {'parameters':>12} {'trainable':>12} {'MFLOPs/image':>13} {'ms/step':>9}"
    )
    for c in costs:
        flops = "-" if c.flops is None else f"{c.flops / 1e6:.2f}"
        console.print(
            f"{c.arm:<12} {c.parameters:>12,} {c.trainable:>12,} {flops:>13} {c.step_ms:>9.1f}"
        )


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What one training of an arm takes here, from a few steps of it."""

    arm: str
    parameters: int
    trainable: int
    flops: int | None
    step_ms: float
    seconds: float


def _trial_run(study: Study, arm: str) -> _Cost:
    """Train an arm for a few steps at the study's first point; keeps nothing."""
    from aim_tune.errors import ResourceError
    from aim_tune.protocol import Machine
    from aim_tune.spec import Request
    from aim_tune.training.schedules import total_steps
    from aim_tune.twin import catalog_of, open_source, train_arm

    request = Machine(study).ask()
    assert isinstance(request, Request)
    info = open_source(study.data, catalog_of(study.plugins)).info
    steps = total_steps(study.recipe.at(request.arms[arm].shared), info.train)
    recipe = replace(study.recipe, steps=min(steps, TRIAL_STEPS), epochs=None, evaluations=1)
    short = replace(study, recipe=recipe)
    try:
        train_arm(short, request, arm)  # pays for imports, data and caches
    except ResourceError:  # a plan may be made where the GPUs are not
        short = replace(short, resources=replace(study.resources, gpu=0))
        train_arm(short, request, arm)
    began = time.perf_counter()
    result = train_arm(short, request, arm).result
    other_s = time.perf_counter() - began - result.seconds  # building and one validation pass
    step_ms = result.step_ms or 1000 * result.seconds / max(1, result.steps)
    return _Cost(
        arm=arm,
        parameters=result.parameters,
        trainable=result.trainable,
        flops=result.flops,
        step_ms=step_ms,
        seconds=steps * step_ms / 1000 + study.recipe.evaluations * other_s,
    )


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
