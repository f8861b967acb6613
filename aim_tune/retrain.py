"""The verb: best_config.yaml becomes trained networks, through the very code the search trains with.

With nothing asked otherwise the recorded training is repeated, on a CPU of the same kind bit for bit;
where it is not, the verb says what is different. One network for each arm and seed asked for; everything
is looked at before the first one trains. Starts light.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from aim_tune import options
from aim_tune.artifacts.files import write_whole
from aim_tune.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_NOT_MET,
    EXIT_TOO_MANY_FAILED,
    UserError,
)

if TYPE_CHECKING:
    from aim_tune.retraining import Retrained, Task, Wish

FORMS = ("weights", "program", "onnx")


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.retrain",
        description="Trains an exported configuration for real and reports its test accuracy. Takes as "
        "long as one training of the study (seconds for the quick start) and about half a minute for "
        "writing and checking the files. Interrupted, the same command goes on from the last checkpoint.",
        epilog="Writes weights.pt, program.pt2, model.onnx, model.json, model_card.md, metrics.json, "
        "best_config.yaml and examples/. Exit codes: 0 done, 2 bad input, 3 a training or a file did not "
        "end well, 4 --fail-unless-equal not met, 130 interrupted.",
    )
    p.add_argument(
        "config", type=Path, metavar="CONFIG", help="file from python -m aim_tune.export"
    )
    p.add_argument(
        "--out",
        type=Path,
        help="folder for the network (retrained/NAME-ARM beside CONFIG); of several: for their folders",
    )
    _add_training(p)
    _add_result(p)
    options.add_tracking(p, "mlflow.db of the results folder")
    return p


def _add_training(p: argparse.ArgumentParser) -> None:
    what = p.add_argument_group("what is trained")
    what.add_argument("--arm", action="append", default=[], dest="arms", metavar="ARM",
                      help="another arm of the study than the exported one; may be repeated")  # fmt: skip
    what.add_argument("--both", action="store_true", help="baseline and the arm with the add-on")
    budget = what.add_mutually_exclusive_group()
    budget.add_argument(
        "--epochs",
        type=options.count,
        metavar="N",
        help="another budget: passes over the data",
    )
    budget.add_argument(
        "--steps", type=options.count, metavar="N", help="another budget: optimizer steps"
    )
    what.add_argument("--patience", type=options.count, metavar="N", help="early stopping: end after N "
                      "validation passes without a gain, keep the weights of the best one")  # fmt: skip
    what.add_argument("--data", type=Path, metavar="FOLDER", help="own images: train/CLASS/* (and "
                      "test/CLASS/*); or another root of the study's data set")  # fmt: skip
    what.add_argument("--seed", type=int, metavar="N", help="fresh random streams from this seed instead of "
                      "the recorded ones: another network")  # fmt: skip
    what.add_argument("--seeds", type=options.count, metavar="N", help="N networks with seeds 1 to N (from "
                      "--seed on), their mean and spread")  # fmt: skip
    what.add_argument("--device", choices=("cpu", "cuda"), help="where to train (as in the study)")
    options.add_set(p, "resources.cpu=4")


def _add_result(p: argparse.ArgumentParser) -> None:
    p.add_argument("--forms", type=_forms, default=FORMS, metavar="LIST",
                   help="what is written of weights,program,onnx (all; weights always)")  # fmt: skip
    p.add_argument("--register", metavar="NAME", help="put the network into MLflow's model registry (of "
                   "several: the one with the best validation accuracy)")  # fmt: skip
    p.add_argument("--fail-unless-equal", action="store_true", help="exit with 4 unless the validation "
                   "curve equals the recorded one bit for bit")  # fmt: skip
    p.add_argument(
        "--force", action="store_true", help="train again what is there, replace what is other"
    )


def _forms(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in FORMS]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(FORMS)}")
    return tuple(form for form in FORMS if form in names or form == "weights")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    if args.register and args.tracking == "off":
        parser().error("--register needs MLflow; leave out --tracking off")
    from aim_tune.engine.stop import Interrupted, Stop

    try:
        with Stop():
            return _retrain(args)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    except Interrupted as error:
        options.complain("Interrupted; the same command goes on from the last checkpoint.")
        return error.exit_code


def _retrain(args: argparse.Namespace) -> int:
    from aim_tune.retraining import retrain

    tasks = _tasks(args)
    _check_tracking(args)
    done = []
    for task in tasks:
        print(
            f"Training {task.arm} of {task.study.name}, {task.steps:,} steps, into {task.out}",
            flush=True,
        )
        retrained = retrain(task, args.forms, say=lambda line: print(line, flush=True))
        print(_summary(retrained), flush=True)
        _track(args, retrained)
        done.append(retrained)
    if len(done) > 1:
        _show_several(args, done)
    if args.register:
        _register(args, done)
    if not all(one.well for one in done):
        return EXIT_TOO_MANY_FAILED
    unequal = any(one.metrics["differences"] for one in done)
    return EXIT_NOT_MET if args.fail_unless_equal and unequal else EXIT_DONE


# --- before -----------------------------------------------------------------------------------------


def _tasks(args: argparse.Namespace) -> list[Task]:
    """One per arm and seed, each with its folder free or its own; raises what is wrong with any."""
    from aim_tune.artifacts.config import for_arm, read_config
    from aim_tune.retraining import check_free, prepare

    config = read_config(args.config)
    arms, seeds = _arms(args, config), _seeds(args)
    several = len(arms) * len(seeds) > 1
    tasks = []
    for seed in seeds:
        for arm in arms:
            own = for_arm(config, arm)
            out = _folder(args, own, seed, several=several, arms=len(arms))
            tasks.append(prepare(args.config, own, _wish(args, seed), out))
    for task in tasks:
        check_free(task, force=args.force)
    if args.data:
        print(_about_data(tasks[0]))
    return tasks


def _arms(args: argparse.Namespace, config: Mapping[str, Any]) -> list[str]:
    from aim_tune.spec import BASELINE, Study

    if not args.both:
        return list(dict.fromkeys(args.arms)) or [config["arm"]]
    primary = Study.from_dict(config["study"]).primary
    if primary is None:
        raise UserError("--both: the study has no add-on, only the baseline")
    return [BASELINE, primary]


def _seeds(args: argparse.Namespace) -> list[int | None]:
    if args.seeds is None:
        return [args.seed]
    first = 1 if args.seed is None else args.seed
    return list(range(first, first + args.seeds))


def _wish(args: argparse.Namespace, seed: int | None) -> Wish:
    from aim_tune.retraining import Wish

    return Wish(overrides=tuple(args.overrides), seed=seed, steps=args.steps, epochs=args.epochs,
                patience=args.patience, data=args.data, device=args.device)  # fmt: skip


def _folder(
    args: argparse.Namespace,
    config: Mapping[str, Any],
    seed: int | None,
    *,
    several: bool,
    arms: int,
) -> Path:
    """retrained/NAME-ARM, or --out; of several networks a folder in it for each."""
    beside = args.config.parent / "retrained"
    name, arm = config["study"]["name"], config["arm"]
    if not several:
        return args.out or beside / f"{name}-{arm}"
    parts = [arm] * (arms > 1 or args.out is None) + [f"seed-{seed}"] * (seed is not None)
    return (args.out or beside / name) / "-".join(parts)


def _about_data(task: Task) -> str:
    """What --data has come to: it may have other classes than the study."""
    info = task.info
    shown = ", ".join(info.class_names[:10]) + (", ..." if info.classes > 10 else "")
    share = task.study.data.settings.get("test_share")
    sealed = (
        f" A share of {share} of train/ is sealed as test (there is no test/)." if share else ""
    )
    epochs = task.steps * task.recipe.batch_size / info.train
    return (
        f"Own data: {info.classes} classes ({shown}), {info.train:,} images to train on, {info.val:,} to "
        f"validate, {info.test:,} to test.{sealed}\nThe network is built for these classes and trained "
        f"from scratch: {task.steps:,} steps, {epochs:.1f} passes (--epochs N for another budget). The "
        "recorded score says nothing about it."
    )


def _check_tracking(args: argparse.Namespace) -> None:
    """Better now than after the training."""
    if args.register:
        from aim_tune.tracking.models import check_name

        check_name(args.register)
    if args.tracking == "on" and (uri := options.tracking_uri(args)):
        from aim_tune.tracking.place import probe

        probe(uri)


# --- after ------------------------------------------------------------------------------------------


def _summary(done: Retrained) -> str:
    from aim_tune.artifacts.card import expected_words, percent
    from aim_tune.artifacts.record import in_words

    result = done.log.training.result
    if not done.metrics:
        return (
            f"The training ended as {done.log.training.status}: {result.detail if result else ''}"
        )
    ended = "" if result is None or result.status == "ok" else (
        f"The training ended as {result.status}: {result.detail}\n"
    )  # fmt: skip
    task = done.task
    return (
        f"{ended}Test accuracy {percent(done.metrics['test_accuracy'])} on {task.info.test:,} sealed "
        f"images. {expected_words(task.config)}\n{in_words(done.metrics)}\n"
        f"Wrote {task.out}; model_card.md says what is in it.\n"
        f"Try it: python -m aim_tune.predict {task.out} {task.out / 'examples'}"
    )


def _track(args: argparse.Namespace, done: Retrained) -> None:
    """Log the training to MLflow, unless that is off; remember where."""
    if args.tracking == "off" or not done.metrics:
        return
    from aim_tune.retraining import CARD, CONFIG, METRICS, ONNX, PROGRAM, WEIGHTS, write_metrics
    from aim_tune.tracking.models import log_retrained

    task, names = done.task, (CARD, CONFIG, METRICS, WEIGHTS, PROGRAM, ONNX, "model.json")
    try:
        logged = log_retrained(
            study=task.study,
            history=done.log.history,
            training=done.log.training,
            note=(task.out / CARD).read_text(encoding="utf-8"),
            files=[task.out / name for name in names],
            results=_results_of(args.config),
            uri=options.tracking_uri(args),
        )
    except UserError as error:
        options.complain(f"Not in MLflow: {error}")
        if args.register:
            raise
        return
    done.metrics["mlflow"] = {"uri": logged.uri, "experiment": logged.experiment,
                              "experiment_id": logged.experiment_id, "run_id": logged.run_id}  # fmt: skip
    write_metrics(task.out, done.metrics)
    print(f"In MLflow: experiment {logged.experiment}")


def _register(args: argparse.Namespace, done: Sequence[Retrained]) -> None:
    """A new version of the registered model, unless this network is one already."""
    from aim_tune.artifacts.card import percent
    from aim_tune.retraining import write_metrics

    able = [one for one in done if one.metrics and one.well]
    if not able:
        raise UserError(f"nothing was registered as {args.register}: no training ended well")
    best = max(able, key=lambda one: one.metrics["result"]["val_accuracy"])
    there = best.metrics.get("registered", {})
    home = best.metrics["mlflow"]["uri"]
    if (there.get("name"), there.get("store")) == (args.register, home):
        print(f"Registered before as {there['uri']}")
        return
    uri, detail = _new_version(args.register, best)
    best.metrics["registered"] = {"name": args.register, "uri": uri, "store": home}
    write_metrics(best.task.out, best.metrics)
    which = f", the best of {len(able)} by validation accuracy" if len(able) > 1 else ""
    print(
        f"Registered {best.task.out.name} as {uri}{which} ({percent(best.metrics['test_accuracy'])} on "
        f"test); loaded again: {detail}\n"
        f"Try it: python -m aim_tune.predict {uri} {best.task.out / 'examples'} --tracking-uri {home}"
    )


def _new_version(name: str, one: Retrained) -> tuple[str, str]:
    import torch

    from aim_tune.artifacts.description import FILE
    from aim_tune.artifacts.network import compare, prepared_of
    from aim_tune.retraining import about, network_of, test_pixels
    from aim_tune.tracking.models import Logged, register

    task, logged = one.task, dict(one.metrics["mlflow"])
    described, pixels = about(task), test_pixels(task)
    prepared = prepared_of(network_of(task, one.log), described)
    with torch.no_grad():
        scores = prepared(pixels)
    return register(
        Logged(**logged),
        name,
        prepared,
        pixels[:2].numpy(),
        classes=task.info.classes,
        extra=[task.out / FILE],
        tags={"aim.arm": task.arm, "aim.comparison": task.study.name,
              "aim_tune.weights": str(one.metrics["result"]["weights_sha256"])},
        note=(task.out / "model_card.md").read_text(encoding="utf-8")[:5000],
        compare=lambda run: compare(lambda x: torch.as_tensor(run(x.numpy())), pixels, scores),
    )  # fmt: skip


def _show_several(args: argparse.Namespace, done: Sequence[Retrained]) -> None:
    """Mean and spread per arm; a table on the screen and summary.json beside the networks."""
    from aim_tune.artifacts.card import percent

    arms: dict[str, list[float]] = {}
    for one in done:
        score = one.metrics.get("test_accuracy")
        arms.setdefault(one.task.arm, []).extend([score] if score is not None else [])
    print("\narm             networks   test accuracy    spread (sd)   lowest to highest")
    for arm, scores in arms.items():
        if not scores:
            print(f"{arm:<15} {0:>8}   no network")
            continue
        spread = f"{100 * stdev(scores):.2f} points" if len(scores) > 1 else "-"
        ends = f"{percent(min(scores))} to {percent(max(scores))}"
        print(f"{arm:<15} {len(scores):>8}   {percent(fmean(scores)):>13}   {spread:>12}   {ends}")
    if len(arms) > 1:
        print(
            "Networks of one configuration per arm are no comparison of arms: that is the study's verdict."
        )
    rows = [{"folder": one.task.out.name, "arm": one.task.arm,
             "test_accuracy": one.metrics.get("test_accuracy"),
             "val_accuracy": one.metrics.get("result", {}).get("val_accuracy"),
             "status": one.log.training.status} for one in done]  # fmt: skip
    path = done[0].task.out.parent / "summary.json"
    write_whole(path, json.dumps(rows, indent=2) + "\n")
    print(f"Wrote {path}")


def _results_of(config: Path) -> Path:
    """The results folder a configuration lies in; for one that was moved, `results` here."""
    home = config.resolve().parent.parent
    return home if (home / "mlflow.db").is_file() else Path("results")


if __name__ == "__main__":
    sys.exit(main())
