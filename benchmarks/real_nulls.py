"""The protocol tried on itself with real trainings: the same network in both arms, many whole studies.

Study k takes real_nulls.yaml with data seed k (its own 797 of the 1,797 digits as test examples, its own
noise) and search seed k (its own splits, draws and weights). The arms have the same law and share no random
weights, so every "better" and every "worse" is false. Shared by all studies: the 1,797 images. Engine,
machine, ledger records, scoring and verdict are those of a search; the ledger is kept in memory.

    python benchmarks/real_nulls.py                  200 studies, about 5 minutes of one idle core
    python benchmarks/real_nulls.py --studies 20 --json -
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from aim_tune.data.sealed import test_labels
from aim_tune.engine import in_process
from aim_tune.engine.conductor import Conductor
from aim_tune.ledger import History
from aim_tune.protocol import Machine
from aim_tune.spec import load_study
from aim_tune.stats import Verdict, decide
from aim_tune.tables import HOUSE

STUDY = Path(__file__).with_name("real_nulls.yaml")
MOST_WRONG = 0.06


class Memory:
    """A ledger without a file."""

    def __init__(self) -> None:
        self.history = History()

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Take one record."""
        record = {"time": time.time(), **event}
        self.history.apply(record)
        return record


def one_study(number: int) -> tuple[History, Verdict]:
    """Study `number`, trained and judged."""
    study, catalog = load_study(STUDY, HOUSE, [f"data.seed={number}", f"protocol.seed={number}"])
    ledger = Memory()
    conductor = Conductor(study, Machine(study), ledger, test_labels(study.data, catalog))
    in_process.run(conductor, study, None)
    return ledger.history, decide(study, ledger.history)


def figures_of(number: int) -> dict[str, Any]:
    """What is counted of one study."""
    history, verdict = one_study(number)
    main = verdict.primary
    assert main is not None, "every study compares"
    assert main.ci95_points is not None, "six blocks have an interval"
    return {
        "verdict": verdict.verdict,
        "claim": verdict.claim,
        "effect": verdict.effect_points,
        "covered": main.ci95_points[0] <= 0 <= main.ci95_points[1],
        "block_sd": float(np.std(main.differences_points, ddof=1)),
        "accuracy": verdict.arms["baseline"].mean_points,
        "trainings": len(history.trainings),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over the studies."""
    verdicts = Counter(r["verdict"] for r in rows)
    false = verdicts["better"] + verdicts["worse"]
    wilson = stats.binomtest(false, len(rows)).proportion_ci(method="wilson")
    return {
        "studies": len(rows),
        "trainings": sum(r["trainings"] for r in rows),
        "verdicts": dict(sorted(verdicts.items())),
        "false": false,
        "share": false / len(rows),
        "interval": [float(wilson.low), float(wilson.high)],
        "on_this_test_set_only": sum(
            r["claim"] == "this_test_set" and r["verdict"] in ("better", "worse") for r in rows
        ),
        "covered": sum(r["covered"] for r in rows) / len(rows),
        "mean_effect": float(np.mean([r["effect"] for r in rows])),
        "mean_block_sd": float(np.sqrt(np.mean([r["block_sd"] ** 2 for r in rows]))),
        "mean_accuracy": float(np.mean([r["accuracy"] for r in rows])),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write. Exit code 1 where more than 6 % of the studies err, beyond chance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for the screen)")
    args = parser.parse_args(arguments)
    rows = []
    for number in range(args.studies):
        rows.append(figures_of(number))
        if (number + 1) % 20 == 0:
            print(f"{number + 1} studies, {dict(Counter(r['verdict'] for r in rows))}", flush=True)
    found = summary(rows)
    low, high = found["interval"]
    print(
        f"{found['studies']} studies of {found['trainings']:,} real trainings: {found['false']} false "
        f"verdicts, {found['share']:.1%} [{low:.1%}, {high:.1%}]"
    )
    if args.json:
        text = json.dumps(found, indent=1)
        sys.stdout.write(f"{text}\n") if args.json == "-" else Path(args.json).write_text(text)
    return 1 if low > MOST_WRONG else 0


if __name__ == "__main__":
    sys.exit(main())
