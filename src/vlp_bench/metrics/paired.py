"""Is one backbone better than another? Comparisons on the same test items, and what several of them allow to say.

Two backbones measured on the same images share those images' luck, so their difference is known better than either
value: every comparison here is paired. Resamples draw patients, as in `metrics/bootstrap.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from vlp_bench.metrics.bootstrap import LEVEL, Patients, patient_counts, ratio
from vlp_bench.metrics.classification import Ranking, checked_columns

#: From how often each patient counts, (r, P), to the value of a metric under each of the r countings, (r,).
Statistic = Callable[[NDArray[np.int32]], NDArray[np.float64]]
TAIL = (100.0 - LEVEL) / 200.0


@dataclass(frozen=True)
class Difference:
    """What separates two backbones.

    Attributes:
        value: first minus second.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided p-value of no difference; nan, as are the ends, where it cannot be had.
    """

    value: float
    low: float
    high: float
    p: float


def auroc_statistic(scores: ArrayLike, targets: ArrayLike, patients: Patients) -> Statistic:
    """AUROC averaged over labels, as a function of how often each patient counts.

    Labels without both classes are left out, and in a resample also those that miss a class there; on the same
    targets these are the same labels for every backbone, so differences stay paired.

    Args:
        scores: (N, L) finite floats.
        targets: (N, L) of 0, 1 or nan (unknown).
        patients: the patients of the N items.

    Returns:
        A function of counts (r, P) int32 giving (r,) float64, nan where no label can be ranked.

    Raises:
        ValueError: the shapes differ, a score is not finite or a target is not 0, 1 or nan.
    """
    scores, targets = checked_columns(scores, targets)
    if len(scores) != len(patients.index):
        raise ValueError(f"{len(patients.index)} patients for {len(scores)} items")
    both = (np.nansum(targets, axis=0) > 0) & (np.nansum(1 - targets, axis=0) > 0)
    rankings = [Ranking.of(scores[:, i], targets[:, i], patients.index) for i in np.flatnonzero(both)]

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        total, known = np.zeros(len(counts)), np.zeros(len(counts))
        for ranking in rankings:
            value = ranking.auroc(counts)
            total += np.nan_to_num(value)
            known += np.isfinite(value)
        return ratio(total, known)

    return statistic


def mean_statistic(values: ArrayLike, patients: Patients) -> Statistic:
    """Mean over items, as a function of how often each patient counts.

    Args:
        values: (N,) floats; nan where an item does not count.
        patients: the patients of the N items.

    Returns:
        A function of counts (r, P) int32 giving (r,) float64, nan where no item counts.

    Raises:
        ValueError: there is not one value per item.
    """
    values = np.asarray(values, np.float64)
    if values.shape != patients.index.shape:
        raise ValueError(f"values of shape {values.shape} for {len(patients.index)} items")
    known = np.isfinite(values)
    sums = patients.sums(np.stack([np.where(known, values, 0.0), known], axis=1))

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        return ratio(*(counts @ sums).T)

    return statistic


def paired_bootstrap(
    backbones: Sequence[Sequence[Statistic]],
    count: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    width: int | None = None,
) -> tuple[Float[ndarray, " K"], Float[ndarray, "K R"]]:
    """Values of K backbones under the same resamples of the patients.

    Several runs of one backbone (draws, seeds) are averaged within each resample, so what varies is the test set
    alone: how far the runs themselves vary is told by `variance_split`.

    Args:
        backbones: for each backbone its runs, each a function of counts (r, P).
        count: number of patients P.
        resamples: number of resamples R.
        seed: of the generator; the same draws serve every backbone.
        width: elements that a statistic allocates per resample (P unless given).

    Returns:
        Values on the data itself (K,) and in the resamples (K, R), float64.

    Raises:
        ValueError: a backbone has no run.
    """
    if not all(len(runs) for runs in backbones):
        raise ValueError("a backbone without runs has no value")

    def measure(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        return np.array([np.mean([run(counts) for run in runs], axis=0) for runs in backbones])

    drawn = np.empty((len(backbones), resamples))
    for rows, counts in patient_counts(count, resamples, seed, width=width):
        drawn[:, rows] = measure(counts)
    return measure(np.ones((1, count), np.int32))[:, 0], drawn


def bootstrap_difference(a: float, b: float, drawn_a: ArrayLike, drawn_b: ArrayLike) -> Difference:
    """Difference of two backbones from their values under the same resamples.

    The interval holds the middle 95 % of the resampled differences. The p-value is twice the smaller share of
    resamples on either side of zero, those at zero on both sides, counting the data itself as one more resample
    (Davison and Hinkley 1997, section 4.2): R resamples cannot give less than 2 / (R + 1).

    Args:
        a: value of the first backbone on the data.
        b: value of the second.
        drawn_a: (R,) its values in the resamples; those undefined are left out.
        drawn_b: (R,) the same of the second, from the same resamples.
    """
    value, drawn = float(a - b), np.asarray(drawn_a, np.float64) - np.asarray(drawn_b, np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if math.isnan(value) or drawn.size == 0:
        return Difference(value, math.nan, math.nan, math.nan)
    drawn = np.where(np.abs(drawn) < 1e-12, 0.0, drawn)  # equal values may have been added up in another order
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL])
    beyond = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2 * beyond / (drawn.size + 1)))


def normal_difference(value: float, variance: float) -> Difference:
    """Difference with an interval and a p-value of the normal distribution.

    Args:
        value: the difference.
        variance: of the difference; nan where unknown.
    """
    if not (np.isfinite(value) and np.isfinite(variance)):
        return Difference(value, math.nan, math.nan, math.nan)
    error = math.sqrt(max(variance, 0.0))
    half = float(ndtri(1 - TAIL)) * error
    p = 2 * float(ndtr(-abs(value) / error)) if error > 0 else float(value == 0)
    return Difference(value, value - half, value + half, p)


def t_difference(a: ArrayLike, b: ArrayLike, *, equal_variances: bool = True) -> Difference:
    """Two-sample t-test of the values of independent runs: "three repeats with a two-sample t-test".

    The test sees the runs only, not the test set: it tells whether other seeds would give the same order on these
    very images. Student's test takes both variances to be equal, Welch's does not.

    Args:
        a: (n,) values of one backbone's runs.
        b: (m,) values of the other's.
        equal_variances: Student's test if True, Welch's otherwise.

    Raises:
        ValueError: a side has fewer than two values.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"a t-test needs two or more runs of each backbone, not {n} and {m}")
    value, spread_a, spread_b = float(a.mean() - b.mean()), float(a.var(ddof=1)), float(b.var(ddof=1))
    if equal_variances:
        freedom = n + m - 2.0
        variance = ((n - 1) * spread_a + (m - 1) * spread_b) / freedom * (1 / n + 1 / m)
    else:
        shares = np.array([spread_a / n, spread_b / m])
        variance = float(shares.sum())
        freedom = variance**2 / float((shares**2 / [n - 1, m - 1]).sum()) if variance > 0 else n + m - 2.0
    if variance <= 0:
        return Difference(value, value, value, float(value == 0))
    error = math.sqrt(variance)
    half = float(stdtrit(freedom, 1 - TAIL)) * error
    return Difference(value, value - half, value + half, 2 * float(stdtr(freedom, -abs(value) / error)))


def bootstrap_t_difference(drawn_a: ArrayLike, drawn_b: ArrayLike) -> Difference:
    """Student's test between bootstrap rounds: "30 bootstraps with a t-test", as MedViLL reports its comparisons.

    Kept to reproduce such tables, not to conclude from them. The rounds resample one test set and one trained model,
    so the test takes rounds for independent runs: with more rounds the p-value becomes as small as one likes. Values
    like 1e-122 measure resampling noise only, and the interval is that of the mean over rounds.

    Args:
        drawn_a: (R,) values of one backbone's rounds.
        drawn_b: (R,) values of the other's, from rounds of its own.
    """
    return t_difference(drawn_a, drawn_b)


def holm(p: ArrayLike) -> Float[ndarray, " M"]:
    """Adjust the p-values of a family so that all those below a level hold together (Holm 1979).

    Args:
        p: (M,) p-values; nan takes no part.

    Returns:
        (M,) float64, nan where `p` is.

    Raises:
        ValueError: a p-value is outside 0 to 1.
    """
    p = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if ((p[known] < 0) | (p[known] > 1)).any():
        raise ValueError("p-values must lie between 0 and 1")
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def rank_intervals(beats: Bool[ndarray, "K K"]) -> Int[ndarray, "K 2"]:
    """Ranks that each of K backbones may have, given which of them beat which beyond doubt.

    A backbone stands below those that beat it and above those that it beats; all other places are open. If the
    comparisons hold together at 95 % (as adjusted by `holm` over all pairs), so do all intervals (Mogstad, Romano,
    Shaikh and Wilhelm, Review of Economic Studies 2024, section 3).

    Args:
        beats: (K, K); [i, j] is True if i is better than j by more than the noise.

    Returns:
        (K, 2) int: the best and the worst rank, 1 for the best.

    Raises:
        ValueError: the matrix is not square or two backbones beat each other.
    """
    beats = np.asarray(beats, bool)
    if beats.ndim != 2 or beats.shape[0] != beats.shape[1] or (beats & beats.T).any():
        raise ValueError("beats must be a square matrix in which no two beat each other")
    return np.stack([1 + beats.sum(axis=0), len(beats) - beats.sum(axis=1)], axis=1)
