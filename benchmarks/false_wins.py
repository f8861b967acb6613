"""How often common practice declares a winner that is none: every practice fed the same simulated world.

accuracy = -C |z - z*|^2 + config-by-split noise + seed noise, in points; z = 3 shared settings uniform on
[0, 1]^3, z* in the middle, C = 12. The add-on's true effect is zero at every setting: each "add-on wins"
(an honest test errs in 2.5 % on that side) is false. The default baseline lies 0.5 points below its own
optimum. numpy and scipy only; a seed gives one table. Knows nothing of the package: the package's own
verdict is tested in self_test.py.

    python benchmarks/false_wins.py                 the table, 2 s
    python benchmarks/false_wins.py --json -        with every figure as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array: TypeAlias = NDArray[np.float64]

SETTINGS = 3
STEEPNESS = 12.0
"""C, points."""
SPLIT_SD = 0.15
"""Of the config-by-split noise, drawn for validation and for test, points."""
DEFAULT_LOSS = 0.5
"""How far the default baseline lies below its own optimum, points."""
FINALISTS = 5
"""Per arm, where finalists are tried again."""
BLOCKS = 10


@dataclass(frozen=True, kw_only=True)
class World:
    """One setting of the simulation."""

    seed_sd: float = 0.5
    """Between two trainings of one configuration, points."""
    trials: int = 50
    """N: trainings of a search."""
    seeds: int = 10
    """k: confirm trainings per arm."""
    repeats: int = 4000
    """R: simulated studies."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """N trials of one arm in each of R studies."""

    true_RN: Array
    """What a configuration reaches on average."""
    val_RN: Array
    """One training's validation score."""
    test_RN: Array
    """What a configuration reaches on the given test examples, on average over seeds."""

    @property
    def picked_R(self) -> Array:
        """Test level of the configuration that validation chose."""
        return pick(self.test_RN, self.val_RN.argmax(axis=1))


def pick(values_RN: Array, chosen_R: NDArray[np.intp]) -> Array:
    """One value per study."""
    return np.take_along_axis(values_RN, chosen_R[:, None], axis=1)[:, 0]


def draws(world: World, rng: np.random.Generator, trials: int | None = None) -> Array:
    """Loss of random configurations [R, N]."""
    z = rng.random((world.repeats, trials or world.trials, SETTINGS))
    return STEEPNESS * ((z - 0.5) ** 2).sum(axis=2)


def search(world: World, rng: np.random.Generator, loss_RN: Array) -> Search:
    """Train every configuration once."""
    split, test = rng.normal(0, SPLIT_SD, (2, *loss_RN.shape))
    seeds = rng.normal(0, world.seed_sd, loss_RN.shape)
    return Search(true_RN=-loss_RN, val_RN=-loss_RN + split + seeds, test_RN=-loss_RN + test)


def confirm(world: World, rng: np.random.Generator, level_R: Array) -> Array:
    """k fresh trainings [R, k] of one configuration per study."""
    return level_R[:, None] + rng.normal(0, world.seed_sd, (len(level_R), world.seeds))


def wins_t(first_Rk: Array, second_Rk: Array) -> float:
    """Share of studies in which a paired two-sided 5 % t test says that the first is better."""
    difference = first_Rk - second_Rk
    size = difference.shape[1]
    error = difference.std(axis=1, ddof=1) / size**0.5
    return float(np.mean(difference.mean(axis=1) > stats.t.isf(0.025, size - 1) * error))


def on_test_against_default(world: World, rng: np.random.Generator) -> float:
    """Best of N add-on trainings on the test examples against one default baseline run."""
    return _on_test(world, rng, DEFAULT_LOSS)


def on_test_against_tuned(world: World, rng: np.random.Generator) -> float:
    """The same, the baseline being perfectly tuned."""
    return _on_test(world, rng, 0.0)


def _on_test(world: World, rng: np.random.Generator, loss: float) -> float:
    addon = search(world, rng, draws(world, rng))
    noise = rng.normal(0, world.seed_sd, addon.test_RN.shape)
    baseline = -loss + rng.normal(0, np.hypot(world.seed_sd, SPLIT_SD), world.repeats)
    return float(np.mean((addon.test_RN + noise).max(axis=1) > baseline))


def both_best(world: World, rng: np.random.Generator) -> float:
    """Both arms best of N, the larger number wins."""
    best = [search(world, rng, draws(world, rng)).val_RN.max(axis=1) for _ in range(2)]
    return float(np.mean(best[0] > best[1]))


def against_untuned(world: World, rng: np.random.Generator) -> float:
    """Tuned add-on against the untuned baseline, k seeds, t test."""
    addon = search(world, rng, draws(world, rng)).picked_R
    baseline = -DEFAULT_LOSS + rng.normal(0, SPLIT_SD, world.repeats)
    return wins_t(confirm(world, rng, addon), confirm(world, rng, baseline))


def unequal_budgets(world: World, rng: np.random.Generator) -> float:
    """N trials against N/5, k seeds, t test."""
    addon = search(world, rng, draws(world, rng)).picked_R
    baseline = search(world, rng, draws(world, rng, world.trials // 5)).picked_R
    return wins_t(confirm(world, rng, addon), confirm(world, rng, baseline))


def one_search(world: World, rng: np.random.Generator) -> float:
    """Equal budgets, one search per arm, k seeds, t test."""
    picked = [search(world, rng, draws(world, rng)).picked_R for _ in range(2)]
    return wins_t(confirm(world, rng, picked[0]), confirm(world, rng, picked[1]))


def same_draws(world: World, rng: np.random.Generator) -> float:
    """The same, both arms at the same draws."""
    loss = draws(world, rng)
    picked = [search(world, rng, loss).picked_R for _ in range(2)]
    return wins_t(confirm(world, rng, picked[0]), confirm(world, rng, picked[1]))


def finalists_in_both(world: World, rng: np.random.Generator) -> float:
    """The same, the finalists of each arm tried in both arms with 3 fresh validation seeds."""
    loss = draws(world, rng)
    arms = [search(world, rng, loss) for _ in range(2)]
    finals = np.concatenate(
        [np.argsort(-arm.val_RN, axis=1)[:, :FINALISTS] for arm in arms], axis=1
    )
    picked = []
    for arm in arms:
        levels = np.take_along_axis(arm.test_RN, finals, axis=1)
        true = np.take_along_axis(arm.true_RN, finals, axis=1)
        again = rng.normal(0, np.hypot(world.seed_sd / 3**0.5, SPLIT_SD), true.shape)
        picked.append(pick(levels, (true + again).argmax(axis=1)))
    return wins_t(confirm(world, rng, picked[0]), confirm(world, rng, picked[1]))


def blocks(world: World, rng: np.random.Generator) -> float:
    """10 paired blocks of N/10 twins and k/10 confirm pairs, unit = block."""
    flat = replace(world, repeats=world.repeats * BLOCKS, seeds=max(1, world.seeds // BLOCKS))
    loss = draws(flat, rng, world.trials // BLOCKS)
    arms = []
    for _ in range(2):
        picked = search(flat, rng, loss).picked_R
        arms.append(confirm(flat, rng, picked).mean(axis=1).reshape(-1, BLOCKS))
    return wins_t(arms[0], arms[1])


PRACTICES: tuple[tuple[str, Callable[[World, np.random.Generator], float]], ...] = (
    ("best of N add-on trials on test, against 1 default baseline run", on_test_against_default),
    ("same, the baseline perfectly tuned", on_test_against_tuned),
    ("both arms best of N, the larger number wins", both_best),
    ("tuned add-on against the untuned baseline, k seeds, t test", against_untuned),
    ("unequal budgets (N against N/5), k seeds, t test", unequal_budgets),
    ("equal budgets, one search per arm, k seeds, t test", one_search),
    ("same, both arms at the same draws", same_draws),
    ("same, finalists tried in both arms with 3 fresh seeds", finalists_in_both),
    ("10 paired blocks of N/10 twins, the unit is the block", blocks),
)


def table(world: World) -> dict[str, dict[str, float]]:
    """Practice -> column -> share of false wins. Columns: k of the confirm stage."""
    columns = {f"k = {k}": replace(world, seeds=k) for k in (5, 10, 20)}
    return {
        name: {
            column: practice(one, np.random.default_rng([world.seed, row]))
            for column, one in columns.items()
        }
        for row, (name, practice) in enumerate(PRACTICES)
    }


def show(world: World, shares: dict[str, dict[str, float]]) -> None:
    """The table in Markdown."""
    columns = list(next(iter(shares.values())))
    print(
        f"False wins, seed sd {world.seed_sd:g}, N = {world.trials} trials, "
        f"{world.repeats:,} simulated studies each\n"
    )
    print(f"| practice | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, row in shares.items():
        print(f"| {name} | {' | '.join(f'{100 * row[c]:.1f} %' for c in columns)} |")


def main(arguments: list[str] | None = None) -> int:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=4000, help="simulated studies per figure")
    parser.add_argument("--trials", type=int, default=50, help="N")
    parser.add_argument("--seed-sd", type=float, default=0.5, help="points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for the screen)")
    args = parser.parse_args(arguments)
    world = World(seed_sd=args.seed_sd, trials=args.trials, repeats=args.repeats, seed=args.seed)
    shares = table(world)
    show(world, shares)
    if args.json:
        text = json.dumps({"world": vars(world), "false_wins": shares}, indent=1)
        sys.stdout.write(f"\n{text}\n") if args.json == "-" else Path(args.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
