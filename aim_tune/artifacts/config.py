"""best_config.yaml: written with a comment beside every key that a reader may wonder about, and read back.

What stands in it is decided in protocol.best. A comment says what the value is, its unit and where it
came from; settings of backbones, data sets and add-ons are explained by their rows in the catalog.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aim_tune.errors import UserError, unknown
from aim_tune.spec import Catalog, Point, Request, Study, dump, load_plain
from aim_tune.spec.study import BASELINE

CONFIG_FORMAT = "aim_tune.best_config/"
NEEDED = ("arm", "point", "streams", "study", "recorded", "provenance")
ORDER = (
    "format",
    "arm",
    "point",
    "expected",
    "streams",
    "recorded",
    "others",
    "provenance",
    "study",
)
"""Keys in the order of the file; unknown ones follow."""
WIDTH = 100

SECTIONS = {
    "arm": "Which arm this is; `point` is what the search found for it.",
    "expected": "What to expect of it on new images of this kind.",
    "streams": "Random streams of the recorded training: with them a retraining repeats it exactly.",
    "recorded": "The training to repeat, as it happened.",
    "others": "The other arms, for `python -m aim_tune.retrain THIS_FILE --arm NAME` or --both.",
    "provenance": "Where all this comes from.",
    "study": "The resolved study. The point above decides whatever was searched in it.",
}
"""Comments above the sections."""
COMMENTS = {
    "point.shared": "hyperparameters of the training",
    "point.addon": "settings of the add-on; none for the baseline",
    "expected.test_accuracy": "share 0 to 1: mean over all confirm runs of the arm",
    "expected.test_accuracy_sd": "their standard deviation",
    "expected.val_accuracy": "share 0 to 1: mean validation accuracy of the same runs",
    "expected.n_confirm": "confirm runs: fresh trainings with fresh streams, scored on the sealed test",
    "expected.n_blocks": "blocks (fresh train/validation splits) that they come from",
    "expected.reruns": "this very point again, on fresh seeds and splits: no luck of a search is in it",
    "expected.note": "how far the figures above can be trusted",
    "streams.split": "which images train and which validate",
    "streams.init": "first weights of the backbone",
    "streams.order": "order of the training images",
    "streams.augment": "augmentation of each batch",
    "streams.dropout": "dropout, where the backbone has it",
    "streams.addon": "first values of the add-on",
    "recorded.position": "its place in the study's ledger",
    "recorded.allotted_steps": "optimizer steps it was given",
    "recorded.steps": "optimizer steps at which it was validated",
    "recorded.val_accuracy": "share 0 to 1 at each of them",
    "recorded.test_accuracy": "share 0 to 1 on the sealed test; null: never tested",
    "recorded.status": "ok, or why it ended before its time",
    "recorded.device": "bits repeat on the same kind of processor",
    "recorded.weights_sha256": "digest of the final weights",
    "provenance.study_name": "results/STUDY_NAME holds its ledger",
    "provenance.study_hash": "digest of what was asked",
    "provenance.code_hash": "digest of the code that trained",
    "provenance.data_digest": "digest of every image and label",
    "provenance.versions": "libraries that trained",
    "provenance.seed": "protocol.seed of the study",
    "provenance.status": "complete, or unfinished or failed (then exported because somebody insisted)",
    "provenance.verdict": "of the whole study, in a word",
    "provenance.sentence": "and in words",
    "study.backbone": "the plain network",
    "study.data": "the data set",
    "study.arms": "ways to build the network that were compared",
    "study.recipe": "how every arm is trained",
    "study.recipe.steps": "optimizer steps; or epochs",
    "study.recipe.epochs": "passes over the training images; or steps",
    "study.recipe.batch_size": "images per step",
    "study.recipe.schedule": "of the learning rate",
    "study.recipe.momentum": "SGD only",
    "study.recipe.label_smoothing": "share 0 to 1",
    "study.recipe.grad_clip": "largest gradient norm; null: not clipped",
    "study.recipe.augment": "of training images only",
    "study.recipe.evaluations": "validation passes, evenly spread over the steps",
    "study.recipe.early_stopping_patience": "validation passes without a gain; null: to the last step",
    "study.recipe.early_stopping_min_delta": "smaller gains in validation accuracy do not count",
    "study.recipe.amp": "bfloat16 autocast",
    "study.recipe.channels_last": "memory format",
    "study.shared": "what was searched for all arms alike",
    "study.addon": "what was searched for the add-on",
    "study.protocol": "how much evidence was gathered",
    "study.resources": "what one training gets",
    "study.resources.cpu": "threads; another number gives other bits",
    "study.resources.gpu": "0: trains on the CPU",
    "study.resources.time_limit_s": "longest training, seconds; null: none",
    "study.resources.checkpoint_s": "shortest time between two checkpoints, seconds",
    "study.plugins": "files with rows of their own, source included",
}  # fmt: skip
"""Dotted key -> what it is."""
SHARED = {
    "lr": "peak learning rate",
    "weight_decay": "per step, times the learning rate",
    "momentum": "of SGD",
    "label_smoothing": "share 0 to 1",
    "grad_clip": "largest gradient norm",
    "batch_size": "images per step",
    "schedule": "of the learning rate",
    "augment": "of training images only",
}


def config_text(config: Mapping[str, Any], catalog: Catalog) -> str:
    """A configuration as commented YAML; `read_config` gives the same values back."""
    comments = {**COMMENTS, **_setting_comments(config, catalog)}
    parts = [_head(config)]
    for key in (*ORDER, *(k for k in config if k not in ORDER)):
        if key in config:
            above = f"# {SECTIONS[key]}\n" if key in SECTIONS else ""
            value = {key: config[key]}
            own = {} if key == "others" else comments  # the same as above, for other arms
            text = "\n".join(_lines(value, own))
            gap = "" if key == "point" else "\n"
            parts.append(f"{gap}{above}{text}\n")
    return "".join(parts)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a file. Raises UserError where it is not one."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file, such as {path / 'best_config.yaml'}")
    if not path.is_file():
        raise UserError(
            f"{path} is not there; make one: python -m aim_tune.export results/NAME -o {path}"
        )
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


def for_arm(config: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The configuration of another arm of the same study."""
    if arm == config["arm"]:
        return dict(config)
    others = config.get("others", {})
    if arm not in others:
        raise UserError(f"the configuration has an {unknown('arm', arm, [config['arm'], *others])}")
    return {**config, **others[arm], "arm": arm, "others": {}}


def asked(config: Mapping[str, Any]) -> tuple[Study, Request]:
    """The study of a configuration, and its recorded training as a request of one arm."""
    study, arm = Study.from_dict(config["study"]), config["arm"]
    allotted = config["recorded"].get("allotted_steps")
    request = Request(
        position=config["recorded"]["position"],
        arms={arm: Point.from_dict(config["point"])},
        streams=config["streams"],
        test=True,
        steps={arm: allotted} if allotted else {},
    )
    return study, request


def _head(config: Mapping[str, Any]) -> str:
    origin = config["provenance"]
    plain = config["arm"] == BASELINE and len(config["study"]["arms"]) > 1
    other = ["The plain network, as no add-on was found better; `others` holds the other arms."]
    lines = [
        f"Best configuration of {origin['study_name']}, arm {config['arm']}.",
        *(other if plain else []),
        *textwrap.wrap(origin.get("sentence") or "No verdict.", WIDTH - 2),
        "Train it: python -m aim_tune.retrain THIS_FILE",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _setting_comments(config: Mapping[str, Any], catalog: Catalog) -> dict[str, str]:
    """Dotted key -> comment, for what was searched and for the settings of the rows used."""
    study = config["study"]
    found = {}
    for key in study["shared"]:
        found[f"point.shared.{key}"] = _searched(SHARED.get(key, ""), study["shared"][key])
        found[f"study.shared.{key}"] = SHARED.get(key, "")
    for section, table in (
        ("backbone", catalog.backbones),
        ("data", catalog.data),
        ("addon", catalog.addons),
    ):
        row = table.get(study.get(section, {}).get("name", ""))
        for key, setting in row.settings.items() if row is not None else ():
            found[f"study.{section}.{key}"] = setting.doc
            if section == "addon":
                found[f"point.addon.{key}"] = _searched(setting.doc, study["addon"].get(key))
    return {key: text for key, text in found.items() if text}


def _searched(doc: str, domain: Any) -> str:
    """What a value is, and what it was chosen from."""
    if not isinstance(domain, Mapping):
        return "; ".join(t for t in (doc, "fixed by the study") if t)
    ((kind, values),) = domain.items()
    return "; ".join(t for t in (doc, f"found in {kind} {json.dumps(values)}") if t)


def _lines(
    value: Mapping[str, Any], comments: Mapping[str, str], prefix: str = ""
) -> Iterator[str]:
    """YAML lines of a mapping, comments beside short values and above long ones."""
    indent = "  " * prefix.count(".")
    for key, item in value.items():
        name = f"{prefix}{key}"
        opened = isinstance(item, Mapping) and any(f"{name}.{k}" in comments for k in item)
        text = [f"{key}:"] if opened else dump({key: item}).splitlines()
        comment = f"# {comments[name]}" if name in comments else ""
        if comment and (len(text) > 1 or len(indent + text[0]) + 2 + len(comment) > WIDTH):
            wrapped = textwrap.wrap(comments[name], WIDTH - 2 - len(indent))
            yield from (f"{indent}# {line}" for line in wrapped)
            comment = ""
        yield f"{indent}{text[0]}" + (f"  {comment}" if comment else "")
        yield from (f"{indent}{line}" for line in text[1:])
        if opened:
            yield from _lines(item, comments, f"{name}.")
