"""One study, from its folder to its verdict: what the verb `search` and `aim_tune.run` share.

Looks at the data and tries every design; locks the folder, opens the engine; declares or resumes; runs;
decides and writes what is derived from the ledger. Takes plain values, raises UserError and Interrupted,
prints progress on the console it is given and nothing else. Of the top layer, because it wires: heavy
libraries are imported where they are needed.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.errors import StudyError, UserError

if TYPE_CHECKING:
    from aim_tune.data.info import DataInfo
    from aim_tune.engine.stop import Stop
    from aim_tune.ledger import History, Ledger
    from aim_tune.ledger_copy import LedgerCopy
    from aim_tune.protocol.earlier import Earlier
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import Catalog, Recipe, Study
    from aim_tune.stats import Verdict
    from aim_tune.storage import Storage
    from aim_tune.tracking.mirror import Mirror

CLOSE_S = 4.0
"""How long an interrupted search waits for MLflow."""


@dataclass(frozen=True, kw_only=True)
class How:
    """Where and how a study runs. None of it can change a result."""

    out: Path = Path("results")
    """Results go to out/NAME."""
    fork: bool = False
    """Start a new study, NAME-2, where out/NAME holds another one."""
    engine: str = "ray"
    """ray, or in_process: one trial at a time, here."""
    slots: int | None = None
    """Trials at a time; None: all that fit."""
    address: str | None = None
    """A running Ray cluster."""
    storage: str | None = None
    """Folder or bucket that all machines of a cluster share: checkpoints go there, the results too, and
    the ledger's copy, from which a new head goes on. None: $AIM_TUNE_STORAGE, or the storage of the
    cluster file this head was started with; without any, all stays in `out`."""
    tracking: str = "on"
    """MLflow: on (fail early where it cannot be reached), optional, off."""
    tracking_uri: str | None = None
    """None: MLFLOW_TRACKING_URI, or sqlite in `out`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run leaves behind."""

    study: Study
    """As it ran: a fork has a name of its own."""
    folder: Path
    history: History
    verdict: Verdict
    status: str
    """finished or failed (stats.amounts.study_status)."""
    paths: dict[str, Path]
    """What -> the file: report, verdict, study and, where there is one, best."""
    views: dict[str, str]
    """Name of a saved view -> its address in MLflow."""


def run_study(
    study: Study,
    catalog: Catalog,
    how: How = How(),
    *,
    console: Console | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Run a study to its verdict, or go on with it: the same call again trains nothing twice.

    `console` None: silent. `stop`: signals become Interrupted, see engine.stop; None: they do what
    they did before. Raises UserError with what to do where anything that was asked cannot be.
    """
    from aim_tune.reporting.terminal import Console

    console = console or Console(quiet=True)
    info = look(study, catalog)
    storage = _storage(how)
    study, earlier, copy = _forked(study, info, how, storage)
    folder = how.out.resolve() / study.name
    return _Run(how=how, study=study, catalog=catalog, info=info, folder=folder, earlier=earlier,
                console=console, stop=stop, storage=storage, copy=copy).run()  # fmt: skip


def look(study: Study, catalog: Catalog) -> DataInfo:
    """The data looked at and every design tried; raises what is wrong with them."""
    from aim_tune.arms import check_points
    from aim_tune.data.source import check_data

    info = check_data(study.data, catalog)
    faults = check_points(study, catalog, info)
    if faults:
        raise StudyError(faults)
    return info


def _storage(how: How) -> Storage | None:
    """What the machines share, if anything was named; it is tried, so that a typo is said at once."""
    from aim_tune.storage import open_storage

    uri = how.storage or os.environ.get("AIM_TUNE_STORAGE")
    if not uri and how.address:
        from aim_tune.engine.nodes import storage_of_the_cluster

        uri = storage_of_the_cluster()
    if not uri:
        return None
    storage = open_storage(uri)
    probe = f".probe-{uuid.uuid4().hex}"
    storage.put(probe, b"")
    storage.drop(probe)
    return storage


def _forked(
    study: Study, info: DataInfo, how: How, storage: Storage | None
) -> tuple[Study, Earlier | None, LedgerCopy | None]:
    """The study itself where its folder is free or its own; with --fork, under a free name. What it goes on
    from, and the ledger's copy in the storage, which the folder's ledger then equals."""
    from aim_tune.engine.resume import check_same, with_declared_sizes
    from aim_tune.engine.warm_start import warm_started
    from aim_tune.ledger import read_history
    from aim_tune.ledger_copy import LedgerCopy

    forked = None
    for number in range(1, 1000):
        named = study if number == 1 else replace(study, name=f"{study.name}-{number}")
        folder = how.out / named.name
        copy = LedgerCopy(folder / "ledger.jsonl", storage, named.name) if storage else None
        there = (folder / "ledger.jsonl").is_file()
        history = read_history(folder / "ledger.jsonl") if there else None
        if history is None or history.declared is None:
            named, earlier = warm_started(named, info, forked=forked)
            return _sized(named, info), earlier, copy
        named, earlier = warm_started(named, info, own=history)
        named = with_declared_sizes(named, history)
        try:
            check_same(history, named, info, folder=folder)
        except UserError:
            if not how.fork:
                raise
            forked = history if "earlier" in history.declared else forked
        else:
            return named, earlier, copy
    raise UserError(f"{how.out} holds a thousand forks of {study.name}; choose another --out")


def _sized(study: Study, info: DataInfo) -> Study:
    """The study with sizes that its budget, if it has one, pays for."""
    from aim_tune.planning import afforded

    return afforded(study, info) if study.protocol.chosen else study


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run on one results folder."""

    how: How
    study: Study
    catalog: Catalog
    info: DataInfo
    folder: Path
    console: Console
    stop: Stop | None
    earlier: Earlier | None = None
    storage: Storage | None = None
    copy: LedgerCopy | None = None

    def run(self) -> Outcome:
        """From the locked folder to the verdict."""
        from aim_tune.ledger import Ledger
        from aim_tune.stats.amounts import is_whole

        with Ledger(self.folder / "ledger.jsonl") as ledger:
            done = ledger.history.declared and is_whole(self.study, ledger.history)
            with self._tracking() as mirror:
                if done and not self._grown(ledger.history):
                    if mirror:
                        self._open_mlflow(mirror)
                    return self._finish(ledger, mirror)
                with self._started() as engine:
                    if self.stop:
                        self.stop.arm()
                    self._declare(ledger, engine.slots)
                    self._count(ledger.history)  # before the first look
                    if mirror:
                        self._open_mlflow(mirror)
                    self._conduct(ledger, engine, mirror)
                    return self._finish(ledger, mirror)

    def _grown(self, history: History) -> bool:
        from aim_tune.engine.resume import blocks_then

        return self.study.protocol.blocks > blocks_then(history)

    @contextmanager
    def _started(self) -> Iterator[Any]:
        """The engine, ready."""
        from aim_tune.reporting.progress import waiting

        with ExitStack() as ends:
            with waiting(self.console, "Starting the engine"):
                engine = ends.enter_context(self._engine())
            yield engine

    def _engine(self) -> Any:
        """The engine asked for, not yet entered."""
        if not self.how.address:
            from aim_tune.training.compiler import check_compiler

            check_compiler(self.study)
        if self.how.engine == "in_process":
            from aim_tune.engine import in_process

            return in_process.opened(self.study)
        if self.study.resources.gpu > 0 and not self.how.address:
            from aim_tune.twin import prepare

            prepare(self.study.resources)  # says in a second that there is no GPU
        if self.how.address:
            from aim_tune.engine import nodes
            from aim_tune.storage import open_storage

            return nodes.opened(
                self.study,
                address=self.how.address,
                storage=self.storage or open_storage(self.folder),
                slots=self.how.slots,
                say=self.console.print,
            )
        from aim_tune.engine import ray_tune

        return ray_tune.opened(self.study, slots=self.how.slots, say=self.console.print)

    def _declare(self, ledger: Ledger, slots: int) -> None:
        """The first record of a new study, or that it goes on, and with how many slots; study.yaml beside
        it."""
        from aim_tune.artifacts.files import write_whole
        from aim_tune.engine.resume import declaration, other_versions
        from aim_tune.engine.warm_start import said
        from aim_tune.spec import dump

        history = ledger.history
        if history.declared is None:
            ledger.append(declaration(self.study, self.info, self.earlier))
            if self.earlier:
                self.console.print(said(self.earlier))
        else:
            self._say_what_is_there(history)
            ledger.append({"event": "resumed", "node": platform.node(), "pid": os.getpid()})
            changed = other_versions(history)
            if changed:
                self.console.print(f"Versions have changed: {', '.join(changed)}.")
        if self._grown(history):
            ledger.append({"event": "extended", "blocks": self.study.protocol.blocks})
        ledger.append({"event": "opened", "slots": slots})
        text = dump(self.study.to_dict(), f"Resolved study {self.study.study_hash}. Do not edit.")
        write_whole(self.folder / "study.yaml", text)

    def _say_what_is_there(self, history: History) -> None:
        done = sum(t.done for t in history.trainings.values())
        self.console.print(f"Going on in {self.folder}: {done} trainings are done.")
        if self.earlier:
            self.console.print(f"Explore went on from {self.earlier.start.said}.")
        if history.dropped_bytes:
            self.console.print(
                f"The ledger's last line was cut ({history.dropped_bytes} bytes) and dropped."
            )

    @contextmanager
    def _tracking(self) -> Iterator[Mirror | None]:
        """MLflow, to be started once the ledger holds the study; None where it is off."""
        if self.how.tracking == "off":
            yield None
            return
        from aim_tune.reporting.progress import waiting
        from aim_tune.tracking.mirror import Mirror

        mirror = Mirror(
            folder=self.folder,
            study=self.study,
            uri=self.how.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None,
            required=self.how.tracking == "on",
            notify=self.console.print,
        )
        mirror.prepare()  # while Ray starts
        try:
            yield mirror
        except BaseException:
            mirror.close(CLOSE_S)
            raise
        with waiting(self.console, "MLflow is catching up"):
            missing = mirror.close()
        if missing:
            self.console.print(missing)

    def _open_mlflow(self, mirror: Mirror) -> None:
        from aim_tune.reporting.progress import waiting

        with waiting(self.console, "Opening MLflow"):
            mirror.start()

    def _conduct(self, ledger: Ledger, engine: Any, mirror: Mirror | None) -> None:
        """Run all that is left."""
        from aim_tune.data.sealed import test_labels
        from aim_tune.engine.conductor import Conductor
        from aim_tune.engine.stop import Interrupted
        from aim_tune.protocol import Machine
        from aim_tune.reporting.progress import Progress
        from aim_tune.training.schedules import total_steps

        def allotted(recipe: Recipe) -> int:
            return total_steps(recipe, self.info.train)

        study = self.study
        self._say_if_crowded(engine.slots)
        labels = test_labels(study.data, self.catalog) if study.protocol.confirm else None
        history = ledger.history
        listeners = [mirror.event] if mirror else []
        if self.copy:
            self.copy.flush()
            listeners.append(self.copy.event)
        try:
            with Progress(study, console=self.console, slots=engine.slots, history=history) as bar:
                conductor = Conductor(
                    study,
                    Machine(
                        study,
                        allotted=allotted,
                        recorded=history.requests.get,
                        earlier=self.earlier.trials if self.earlier else (),
                    ),
                    ledger,
                    labels,
                    [bar.event, *listeners],
                    allotted_steps=allotted,
                )
                engine.run(conductor, study, self._checkpoints(), stop=self.stop)
        except Interrupted as error:
            record = ledger.append({"event": "interrupted", "reason": str(error)})
            for listener in listeners:
                listener(record)
            raise

    def _checkpoints(self) -> str:
        if self.storage:
            return f"{self.storage.uri}/{self.study.name}/checkpoints"
        return str(self.folder / "checkpoints")

    def _say_if_crowded(self, slots: int) -> None:
        """What was asked for with --slots, against what there is."""
        asked, cpu = self.how.slots, self.study.resources.cpu
        cores = len(os.sched_getaffinity(0))
        if asked and slots < asked:
            self.console.print(f"{asked} slots were asked for; {slots} fit what there is.")
        elif asked and not self.how.address and self.how.engine == "ray" and asked * cpu > cores:
            self.console.print(
                f"{asked} slots of {cpu} CPU{'s' * (cpu > 1)} share {cores} cores: the same results, but no "
                "sooner, and step times do not compare with other runs."
            )

    def _finish(self, ledger: Ledger, mirror: Mirror | None) -> Outcome:
        """Decide, and write everything that is derived from the ledger."""
        from aim_tune.reporting.plots_verdict import strip_png
        from aim_tune.reporting.progress import waiting
        from aim_tune.reporting.words import sentence
        from aim_tune.stats import decide
        from aim_tune.stats.amounts import study_status

        number = self._count(ledger.history)
        verdict = decide(self.study, ledger.history, study_number=number)
        if ledger.history.verdict != verdict.to_dict():
            record = ledger.append({"event": "verdict", "verdict": verdict.to_dict()})
            if mirror:
                mirror.event(record)
        with waiting(self.console, "Writing the report"):
            paths = self._write(ledger.history, verdict)
        self._share(paths)
        if mirror:
            files = [p for p in paths.values() if p.is_file()]
            mirror.finish(verdict.to_dict(), sentence(verdict), files, strip_png(verdict))
        return Outcome(
            study=self.study,
            folder=self.folder,
            history=ledger.history,
            verdict=verdict,
            status=study_status(self.study, ledger.history),
            paths=paths,
            views=mirror.views if mirror else {},
        )

    def _share(self, paths: Mapping[str, Path]) -> None:
        """Copy the ledger's end and the pages made from it to the storage."""
        if not (self.storage and self.copy):
            return
        self.copy.flush()
        for path in paths.values():
            self.storage.put(f"{self.study.name}/{path.name}", path.read_bytes())
        if self.copy.behind:
            self.console.print(
                f"The ledger's copy in {self.storage.uri} is behind: give the same command again."
            )

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
        from aim_tune.artifacts.files import write_whole
        from aim_tune.protocol.importance import importances
        from aim_tune.reporting.html import write_report
        from aim_tune.reporting.words import document
        from aim_tune.stats import slot_use

        paths = {
            "report": self.folder / "report.html",
            "verdict": self.folder / "verdict.json",
            "best": self.folder / "best_config.yaml",
            "study": self.folder / "study.yaml",
        }
        shown = document(verdict, slot_use(self.study, history))
        write_whole(paths["verdict"], json.dumps(shown, indent=2) + "\n")
        write_report(
            paths["report"], self.study, history, verdict, importances(self.study, history)
        )
        if not self._write_best(paths["best"], history, verdict):
            del paths["best"]
        return paths

    def _write_best(self, path: Path, history: History, verdict: Verdict) -> bool:
        from aim_tune.artifacts.config import config_text
        from aim_tune.artifacts.files import write_whole
        from aim_tune.protocol.best import best_config
        from aim_tune.reporting.words import sentence

        words = sentence(verdict)
        try:
            best = best_config(self.study, history, verdict.to_dict(), sentence=words)
        except UserError as error:
            self.console.print(f"No best_config.yaml: {error}")
            return False
        write_whole(path, config_text(best, self.catalog))
        return True
