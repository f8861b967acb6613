"""The protocol tried on itself: thousands of simulated studies through the real code, training replaced.

Machine, gates, ledger records and their replay, `decide`: all real; `invented.py` says what is not. A
null case has no true effect: false verdicts may come in 6 % of its studies. The other cases have one, or
show where a verdict can mislead. Figures and what they mean: docs/evidence.md. A seed gives one set.

    python benchmarks/self_test.py                        all cases: about 25 minutes of one idle core
    python benchmarks/self_test.py --only identical pool  two of them
    python benchmarks/self_test.py --studies 400 --processes 2 --json figures.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from invented import QUICK, SEED_SD, STEEPNESS, Case, World, judgments
from scipy import stats

from aim_tune.protocol.plan import power
from aim_tune.spec.study import BASELINE
from aim_tune.stats import Verdict

MOST_WRONG = 0.06
"""Largest share of false verdicts, better and worse together."""
LEAST_FOUND, PLANNER = 0.90, 0.05
"""Least share of studies that find one point by the default plan; largest error of the planner."""

CASES: Mapping[str, Case] = {
    "identical": Case(about="identical arms, default plan"),
    "quick": Case(about="identical arms, quick plan", plan=QUICK),
    "shifted": Case(
        about="optima apart by 0.1 of every range, mirrored around its middle",
        best={BASELINE: 0.45, "aim": 0.55},
    ),
    "irrelevant": Case(
        about="no setting matters: how often chance alone warns of an edge",
        steepness={BASELINE: 0.0, "aim": 0.0},
    ),
    "designs": Case(
        about="27 designs without effect through explore; placebo beside it; quick plan",
        plan=QUICK,
        arms=(BASELINE, "aim", "frozen"),
        explore=12,
    ),
    "narrowed": Case(
        about="the same, blocks drawing only from where explore found some arm good",
        plan=QUICK,
        arms=(BASELINE, "aim", "frozen"),
        explore=24,  # fewer than 20 different trials narrow nothing
        narrow=True,
    ),
    "divergence": Case(about="5 % of the trainings of either arm diverge (-4)", diverging=0.05),
    "examples": Case(
        about="one shared test set on which the arms differ (sd of the gap 0.38 points)",
        own_examples=0.36,
    ),
    "pool": Case(
        about="one shared pool of training examples that favors an arm (sd of the gap 0.30 points from one "
        "training set to another, 0.13 from one pool to another)",
        pool_sd=0.3,
    ),
    "tpe": Case(about="searches of 12 twins by TPE, 6 blocks of 1 pair", plan=(6, 12, 1)),
    "holm": Case(
        about="four identical arms: false verdicts, or false differences among the four adjusted ones",
        plan=QUICK,
        arms=(BASELINE, "aim", "frozen", "wide"),
    ),
    "looks": Case(
        about="planned looks at 8, 12 and 20 blocks, 2 twins, 1 confirm pair",
        plan=(20, 2, 1),
        protocol={"looks": (8, 12, 20)},
    ),
    "extended": Case(
        about="6 blocks of 2 twins and 1 pair; after an open end 2 more, and so on up to 20",
        plan=(6, 2, 1),
        extend=(8, 10, 12, 14, 16, 18, 20),
    ),
    "peeking": Case(
        about="6 blocks of 2 twins and 1 pair, the interim verdict read after each and believed",
        plan=(6, 2, 1),
        peek=True,
    ),
    "short_search": Case(
        about="search_fraction 0.2: shortened twins lie 3 points lower and have other best settings",
        plan=QUICK,
        protocol={"search_fraction": 0.2},
    ),
    "placebo": Case(
        about="+1.0 points for aim and for its placebo: is memory credited? Default plan",
        null=False,
        arms=(BASELINE, "aim", "frozen"),
        effects={"aim": 1.0, "frozen": 1.0},
    ),
    "placebo_later": Case(
        about='the same, the placebo trained only after a "better"',
        null=False,
        arms=(BASELINE, "aim", "frozen"),
        effects={"aim": 1.0, "frozen": 1.0},
        protocol={"attribution": "after_better"},
    ),
    "flat_basin": Case(
        about="same optimum, the arm's basin 3 times flatter (reported: tuning luck is an effect)",
        null=False,
        steepness={"aim": STEEPNESS / 3},
    ),
    "cut_off": Case(
        about="only lr matters; the baseline's optimum lies beyond its range (reported: is it warned of?)",
        null=False,
        axes=("lr",),
        best={BASELINE: 1.2, "aim": 0.7},
    ),
    "half_point": Case(about="planted +0.5 points, default plan", null=False, effects={"aim": 0.5}),
    "one_point": Case(about="planted +1.0 points, default plan", null=False, effects={"aim": 1.0}),
    "quick_point": Case(
        about="planted +1.0 points, quick plan", null=False, plan=QUICK, effects={"aim": 1.0}
    ),
    "looks_point": Case(
        about="planted +1.0 points, looks at 8, 12 and 20 blocks, 4 twins, 1 confirm pair",
        null=False,
        plan=(20, 4, 1),
        protocol={"looks": (8, 12, 20)},
        effects={"aim": 1.0},
    ),
}
PLANNED = ("half_point", "one_point", "quick_point")
"""Cases whose power the planner foretells (it knows one look, at the end)."""


def study_verdict(case: Case, seed: int) -> tuple[Verdict, World]:
    """One simulated study, judged until somebody is content, and the world it was run in."""
    study, world = case.study(seed), World(case, seed)
    for _, verdict in judgments(study, world):
        if verdict.verdict in ("better", "worse"):
            break
    return verdict, world


def figures_of(name: str, seed: int) -> dict[str, Any]:
    """What is counted of one study."""
    case = CASES[name]
    verdict, world = study_verdict(case, seed)
    assert verdict.primary is not None, "every simulated study compares"
    interval = verdict.primary.ci95_points
    assert interval is not None or verdict.anytime, "only early peeks give no interval"
    low, high = interval or (-np.inf, np.inf)
    return {
        "verdict": verdict.verdict,
        "local": verdict.claim == "this_test_set" and verdict.verdict in ("better", "worse"),
        "effect": verdict.effect_points,
        "missed": not low <= world.truth <= high,
        "family": _false_differences(verdict, case),
        "block_sd": float(np.std(verdict.primary.differences_points, ddof=1)),
        "blocks": verdict.blocks,
        "closing": bool(verdict.gap and verdict.gap.closing),
        "frozen": verdict.attribution.get("frozen", ""),
        "edges": len(verdict.edges),
    }


def _false_differences(verdict: Verdict, case: Case) -> bool:
    """Whether any comparison between arms of equal effect, the primary one aside, excludes 0."""
    return any(
        c.adjusted
        and c.ci95_points is not None
        and (c.ci95_points[0] > 0 or c.ci95_points[1] < 0)
        and case.effects.get(c.arm, 0.0) == case.effects.get(c.reference, 0.0)
        for c in verdict.comparisons.values()
    )


def wrong(name: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """False verdicts of a null case. `examples`: claims about new examples, as the arms do differ on the
    test set that there is. `pool`: intervals that miss what is true of this pool. Several arms: a false
    difference among the adjusted comparisons counts as well if that is more."""
    if CASES[name].pool_sd:
        return sum(r["missed"] for r in rows)
    decided = [r for r in rows if r["verdict"] in ("better", "worse")]
    false = sum(not r["local"] for r in decided) if CASES[name].own_examples else len(decided)
    return max(false, sum(r["family"] for r in rows))


def share(hits: int, count: int) -> dict[str, float]:
    """With its 95 % Wilson interval."""
    low, high = stats.binomtest(hits, count).proportion_ci(method="wilson")
    return {"share": hits / count, "low": float(low), "high": float(high)}


def summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares over the studies of a case."""
    case, count = CASES[name], len(rows)
    verdicts = Counter(r["verdict"] for r in rows)
    figures: dict[str, Any] = {
        "about": case.about,
        "studies": count,
        "verdicts": {name: hits / count for name, hits in sorted(verdicts.items())},
        "better": share(verdicts["better"], count),
        "worse": share(verdicts["worse"], count),
        "decided": share(verdicts["better"] + verdicts["worse"], count),
        "on_this_test_set_only": sum(r["local"] for r in rows) / count,
        "covered": 1 - sum(r["missed"] for r in rows) / count,
        "false_among_adjusted": share(sum(r["family"] for r in rows), count),
        "mean_effect": float(np.mean([r["effect"] for r in rows])),
        "mean_block_sd": float(np.sqrt(np.mean([r["block_sd"] ** 2 for r in rows]))),
        "mean_blocks": float(np.mean([r["blocks"] for r in rows])),
        "gap_closing": sum(r["closing"] for r in rows) / count,
        "edge_warnings": sum(r["edges"] > 0 for r in rows) / count,
    }
    if case.null:
        figures["wrong"] = share(wrong(name, rows), count)
    if "frozen" in case.arms:
        outcomes = Counter(r["frozen"] for r in rows if r["verdict"] == "better")
        figures["attribution"] = {name: hits / count for name, hits in sorted(outcomes.items())}
    if name in PLANNED:
        figures["planned_power"] = power(case.study(0), case.effects["aim"], seed_sd=SEED_SD)
    return figures


def run(names: Sequence[str], studies: int, *, processes: int, seed: int = 0) -> dict[str, Any]:
    """All figures, case by case."""
    found: dict[str, Any] = {}
    with Pool(processes) as pool:
        for name in names:
            start = time.perf_counter()
            count = studies if CASES[name].null else max(1, studies // 4)
            seeds = range(seed, seed + count)
            rows = pool.map(partial(figures_of, name), seeds, chunksize=max(1, count // 64))
            found[name] = summary(name, rows)
            found[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(line(name, found[name]), flush=True)
    return found


def line(name: str, figures: Mapping[str, Any]) -> str:
    """One case on one line, for the screen."""
    text = (
        f"{name:13s} n = {figures['studies']:,}: better {figures['better']['share']:.1%}, worse "
        f"{figures['worse']['share']:.1%}, only on this test set {figures['on_this_test_set_only']:.1%}, "
        f"covered {figures['covered']:.1%}, block sd {figures['mean_block_sd']:.2f}, blocks "
        f"{figures['mean_blocks']:.1f}, edge warnings {figures['edge_warnings']:.1%}"
    )
    if "wrong" in figures:
        bad = figures["wrong"]
        text += f", FALSE {bad['share']:.1%} [{bad['low']:.1%}, {bad['high']:.1%}]"
    if "planned_power" in figures:
        text += f", planned power {figures['planned_power']:.1%}"
    if "attribution" in figures:
        text += f", attribution {figures['attribution']}"
    return f"{text} ({figures['seconds']:.0f} s)"


def tables(found: Mapping[str, Any]) -> str:
    """The nulls, then the other cases, in Markdown: what docs/evidence.md shows."""

    def shown(share: Mapping[str, float]) -> str:
        return f"{share['share']:.1%} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"

    lines = ["| no true effect | n | better | worse | false |", "| --- | --- | --- | --- | --- |"]
    for figures in (f for f in found.values() if "wrong" in f):
        better, worse = figures["better"]["share"], figures["worse"]["share"]
        lines.append(
            f"| {figures['about']} | {figures['studies']:,} | {better:.1%} | {worse:.1%} | "
            f"{shown(figures['wrong'])} |"
        )
    lines += ["", "| other | n | better | planned | blocks |", "| --- | --- | --- | --- | --- |"]
    for figures in (f for f in found.values() if "wrong" not in f):
        planned = f"{figures['planned_power']:.1%}" if "planned_power" in figures else ""
        lines.append(
            f"| {figures['about']} | {figures['studies']:,} | {shown(figures['better'])} | {planned} | "
            f"{figures['mean_blocks']:.1f} |"
        )
    return "\n".join(lines).replace("%", " %").replace("  %", " %")


def failures(found: Mapping[str, Any]) -> list[str]:
    """What was promised and is not so."""
    texts = [
        f"{name} errs in more than {MOST_WRONG:.0%} of studies"
        for name, figures in found.items()
        if "wrong" in figures and figures["wrong"]["share"] > MOST_WRONG
    ]
    if "one_point" in found and found["one_point"]["better"]["share"] < LEAST_FOUND:
        texts.append(f"one_point is found in less than {LEAST_FOUND:.0%} of studies")
    for name, figures in found.items():
        planned = figures.get("planned_power")
        if planned is not None and abs(planned - figures["better"]["share"]) > PLANNER:
            texts.append(f"{name}: the planner is off by more than {PLANNER:.0%}")
    return texts


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write. Exit code 1 where a promise of the head of this file is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument(
        "--studies",
        type=int,
        default=4000,
        help="simulated studies of each null; of the other cases a quarter",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for the screen)")
    parser.add_argument("--table", action="store_true", help="print them in Markdown as well")
    args = parser.parse_args(arguments)
    names = args.only or list(CASES)
    found = run(names, args.studies, processes=args.processes, seed=args.seed)
    if args.json:
        text = json.dumps(found, indent=1)
        sys.stdout.write(f"{text}\n") if args.json == "-" else Path(args.json).write_text(text)
    if args.table:
        print(tables(found))
    failed = failures(found)
    for text in failed:
        print(f"FAILED: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
