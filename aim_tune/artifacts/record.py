"""Does a retraining repeat the recorded one, and if not, why? Pure: plain values in, words out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aim_tune.ledger import Training

NO_REASON = (
    "no reason known: same data, code, versions, device and settings. Please report this with the "
    "configuration file"
)


def differences(
    config: Mapping[str, Any],
    training: Training,
    *,
    changes: Sequence[str],
    now: Mapping[str, Any],
) -> list[str]:
    """[] where the curve equals the recorded one bit for bit; else what was asked otherwise (`changes`),
    or where it begins to differ and why it may. `now`: data_digest, code_hash, versions of this training.
    """
    recorded = config["recorded"]
    then = list(zip(recorded["steps"], recorded["val_accuracy"], strict=True))
    here = [(m.step, m.val_accuracy) for m in training.curve]
    if then == here:
        return []
    if changes:
        return list(changes)
    return [_first_difference(then, here), *(_reasons(config, training, now) or [NO_REASON])]


def _first_difference(then: Sequence[tuple[int, float]], now: Sequence[tuple[int, float]]) -> str:
    for old, new in zip(then, now, strict=False):
        if old != new:
            return (
                f"first different pass: recorded {100 * old[1]:.2f} % at step {old[0]}, now "
                f"{100 * new[1]:.2f} % at step {new[0]}"
            )
    return f"{len(then)} validation passes are recorded, now there were {len(now)}"


def _reasons(config: Mapping[str, Any], training: Training, now: Mapping[str, Any]) -> list[str]:
    """Known differences between this training and the recorded one."""
    origin, recorded = config["provenance"], config["recorded"]
    found = []
    if origin.get("data_digest") not in (None, now["data_digest"]):
        found.append(f"other data: digest {origin['data_digest']} then, {now['data_digest']} now")
    if origin.get("code_hash") not in (None, now["code_hash"]):
        found.append(f"other code of aim_tune: {origin['code_hash']} then, {now['code_hash']} now")
    for name, version in (origin.get("versions") or {}).items():
        if now["versions"].get(name) not in (None, version):
            found.append(f"{name} {version} then, {now['versions'][name]} now")
    device = training.result.device if training.result else ""
    if device != recorded.get("device"):
        found.append(f"{recorded.get('device')} then, {device} now")
    elif device.startswith("cuda"):
        found.append("a GPU adds numbers in an order that may change from run to run")
    if recorded.get("status") not in (None, "ok"):
        found.append(f"the recorded training ended as {recorded['status']}")
    return found


def in_words(metrics: Mapping[str, Any], *, bullet: str = "  - ", gap: str = "") -> str:
    """The comparison with the record, for people."""
    if metrics["equals_recorded"]:
        return "The validation curve equals the recorded one bit for bit."
    head = (
        "Another training than the recorded one, as asked:"
        if metrics["changes"]
        else "The validation curve differs from the recorded one:"
    )
    return "\n".join([head + gap, *(f"{bullet}{line}" for line in metrics["differences"])])
