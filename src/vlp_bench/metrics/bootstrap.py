"""Patient-level bootstrap: how often each patient is drawn, in chunks that fit in memory.

Images of one patient resemble each other, so a resample draws patients, never single images: every image of a
drawn patient counts as often as the patient was drawn.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_ELEMENTS = 500_000  # 2 MB in int32: large enough to hide numpy's call overhead, small for caches
LEVEL = 95.0

Entry = dict[str, Any]


@dataclass(frozen=True)
class Patients:
    """The patients of N items, as consecutive integers.

    Attributes:
        index: (N,) intp, the patient of every item, in 0..count-1.
        count: number of distinct patients.
    """

    index: NDArray[np.intp]
    count: int

    @classmethod
    def of(cls, patients: ArrayLike) -> "Patients":
        """Number the patients of N items.

        Args:
            patients: (N,) identifiers of any sortable dtype.

        Raises:
            ValueError: if `patients` is not one-dimensional or is empty.
        """
        array = np.asarray(patients)
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"patients must be a non-empty one-dimensional array, not of shape {array.shape}")
        unique, index = np.unique(array, return_inverse=True)
        return cls(index.astype(np.intp), len(unique))

    def sums(self, values: NDArray) -> NDArray[np.float64]:
        """Add up the rows of `values` (N, K) by patient, giving (count, K) float64."""
        columns = [np.bincount(self.index, weights=column, minlength=self.count) for column in values.T]
        return np.stack(columns, axis=1) if columns else np.zeros((self.count, 0))


def patient_counts(
    count: int, resamples: int, seed: int, *, width: int | None = None
) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """Yield how often each patient is drawn, a few resamples at a time.

    The numbers depend on `seed` alone, not on the chunk size.

    Args:
        count: number of patients P.
        resamples: number of resamples R in all.
        seed: seed of the generator.
        width: elements that the caller allocates per resample (P unless given); fixes the rows per chunk.

    Yields:
        The slice of resamples and their counts, (r, P) int32; every row sums to P.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // max(width or count, 1))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(0, count, size=(stop - start, count))
        drawn += np.arange(stop - start)[:, None] * count
        flat = np.bincount(drawn.ravel(), minlength=(stop - start) * count)
        yield slice(start, stop), flat.reshape(stop - start, count).astype(np.int32)


def bootstrap_weights(patients: ArrayLike, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int32]]:
    """Yield the weight of every item in every resample, in chunks of resamples.

    Args:
        patients: (N,) patient of every item.
        resamples: number of resamples R in all.
        seed: seed of the generator.

    Yields:
        (r, N) int32 weights; stacked, the chunks are (R, N). Items of one patient share their weight.

    Raises:
        ValueError: if `patients` is not one-dimensional or is empty.
    """
    numbered = Patients.of(patients)
    for _, counts in patient_counts(numbered.count, resamples, seed, width=len(numbered.index)):
        yield counts[:, numbered.index]


def entry(value: float, resampled: NDArray, n: int) -> Entry:
    """Describe one metric by its value and its percentile interval.

    Args:
        value: the value on the data itself; nan when undefined.
        resampled: (R,) values in the resamples; nan where a resample leaves the metric undefined (left out).
        n: number of items behind the value.

    Returns:
        `{"value", "low", "high", "n"}` with None for what is undefined.
    """
    known = resampled[np.isfinite(resampled)]
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "n": int(n)}
    if known.size == 0:
        return {"value": float(value), "low": None, "high": None, "n": int(n)}
    tail = (100.0 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100.0 - tail])
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}


def over_patients(
    rows: ArrayLike, patients: ArrayLike, measure: Callable[[NDArray], NDArray], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure something that depends on sums over items alone, on the data and in resamples of its patients.

    Args:
        rows: (N, K) what each item adds.
        patients: (N,) patient of every item.
        measure: (..., K) sums to (..., M) values; nan where the sums leave one undefined.
        resamples: number of resamples R.
        seed: seed of the bootstrap.

    Returns:
        (M,) values and (R, M) values in the resamples, for `entry`.

    Raises:
        ValueError: if there are not as many patients as items, or none.
    """
    rows, groups = np.asarray(rows, np.float64), Patients.of(patients)
    if len(groups.index) != len(rows):
        raise ValueError(f"{len(groups.index)} patients for {len(rows)} items")
    sums = groups.sums(rows)
    values = np.asarray(measure(sums.sum(axis=0)), np.float64)
    resampled = np.full((resamples, *values.shape), np.nan)
    for where, counts in patient_counts(groups.count, resamples, seed):
        resampled[where] = measure(counts @ sums)
    return values, resampled


def mean_entries(
    columns: Mapping[str, ArrayLike], patients: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Entry]:
    """Describe metrics that are means over items, with intervals over patients.

    Args:
        columns: name of a metric to its (N,) values; nan where an item does not count.
        patients: (N,) patient of every item.
        resamples: number of resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        An entry for each name; None as value where no item counts.

    Raises:
        ValueError: lengths that differ.
    """
    values = np.stack([np.asarray(v, np.float64) for v in columns.values()], axis=1)
    known = ~np.isnan(values)

    def mean(sums: NDArray) -> NDArray:
        return ratio(*np.split(sums, 2, axis=-1))

    rows = np.concatenate([np.where(known, values, 0.0), known], axis=1)
    point, resampled = over_patients(rows, patients, mean, resamples, seed)
    return {name: entry(float(point[i]), resampled[:, i], int(known[:, i].sum())) for i, name in enumerate(columns)}


def ratio(top: ArrayLike, bottom: ArrayLike) -> NDArray[np.float64]:
    """Divide what can be broadcast, giving nan where the denominator is not above 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def known_mean(values: NDArray) -> NDArray[np.float64]:
    """Average over the first axis (labels), leaving out nan; nan where nothing is left."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
