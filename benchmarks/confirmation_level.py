"""How often `hpsearch confirm` finds a difference where there is none, and how often where there is one.

    python -m benchmarks.confirmation_level --cases 1000 > level.csv

Answers are simulated: validation images of very unlike difficulty (beta-distributed, 2 % wrong on average), seeds that
move a configuration's error, and configurations that find other images difficult. Beside the comparison that is used
stand those that one might use instead. `power` is the share of cases in which a last configuration that is worse by
0.3 % is told apart; the other columns are shares in which any pair of equal configurations is.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.results.confirmation.comparison import compare
from hpsearch.results.confirmation.critical_values import critical_values

ERROR = 0.02
WORSE = 0.003
RESAMPLES = 400
Bits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is simulated.

    Args:
        seed_deviation: of the error, from seed to seed.
        own_images: share of images whose difficulty is each configuration's own.
        restless: how many times the first configurations' seeds vary as much as the others'.
        num_restless: how many these are.
        freedom: degrees of freedom of the seeds' distribution (Student's t); infinite: normal.
        gap: by how much the last configuration's error is higher.
    """

    regime: str
    configurations: int
    seeds: int
    images: int
    seed_deviation: float
    own_images: float
    restless: float = 1.0
    num_restless: int = 1
    freedom: float = math.inf
    gap: float = 0.0


REGIMES: dict[str, dict[str, Any]] = {
    "seeds": {"seed_deviation": 0.003, "own_images": 0.0},
    "both": {"seed_deviation": 0.001, "own_images": 0.3},
    "images": {"seed_deviation": 0.0002, "own_images": 1.0},
    "one restless": {"seed_deviation": 0.001, "own_images": 0.3, "restless": 4.0},
    "two restless": {"seed_deviation": 0.001, "own_images": 0.3, "restless": 4.0, "num_restless": 2},
    "heavy tails": {"seed_deviation": 0.002, "own_images": 0.1, "freedom": 2.0},
}


def simulate(layout: Layout, generator: np.random.Generator) -> Bits:
    """[configurations, seeds, images]: right or wrong."""

    def difficulties() -> NDArray[np.float64]:
        return generator.beta(0.08, 0.08 * (1 - ERROR) / ERROR, layout.images)

    common = difficulties()
    correct = np.empty((layout.configurations, layout.seeds, layout.images), dtype=bool)
    for index in range(layout.configurations):
        own = common
        if layout.own_images:
            own = np.where(generator.random(layout.images) < layout.own_images, difficulties(), common)
        deviation = layout.seed_deviation * (layout.restless if index < layout.num_restless else 1.0)
        normal = generator.standard_normal(layout.seeds)
        if math.isfinite(layout.freedom):
            normal /= np.sqrt(generator.chisquare(layout.freedom, layout.seeds) / layout.freedom)
        error = np.maximum(ERROR + deviation * normal, 0.0)
        if index == layout.configurations - 1:
            error += layout.gap
        chances = own.astype(np.float32) * (error / ERROR).astype(np.float32)[:, None]
        correct[index] = generator.random(chances.shape, dtype=np.float32) >= chances
    return correct


def finds_any(correct: Bits) -> bool:
    """The comparison that is used."""
    return any(difference.is_significant for row in compare(correct).differences for difference in row)


def finds_last_worse(correct: Bits) -> bool:
    return len(correct) - 1 not in compare(correct).tied


def paired_t_finds_any(correct: Bits) -> bool:
    """Each pair by itself, with a t-test over the seeds: no images, no correction for many pairs."""
    errors = 1 - correct.mean(axis=2)
    critical = critical_values(1, correct.shape[1]).seeds
    for a, b in itertools.combinations(errors, 2):
        difference = a - b
        if abs(difference.mean()) > critical * difference.std(ddof=1) / np.sqrt(len(difference)):
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Pigeonhole:
    """Bootstrap that draws seeds and images independently; the same resamples serve all cases.

    Args:
        seeds: [B, S], images: [B, N], the weights of both.
    """

    seeds: NDArray[np.float32]
    images: NDArray[np.float32]

    @classmethod
    def draw(cls, layout: Layout, generator: np.random.Generator) -> Pigeonhole:
        def weights(number: int) -> NDArray[np.float32]:
            drawn = generator.multinomial(number, np.full(number, 1 / number), RESAMPLES) / number
            return drawn.astype(np.float32)

        return cls(seeds=weights(layout.seeds), images=weights(layout.images))

    def finds_any(self, correct: Bits) -> tuple[bool, bool]:
        """By each pair's percentiles, and by those of the largest difference of all pairs."""
        k, num_seeds, num_images = correct.shape
        by_seed = (~correct).astype(np.float32).reshape(k * num_seeds, num_images) @ self.images.T
        means = np.einsum("ksb,bs->bk", by_seed.reshape(k, num_seeds, RESAMPLES), self.seeds)
        observed = 1 - correct.mean(axis=(1, 2))
        pairs = np.triu_indices(k, 1)
        resampled = (means[:, :, None] - means[:, None, :])[:, *pairs]  # [B, pairs]
        difference = (observed[:, None] - observed[None, :])[pairs]
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        largest = np.quantile(np.abs(resampled - difference).max(axis=1), 0.95)
        return bool(((low > 0) | (high < 0)).any()), bool((np.abs(difference) > largest).any())


def measure(layout: Layout, cases: int) -> dict[str, object]:
    """One row of the table."""
    generator = np.random.default_rng(
        [layout.configurations, layout.seeds, layout.images, list(REGIMES).index(layout.regime)]
    )
    pigeonhole = Pigeonhole.draw(layout, generator)
    found = np.zeros(5)
    for _ in range(cases):
        correct = simulate(layout, generator)
        percentile, largest = pigeonhole.finds_any(correct)
        worse = simulate(replace(layout, gap=WORSE), generator)
        found += [finds_any(correct), paired_t_finds_any(correct), percentile, largest, finds_last_worse(worse)]
    names = ("hpsearch", "paired t", "bootstrap, pairs", "bootstrap, largest", "power")
    shares = {name: f"{share:.3f}" for name, share in zip(names, found / cases, strict=True)}
    return {
        "regime": layout.regime,
        "configurations": layout.configurations,
        "seeds": layout.seeds,
        "images": layout.images,
        "cases": cases,
        **shares,
    }


def layouts(images: int) -> Iterator[Layout]:
    """All that are measured."""
    for regime, configurations, seeds in itertools.product(REGIMES, (2, 5, 10), (2, 3, 5, 10)):
        yield Layout(regime=regime, configurations=configurations, seeds=seeds, images=images, **REGIMES[regime])


def write_table(rows: Iterable[dict[str, object]]) -> None:
    """CSV on stdout, row by row."""
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row))
            writer.writeheader()
        writer.writerow(row)
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    write_table(measure(layout, arguments.cases) for layout in layouts(arguments.images))


if __name__ == "__main__":
    main()
