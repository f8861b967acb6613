"""The verb: best_config.yaml becomes a trained network, through the very code the search trains with.

With the recorded streams a CPU of the same kind gives the recorded validation curve bit for bit; where
it does not, the verb says what is different. Reads the sealed test labels once, at the end, as a
confirm pair does. Starts light; `load_model` gives a trained network back.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.artifacts.files import write_whole
from aim_tune.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NOT_MET,
    EXIT_TOO_MANY_FAILED,
    Fault,
    StudyError,
    UserError,
)

if TYPE_CHECKING:
    from torch import nn

    from aim_tune.data.info import DataInfo
    from aim_tune.ledger import History, Training
    from aim_tune.spec import Catalog, Request, Study

CONFIG_FORMAT = "aim_tune.best_config/"
FORMAT = "aim_tune.retrained/1"
FILES = ("weights.pt", "metrics.json", "model_card.md", "best_config.yaml")
"""What a retraining leaves in its folder."""
NEEDED = ("arm", "point", "streams", "study", "recorded", "provenance")


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.retrain",
        description="Trains an exported configuration for real and reports its test accuracy. Takes as "
        "long as one training of the study: seconds for the quick start. Interrupted, the same "
        "command goes on from the last checkpoint.",
        epilog=f"Writes {', '.join(FILES)}. Exit codes: 0 done, 2 bad input, 3 the training did not "
        "end well, 4 --fail-unless-equal not met, 130 interrupted.",
    )
    p.add_argument(
        "config", type=Path, metavar="CONFIG", help="file from python -m aim_tune.export"
    )
    p.add_argument(
        "--out",
        type=Path,
        help="folder for the network (retrained/NAME-ARM beside CONFIG)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the study, such as data.root=/data/cifar10 or resources.gpu=1",
    )
    p.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="fresh random streams from this seed instead of the recorded ones: another network",
    )
    p.add_argument(
        "--fail-unless-equal",
        action="store_true",
        help="exit with 4 unless the validation curve equals the recorded one bit for bit",
    )
    p.add_argument("--force", action="store_true", help="replace a network that is there")
    p.add_argument(
        "--tracking",
        choices=("on", "optional", "off"),
        default="on",
        help="log to MLflow: on (fail where it cannot be reached), optional, off",
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (mlflow.db of the results folder; also MLFLOW_TRACKING_URI)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    from aim_tune.engine.stop import Interrupted, Stop

    try:
        with Stop():
            return _retrain(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except Interrupted as error:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return error.exit_code


def load_model(folder: Path | str) -> nn.Module:
    """The network of a folder written by this verb, on the CPU, in eval mode.

    Takes images [B, C, H, W] as the data set's row prepares them (`Source.test_batches`). Runs the
    plug-ins that the configuration carries. Raises UserError where the folder holds no network.
    """
    import torch

    from aim_tune.arms import build_arm
    from aim_tune.data.info import DataInfo
    from aim_tune.twin import catalog_of

    folder = Path(folder)
    if not (folder / "weights.pt").is_file():
        raise UserError(f"no network in {folder}; run python -m aim_tune.retrain first")
    study, request, arm = _asked(read_config(folder / "best_config.yaml"))
    about = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["data_info"]
    names, shape = tuple(about["class_names"]), tuple(about["image_shape"])
    info = DataInfo(**{**about, "class_names": names, "image_shape": shape})
    model = build_arm(
        study,
        catalog_of(study.plugins),
        arm,
        request.arms[arm],
        streams=request.streams,
        info=info,
    )
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a file. Raises UserError where it is not one."""
    from aim_tune.spec.yaml_io import load_plain

    config = load_plain(path)
    if not str(config.get("format", "")).startswith(CONFIG_FORMAT):
        raise UserError(
            f"{path} is no exported configuration (format {config.get('format')!r}); make one with "
            "python -m aim_tune.export results/NAME"
        )
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; export it again")
    return config


def _asked(config: Mapping[str, Any]) -> tuple[Study, Request, str]:
    """Study, request and arm of a configuration."""
    from aim_tune.spec import Point, Request, Study

    arm = config["arm"]
    request = Request(
        position=config["recorded"]["position"],
        arms={arm: Point.from_dict(config["point"])},
        streams=config["streams"],
        test=True,
    )
    return Study.from_dict(config["study"]), request, arm


@dataclass(frozen=True, kw_only=True)
class _Retraining:
    """Everything that is known before the training starts."""

    config: Mapping[str, Any]
    study: Study
    catalog: Catalog
    request: Request
    arm: str
    info: DataInfo
    out: Path
    fresh: bool
    """Whether other streams than the recorded ones are used."""
    overrides: tuple[str, ...]


def _retrain(args: argparse.Namespace) -> int:
    from aim_tune.twin import train_arm

    task = _prepared(args)
    if args.tracking == "on" and (uri := _tracking_uri(args)):
        from aim_tune.tracking.store import probe

        probe(uri)  # better now than after the training
    log = _Log(task)
    print(f"Training {task.arm} of {task.study.name} into {task.out}", flush=True)
    trained = train_arm(
        task.study,
        task.request,
        task.arm,
        store_root=str(task.out / "checkpoints"),
        report=log.take,
    )
    result = trained.result
    if trained.model is None:
        print(f"The training ended as {result.status}: {result.detail}", file=sys.stderr)
        return EXIT_TOO_MANY_FAILED
    log.score()
    differences = _differences(task, log)
    card = _write_all(task, log, trained.model, differences)
    print(_summary(task, log, differences))
    _track(args, task, log, card)
    if result.status != "ok":
        print(f"The training ended as {result.status}: {result.detail}", file=sys.stderr)
        return EXIT_TOO_MANY_FAILED
    return EXIT_NOT_MET if args.fail_unless_equal and differences else EXIT_DONE


def _prepared(args: argparse.Namespace) -> _Retraining:
    """The configuration read and validated, the data looked at, the folder found free."""
    from aim_tune.data.source import check_data
    from aim_tune.spec import STREAMS, derive_seed

    config = read_config(args.config)
    study, catalog = _validated(args.config, config, args.overrides)
    _, request, arm = _asked(config)
    if args.seed is not None:
        streams = {name: derive_seed(args.seed, "retrain", name) for name in STREAMS}
        request = replace(request, streams=streams)
    out = args.out or args.config.parent / "retrained" / f"{study.name}-{arm}"
    if (out / "weights.pt").exists() and not args.force:
        raise UserError(
            f"{out} holds a network already; --force replaces it, --out names another folder"
        )
    return _Retraining(
        config=config,
        study=study,
        catalog=catalog,
        request=request,
        arm=arm,
        info=check_data(study.data, catalog),
        out=out,
        fresh=args.seed is not None,
        overrides=tuple(args.overrides),
    )


def _validated(
    path: Path, config: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Study, Catalog]:
    """The study of a configuration, checked as a study file is: people edit these files."""
    import tempfile

    from aim_tune.spec import dump, load_study
    from aim_tune.tables import HOUSE

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(dump(config["study"]), encoding="utf-8")
        try:
            return load_study(file, HOUSE, overrides)
        except StudyError as error:
            raise StudyError([_moved(f, file, f"{path}, study") for f in error.faults]) from None


def _moved(fault: Fault, file: Path, where: str) -> Fault:
    """A fault of the temporary file as one of the configuration."""
    return replace(fault, where=where) if str(file) in fault.where else fault


class _Log:
    """The records of this training, as a ledger would hold them."""

    def __init__(self, task: _Retraining) -> None:
        from aim_tune.engine.resume import declaration
        from aim_tune.ledger import History

        self._task = task
        declared = declaration(task.study, task.info)
        self.code_hash = str(declared["code_hash"])
        self.history: History = History()
        self._apply(declared)
        position = task.request.position
        self._apply({"event": "asked", "position": position, "request": task.request.to_dict()})

    @property
    def training(self) -> Training:
        """The one training."""
        return self.history.trainings[self._task.request.position, self._task.arm]

    def take(self, record: Mapping[str, Any]) -> None:
        """A record of the training; validation passes are printed."""
        self._apply(record)
        if record["event"] == "epoch":
            accuracy = f"{100 * record['val_accuracy']:6.2f} %"
            spent = f"{record['seconds']:.0f} s"
            print(f"  step {record['step']:>6}  validation {accuracy}  {spent}", flush=True)

    def score(self) -> None:
        """Compare the predictions with the sealed labels, once."""
        from aim_tune.data.sealed import test_labels
        from aim_tune.ledger import pack_bits, unpack_ints

        task, result = self._task, self.training.result
        if result is None or result.predictions is None:
            return
        labels = test_labels(task.study.data, task.catalog)
        head = {"position": task.request.position}
        self._apply({"event": "test_look", **head, "arms": [task.arm], "examples": len(labels)})
        correct = unpack_ints(result.predictions) == labels
        test = {task.arm: {"accuracy": float(correct.mean()), "correct": pack_bits(correct)}}
        self._apply({"event": "request_done", **head, "test": test})

    def _apply(self, record: Mapping[str, Any]) -> None:
        self.history.apply({"time": time.time(), **record})


def _differences(task: _Retraining, log: _Log) -> list[str]:
    """[] where the curve equals the recorded one bit for bit; else what differs, and why it may."""
    recorded = task.config["recorded"]
    then = list(zip(recorded["steps"], recorded["val_accuracy"], strict=True))
    now = [(m.step, m.val_accuracy) for m in log.training.curve]
    if then == now:
        return []
    return [_first_difference(then, now), *(_reasons(task, log) or [_NO_REASON])]


_NO_REASON = (
    "no reason known: same data, code, versions, device and settings. Please report this with the "
    "configuration file"
)


def _first_difference(then: Sequence[tuple[int, float]], now: Sequence[tuple[int, float]]) -> str:
    for old, new in zip(then, now, strict=False):
        if old != new:
            return (
                f"first different pass: recorded {100 * old[1]:.2f} % at step {old[0]}, now "
                f"{100 * new[1]:.2f} % at step {new[0]}"
            )
    return f"{len(then)} validation passes are recorded, now there were {len(now)}"


def _reasons(task: _Retraining, log: _Log) -> list[str]:
    """Known differences between this training and the recorded one."""
    from aim_tune.engine.resume import versions

    result, recorded = log.training.result, task.config["recorded"]
    origin = task.config["provenance"]
    found = [f"changed by --set: {text}" for text in task.overrides]
    if task.fresh:
        found.append("fresh random streams (--seed)")
    if origin.get("data_digest") not in (None, task.info.digest):
        found.append(f"other data: digest {origin['data_digest']} then, {task.info.digest} now")
    if origin.get("code_hash") not in (None, log.code_hash):
        found.append(f"other code of aim_tune: {origin['code_hash']} then, {log.code_hash} now")
    now = versions()
    for name, version in (origin.get("versions") or {}).items():
        if now.get(name) not in (None, version):
            found.append(f"{name} {version} then, {now[name]} now")
    device = result.device if result else ""
    if device != recorded.get("device"):
        found.append(f"{recorded.get('device')} then, {device} now")
    elif device.startswith("cuda"):
        found.append("a GPU adds numbers in an order that may change from run to run")
    if recorded.get("status") not in (None, "ok"):
        found.append(f"the recorded training ended as {recorded['status']}")
    return found


def _write_all(task: _Retraining, log: _Log, model: nn.Module, differences: Sequence[str]) -> str:
    """Weights, metrics, card and configuration; the card is returned."""
    task.out.mkdir(parents=True, exist_ok=True)
    _save_weights(task.out / "weights.pt", model)
    metrics = _metrics(task, log, differences)
    write_whole(task.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    card = _card(task, log, differences)
    write_whole(task.out / "model_card.md", card)
    write_whole(task.out / "best_config.yaml", _own_config(task))
    return card


def _save_weights(path: Path, model: nn.Module) -> None:
    """The state_dict on the CPU, whole or not at all."""
    import torch

    beside = path.with_name(path.name + ".tmp")
    try:
        torch.save({k: v.detach().cpu() for k, v in model.state_dict().items()}, beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from None


def _own_config(task: _Retraining) -> str:
    """The configuration as it was trained here: with what --set and --seed changed."""
    from aim_tune.artifacts.config import config_text

    config = {**task.config, "study": task.study.to_dict(), "streams": dict(task.request.streams)}
    return config_text(config, task.catalog)


def _metrics(task: _Retraining, log: _Log, differences: Sequence[str]) -> dict[str, Any]:
    training = log.training
    assert training.result is not None
    return {
        "format": FORMAT,
        "arm": task.arm,
        "test_accuracy": training.test_accuracy,
        "equals_recorded": not differences,
        "differences": list(differences),
        "result": {**training.result.to_dict(), "predictions": None},
        "curve": [asdict(m) for m in training.curve],
        "data_info": asdict(task.info),
        "code_hash": log.code_hash,
    }


def _card(task: _Retraining, log: _Log, differences: Sequence[str]) -> str:
    """The model card, Markdown."""
    training, origin, info = log.training, task.config["provenance"], task.info
    result = training.result
    assert result is not None
    point = {**training.point.shared, **training.point.addon}
    settings = "\n".join(f"| {name} | `{value}` |" for name, value in point.items())
    shape = " x ".join(map(str, info.image_shape))
    lines = [
        f"# {task.study.backbone.name} on {info.name}, arm {task.arm}",
        f"**Test accuracy {_percent(training.test_accuracy)}** on {info.test:,} sealed test images, one "
        f"training; {_expected_words(task)}. Validation accuracy {_percent(result.val_accuracy)} after "
        f"{result.steps:,} steps ({result.status}).",
        _equality_words(differences, markdown=True),
        "## Network",
        f"{result.parameters:,} parameters, {result.trainable:,} of them trained"
        + (f", {result.flops / 1e6:,.2f} MFLOPs per image forward" if result.flops else "")
        + f". Input {shape} (channels, height, width), {info.classes} classes: "
        f"{_names(info.class_names)}. Trained on {info.train:,} images, on {result.device}, in "
        f"{result.seconds:.1f} s.",
        f"| setting | value |\n| --- | --- |\n{settings}",
        "## Use",
        "```python\nfrom aim_tune.retrain import load_model\n\n"
        f'model = load_model("{task.out.as_posix()}")  # eval mode, on the CPU\n```',
        "`weights.pt` is a plain state_dict. Images have to be prepared as in training: "
        "`aim_tune.data.source.open_source(...)` yields them so.",
        "## Where it comes from",
        f"Study `{origin['study_name']}` ({origin['study_hash']}), status {origin['status']}, position "
        f"`{task.config['recorded']['position']}`. {origin.get('sentence') or ''}",
        f"Data digest `{info.digest}`, code `{log.code_hash}`, weights `{result.weights_sha256}`.",
        "## Limits",
        "The figure above is one training on one test set of this kind of images; it says nothing "
        "about other images, other label noise or shifted conditions. The test images were also used "
        "by the study this configuration comes from.",
    ]
    return "\n\n".join(lines) + "\n"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _expected_words(task: _Retraining) -> str:
    expected = task.config.get("expected") or {}
    score = expected.get("test_accuracy")
    if score is None:
        return "the study has not measured what to expect"
    runs = expected.get("n_confirm")
    return f"the study expects {_percent(score)} (mean of {runs} fresh trainings)"


def _equality_words(differences: Sequence[str], *, markdown: bool = False) -> str:
    if not differences:
        return "The validation curve equals the recorded one bit for bit."
    bullet = "- " if markdown else "  - "
    head = "The validation curve differs from the recorded one:"
    return "\n".join([head, *([""] if markdown else []), *(f"{bullet}{d}" for d in differences)])


def _summary(task: _Retraining, log: _Log, differences: Sequence[str]) -> str:
    training = log.training
    return (
        f"Test accuracy {_percent(training.test_accuracy)} on {task.info.test:,} sealed images; "
        f"{_expected_words(task)}.\n{_equality_words(differences)}\n"
        f"Wrote {', '.join(str(task.out / name) for name in FILES)}"
    )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _track(args: argparse.Namespace, task: _Retraining, log: _Log, card: str) -> None:
    """Log the training to MLflow, unless that is off."""
    if args.tracking == "off":
        return
    from aim_tune.tracking.mirror import log_retrained

    try:
        name = log_retrained(
            study=task.study,
            history=log.history,
            training=log.training,
            note=card,
            files=[task.out / file for file in FILES],
            results=_results_of(args.config),
            uri=_tracking_uri(args),
        )
    except UserError as error:
        print(f"Not in MLflow: {error}", file=sys.stderr)
    else:
        print(f"In MLflow: experiment {name}")


def _tracking_uri(args: argparse.Namespace) -> str | None:
    return args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None


def _results_of(config: Path) -> Path:
    """The results folder a configuration lies in; for one that was moved, `results` here."""
    home = config.resolve().parent.parent
    return home if (home / "mlflow.db").is_file() else Path("results")


if __name__ == "__main__":
    sys.exit(main())
