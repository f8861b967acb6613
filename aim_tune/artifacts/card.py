"""The model card, Markdown, from the figures of a retraining. Pure.

Sections as in Mitchell et al. 2019 (Model Cards for Model Reporting), as far as this package can know them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aim_tune.artifacts.description import Description
from aim_tune.artifacts.record import in_words

MOST_CLASSES = 20
"""Classes that are listed one by one."""


def model_card(metrics: Mapping[str, Any], config: Mapping[str, Any], about: Description) -> str:
    """The whole card. `metrics` is metrics.json, `config` the best_config.yaml that was trained."""
    study, origin = config["study"], config["provenance"]
    parts = [
        f"# {study['backbone']['name']} on {study['data']['name']}, arm {config['arm']}",
        f"{_accuracy(metrics)} {expected_words(config)}",
        in_words(metrics, bullet="- ", gap="\n"),
        "## Network", _network(metrics, config, about),
        "## Use", _use(metrics, about),
        "## Training", _training(metrics, config),
        "## Results", _results(metrics, about),
        "## Intended use and limits", _limits(metrics),
        "## Where it comes from",
        f"Study `{origin['study_name']}` ({origin['study_hash']}), status {origin['status']}, position "
        f"`{config['recorded']['position']}`. {origin.get('sentence') or ''}",
        f"Data digest `{metrics['data']['digest']}`, code `{metrics['code_hash']}`, weights "
        f"`{metrics['result']['weights_sha256']}`. "
        + ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()) + ".",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def percent(share: float | None) -> str:
    """Such as 93.10 %."""
    return "not measured" if share is None else f"{100 * share:.2f} %"


def interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share seen in n draws (Wilson 1927).

    >>> [round(v, 3) for v in interval(0.9, 100)]
    [0.826, 0.945]
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def expected_words(config: Mapping[str, Any]) -> str:
    """What the study leads one to expect."""
    expected = config.get("expected") or {}
    score, runs = expected.get("test_accuracy"), expected.get("n_confirm")
    if score is None:
        return "The study has not measured what to expect."
    return f"The study expects {percent(score)} (mean of {runs} fresh trainings)."


def _accuracy(metrics: Mapping[str, Any]) -> str:
    score, n = metrics["test_accuracy"], metrics["data"]["test"]
    if score is None:
        return "**Test accuracy not measured.**"
    low, high = interval(score, n)
    return (
        f"**Test accuracy {percent(score)}** on {n:,} sealed test images (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} for this one network)."
    )


def _network(metrics: Mapping[str, Any], config: Mapping[str, Any], about: Description) -> str:
    result = metrics["result"]
    flops = f", {result['flops'] / 1e6:,.2f} MFLOPs per image forward" if result["flops"] else ""
    channels, height, width = about.image_shape
    point = {**config["point"]["shared"], **config["point"]["addon"]}
    rows = [f"| {name} | `{json.dumps(value)}` |" for name, value in point.items()]
    table = "\n".join(["| setting | value |", "| --- | --- |", *rows])
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return (
        f"{result['parameters']:,} parameters, {result['trainable']:,} of them trained{flops}. Takes "
        f"{kind} images of {height} x {width} pixels, knows {len(about.classes):,} classes: "
        f"{_names(about.classes)}.\n\n{table}"
    )


def _use(metrics: Mapping[str, Any], about: Description) -> str:
    made = about.preparation
    shape = "B, " + ", ".join(map(str, about.image_shape))
    rows = "\n".join(
        f"| `{form['file']}` | {_FORMS[name]} | {_STATUS[form['status']]}{form['detail']} |"
        for name, form in metrics["files"].items()
    )
    return (
        f"`program.pt2` and `model.onnx` take pixels `[{shape}]` float32, black {made.black:g}, white "
        f"{made.white:g}, and give one score per class; the normalization is inside. `weights.pt` is "
        "the plain state_dict and takes normalized images.\n\n"
        "```sh\npython -m aim_tune.predict THIS_FOLDER IMAGES_FOLDER\n```\n\n"
        "```python\nimport torch\n\nnetwork = torch.export.load(\"program.pt2\").module()\n"
        f"scores = network(torch.zeros({', '.join(['2', *map(str, about.image_shape)])}))\n"
        "```\n\n"
        "`aim_tune.load_model(THIS_FOLDER)` gives the nn.Module for more training.\n\n"
        f"| file | what | checked |\n| --- | --- | --- |\n{rows}"
    )  # fmt: skip


_FORMS = {
    "weights": "state_dict",
    "program": "torch.export program",
    "onnx": "ONNX, for runtimes without torch",
}
_STATUS = {"same": "", "left_out": "left out: ", "failed": "failed, not kept: "}


def _training(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    result, data, recipe = metrics["result"], metrics["data"], config["study"]["recipe"]
    kept = {k: v for k, v in recipe.items() if v not in (None, [], False, 0.0)}
    words = ", ".join(f"{name} {json.dumps(value)}" for name, value in kept.items())
    ended = "" if result["status"] == "ok" else f" It ended as {result['status']}."
    detail = f" {result['detail'][0].upper()}{result['detail'][1:]}." if result["detail"] else ""
    return (
        f"{result['steps']:,} of {result['allotted_steps']:,} steps on {data['train']:,} images, "
        f"validated on {data['val']:,}, on {result['device']}, in {result['seconds']:.1f} s.{ended}"
        f"{detail} Recipe: {words}; the settings above win."
    )


def _results(metrics: Mapping[str, Any], about: Description) -> str:
    lines = [
        f"| validation accuracy of these weights | {percent(metrics['result']['val_accuracy'])} |",
        f"| test accuracy | {percent(metrics['test_accuracy'])} |",
    ]
    classes = metrics.get("per_class") or []
    if 0 < len(classes) <= MOST_CLASSES:
        lines += [
            f"| test accuracy, class {name} | {percent(share)} of {n} |"
            for name, (share, n) in zip(about.classes, classes, strict=True)
        ]
    return "\n".join(["| figure | value |", "| --- | --- |", *lines])


def _limits(metrics: Mapping[str, Any]) -> str:
    same = not any(change.startswith("own data") for change in metrics["changes"])
    seen = (
        " The test images were also used by the study this configuration comes from."
        if same
        else " The settings were chosen on other data than it was trained on."
    )
    return (
        "For images of the kind it was trained on. The figures are one training on one test set of such "
        "images: they say nothing about other images, other label noise or shifted conditions, and "
        "nothing about single groups within a class. A score is no calibrated probability." + seen
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_CLASSES])
    rest = len(names) - MOST_CLASSES
    return shown + (f" and {rest} more" if rest > 0 else "")
