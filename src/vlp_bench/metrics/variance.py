"""How much of a metric's spread comes from the subset of labelled patients, and how much from the seed."""

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class VarianceSplit:
    """Variance components of a metric over runs, each at least 0; nan where the runs cannot tell.

    Attributes:
        subset: between subsets of labelled patients.
        seed: between seeds.
        residual: what neither explains by itself.
        together: what can still be said of components that cannot be separated: their sum; nan if all can.
        note: what cannot be separated and why; empty if all can.
    """

    subset: float
    seed: float
    residual: float
    together: float = math.nan
    note: str = ""


def variance_split(values: ArrayLike, subsets: Sequence[Hashable], seeds: Sequence[Hashable]) -> VarianceSplit:
    """Split the variance of runs by a two-way random-effects model: value = mean + subset + seed + residual.

    Half the mean squared difference of two runs estimates seed + residual where they share the subset, subset +
    residual where they share the seed, and all three where they share neither. Two subsets with two seeds in common
    give the residual alone, as a quarter of the squared interaction contrast. If every subset was run with every
    seed this is the two-way analysis of variance without replication; if not, the estimates stay unbiased until those
    below zero are set to zero.

    Args:
        values: (n,) the metric of each run.
        subsets: n names of subsets.
        seeds: n names of seeds.

    Raises:
        ValueError: the lengths differ, or two runs share subset and seed.
    """
    values = np.asarray(values, np.float64)
    if not len(values) == len(subsets) == len(seeds):
        raise ValueError(f"{len(values)} values, {len(subsets)} subsets and {len(seeds)} seeds")
    if len(set(zip(subsets, seeds, strict=True))) < len(values):
        raise ValueError("two runs share subset and seed: one of them is a repetition, not a run of its own")
    first, second = np.triu_indices(len(values), 1)
    half = (values[first] - values[second]) ** 2 / 2
    subset, seed = _numbered(subsets), _numbered(seeds)
    same_subset, same_seed = subset[first] == subset[second], seed[first] == seed[second]

    def mean(chosen: NDArray[np.bool_]) -> float:
        return float(half[chosen].mean()) if chosen.any() else math.nan

    within_subset, within_seed, across = mean(same_subset), mean(same_seed), mean(~same_subset & ~same_seed)
    residual = _residual(values, subset, seed)
    if not math.isnan(residual):
        return VarianceSplit(_clipped(within_seed - residual), _clipped(within_subset - residual), residual)
    return _solved(within_subset, within_seed, across)


def _residual(values: NDArray, subset: NDArray[np.intp], seed: NDArray[np.intp]) -> float:
    """Average the squared interaction contrasts of all pairs of subsets and pairs of seeds; nan without any."""
    table = np.full((subset.max(initial=0) + 1, seed.max(initial=0) + 1), np.nan)
    table[subset, seed] = values
    total, contrasts = 0.0, 0.0
    for i, j in itertools.combinations(range(len(table)), 2):
        apart = table[i] - table[j]
        apart = apart[~np.isnan(apart)]
        if len(apart) > 1:
            pairs = len(apart) * (len(apart) - 1) / 2
            total += pairs * float(apart.var(ddof=1)) / 2
            contrasts += pairs
    return total / contrasts if contrasts else math.nan


def _numbered(names: Sequence[Hashable]) -> NDArray[np.intp]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.intp)


def _solved(within_subset: float, within_seed: float, across: float) -> VarianceSplit:
    """Solve for the components, or say which kind of pairs is missing and what follows."""

    def split(subset: float, seed: float, residual: float, together: float = math.nan, note: str = "") -> VarianceSplit:
        return VarianceSplit(_clipped(subset), _clipped(seed), _clipped(residual), _clipped(together), note)

    match (math.isnan(within_subset), math.isnan(within_seed), math.isnan(across)):
        case (False, False, False):
            return split(across - within_subset, across - within_seed, within_subset + within_seed - across)
        case (False, True, False):
            note = "no two subsets share a seed: seed and rest are known together only"
            return split(across - within_subset, math.nan, math.nan, within_subset, note)
        case (True, False, False):
            note = "no two seeds share a subset: subset and rest are known together only"
            return split(math.nan, across - within_seed, math.nan, within_seed, note)
        case (True, True, False):
            note = "every run has a subset and a seed of its own: all three are known together only"
            return split(math.nan, math.nan, math.nan, across, note)
        case (False, _, True):
            note = "one subset: seed and rest are known together only, and how much subsets matter is not"
            return split(math.nan, math.nan, math.nan, within_subset, note)
        case (True, False, True):
            note = "one seed: subset and rest are known together only, and how much seeds matter is not"
            return split(math.nan, math.nan, math.nan, within_seed, note)
    return split(math.nan, math.nan, math.nan, math.nan, "one run has no spread")


def _clipped(variance: float) -> float:
    return variance if math.isnan(variance) else max(variance, 0.0)
