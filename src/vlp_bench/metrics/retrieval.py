"""Retrieval metrics between images and texts, with patient-level bootstrap intervals.

The rank of a query is that of its best match. Ties are broken pessimistically: every candidate of another group
that scores the same as the best match is put before it, so a model that gives one score to all gets the last rank.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, Patients, entry, patient_counts

CUTOFFS = (1, 5, 10)
BLOCK_ELEMENTS = 8_000_000  # similarities compared at a time, about 64 MB in float64

Rows = Callable[[int, int], ArrayLike]


def retrieval_metrics(
    similarity: ArrayLike | Rows,
    image_group: ArrayLike,
    text_group: ArrayLike,
    patients: ArrayLike,
    *,
    text_patients: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Measure how well images find their texts (`i2t/...`) and texts their images (`t2i/...`).

    Any candidate with the query's group is a hit. A query whose group has no candidate cannot be answered and is
    left out. The bootstrap draws the patients of the queries; the candidates stay the same.

    Args:
        similarity: (Ni, Nt) finite floats, or a function of (start, stop) that returns the rows start..stop-1 as
            (stop - start, Nt); it is called twice per block and must return the same both times.
        image_group: (Ni,) group (study) of every image.
        text_group: (Nt,) group of every text.
        patients: (Ni,) patient of every image.
        text_patients: (Nt,) patient of every text; unless given, the patient of the images in the text's group.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        For both directions `R@1`, `R@5`, `R@10`, `mrr` (mean reciprocal rank) and `median_rank`, each as
        `{"value", "low", "high", "n"}`; n counts the queries.

    Raises:
        ValueError: if shapes do not fit, a similarity is not finite, no group is on both sides, or
            `text_patients` is needed because a group belongs to several patients.
    """
    image_group, text_group = _numbered(image_group, text_group)
    patients = np.asarray(patients)
    if patients.shape != image_group.shape:
        raise ValueError(f"patients of shape {patients.shape} for {len(image_group)} images")
    if text_patients is None:
        text_patients = _patients_of_texts(image_group, text_group, patients)
    text_patients = np.asarray(text_patients)
    if text_patients.shape != text_group.shape:
        raise ValueError(f"text_patients of shape {text_patients.shape} for {len(text_group)} texts")
    return rank_metrics(*retrieval_ranks(similarity, image_group, text_group), patients, text_patients, resamples, seed)


def rank_metrics(
    image_ranks: NDArray[np.int64],
    text_ranks: NDArray[np.int64],
    patients: NDArray,
    text_patients: NDArray,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Metrics of ranks that `retrieval_ranks` gave; arguments and result as in `retrieval_metrics`."""
    result = {}
    for direction, ranks, who in (("i2t", image_ranks, patients), ("t2i", text_ranks, text_patients)):
        asked = ranks > 0
        for name, value in _summarised(ranks[asked], who[asked], resamples, seed).items():
            result[f"{direction}/{name}"] = value
    return result


def retrieval_ranks(
    similarity: ArrayLike | Rows, image_group: ArrayLike, text_group: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the best match of every image among the texts and of every text among the images.

    Args:
        similarity: as in `retrieval_metrics`.
        image_group: (Ni,) group of every image.
        text_group: (Nt,) group of every text.

    Returns:
        (Ni,) and (Nt,) int64 ranks from 1; 0 for a query without a match.

    Raises:
        ValueError: as `retrieval_metrics`.
    """
    image_group, text_group = _numbered(image_group, text_group)
    images, texts = len(image_group), len(text_group)
    rows = _row_reader(similarity, images, texts)
    step = max(1, BLOCK_ELEMENTS // texts)
    blocks = [(start, min(start + step, images)) for start in range(0, images, step)]
    image_ranks = np.zeros(images, np.int64)
    best = np.full(texts, -np.inf)
    for start, stop in blocks:
        block, match = rows(start, stop), image_group[start:stop, None] == text_group
        own = np.where(match, block, -np.inf)
        top = own.max(axis=1)
        ahead = np.sum((block >= top[:, None]) & ~match, axis=1)
        image_ranks[start:stop] = np.where(np.isfinite(top), ahead + 1, 0)
        np.maximum(best, own.max(axis=0), out=best)
    ahead = np.zeros(texts, np.int64)
    for start, stop in blocks:  # a text's best match is known only after all rows, hence the second pass
        match = image_group[start:stop, None] == text_group
        ahead += np.sum((rows(start, stop) >= best) & ~match, axis=0)
    return image_ranks, np.where(np.isfinite(best), ahead + 1, 0)


def relevance_columns(
    scores: ArrayLike,
    relevant: ArrayLike,
    cutoffs: Sequence[int] = CUTOFFS,
    ties: str = "last",
    without: str = "leave out",
) -> dict[str, NDArray[np.float64]]:
    """Judge the order in which each query's candidates come, where several may be right.

    Args:
        scores: (Q, C) finite floats.
        relevant: (Q, C) bool, the candidates that are right.
        cutoffs: the K.
        ties: where a right candidate stands among others of its score: `last`, or `reversed argsort`, the accident of
            numpy's order by which MedViLL's code published its numbers.
        without: what becomes of a query for which no candidate is right: `leave out`, or `count`, by which that code
            gives it rank C + 1 and no recall.

    Returns:
        (Q,) `hit@K` (whether one of the first K is right), `precision@K` (their share), `recall@K` (the share of the
        right ones that are among them) and `mrr` (reciprocal rank of the first right one); nan does not count.

    Raises:
        ValueError: shapes that differ, a score that is not finite, an unknown option.
    """
    scores, relevant = np.asarray(scores, np.float64), np.asarray(relevant, bool)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(f"scores of shape {scores.shape} and relevance of shape {relevant.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if ties not in ("last", "reversed argsort") or without not in ("leave out", "count"):
        raise ValueError(f"ties={ties!r}, without={without!r}: see the docstring")
    order = np.lexsort((relevant, -scores), axis=-1) if ties == "last" else np.argsort(scores, axis=-1)[:, ::-1]
    right = np.take_along_axis(relevant, order, axis=-1)
    total = right.sum(1)
    none = total == 0
    rank = np.where(none, right.shape[1], right.argmax(1)) + 1
    columns: dict[str, NDArray[np.float64]] = {}
    for k in cutoffs:
        found = right[:, :k].sum(1)
        columns[f"hit@{k}"] = (rank <= k).astype(np.float64)
        columns[f"precision@{k}"] = found / k
        columns[f"recall@{k}"] = np.where(none, np.nan, found / np.maximum(total, 1))
    columns["mrr"] = 1.0 / rank
    if without == "leave out":
        columns = {name: np.where(none, np.nan, values) for name, values in columns.items()}
    return columns


def trivial_relevance(relevant: ArrayLike, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, NDArray[np.float64]]:
    """What a random order of the candidates gives each query, computed exactly; as `relevance_columns`."""
    relevant = np.asarray(relevant, bool)
    candidates, total = relevant.shape[1], relevant.sum(1)
    numbers, which = np.unique(total, return_inverse=True)
    missed = np.stack([_expected_miss(np.array([n]), candidates) for n in numbers])
    columns: dict[str, NDArray[np.float64]] = {}
    for k in cutoffs:
        first = min(k, candidates)
        columns[f"hit@{k}"] = 1.0 - missed[which, first]
        columns[f"precision@{k}"] = total * first / candidates / k
        columns[f"recall@{k}"] = np.full(len(total), first / candidates)
    columns["mrr"] = ((missed[:, :-1] - missed[:, 1:]) @ (1.0 / np.arange(1, candidates + 1)))[which]
    return {name: np.where(total == 0, np.nan, values) for name, values in columns.items()}


def trivial_retrieval(image_group: ArrayLike, text_group: ArrayLike) -> dict[str, Entry]:
    """Give the expected metrics of a random order of the candidates, computed exactly.

    `median_rank` is the median of the rank's distribution over all queries and orders.

    Args:
        image_group: (Ni,) group of every image.
        text_group: (Nt,) group of every text.

    Returns:
        The structure of `retrieval_metrics`; low and high equal the value, which is known exactly.

    Raises:
        ValueError: if a side is empty or no group is on both sides.
    """
    image_group, text_group = _numbered(image_group, text_group)
    result = {}
    for direction, queries, candidates in (("i2t", image_group, text_group), ("t2i", text_group, image_group)):
        size = max(queries.max(), candidates.max()) + 1
        matches = np.bincount(candidates, minlength=size)[queries]
        matches = matches[matches > 0]
        missed = _expected_miss(matches, len(candidates))
        found = 1.0 - missed
        values = {f"R@{k}": found[min(k, len(candidates))] for k in CUTOFFS}
        values["mrr"] = float(np.sum((missed[:-1] - missed[1:]) / np.arange(1, len(missed))))
        values["median_rank"] = float(np.argmax(found >= 0.5 - 1e-12))
        for name, value in values.items():
            exact = float(value)
            result[f"{direction}/{name}"] = {"value": exact, "low": exact, "high": exact, "n": len(matches)}
    return result


def _expected_miss(matches: NDArray, candidates: int) -> NDArray[np.float64]:
    """Average over queries the probability that the first k of a random order hold no match.

    Args:
        matches: (Q,) number of matching candidates per query.
        candidates: number of candidates C.

    Returns:
        (C + 1,) float64 for k = 0..C.
    """
    drawn = np.arange(candidates)
    missed = np.zeros(candidates + 1)
    for number, queries in zip(*np.unique(matches, return_counts=True), strict=True):
        factors = np.maximum(candidates - number - drawn, 0) / (candidates - drawn)
        missed += queries * np.concatenate([[1.0], np.cumprod(factors)])
    return missed / len(matches)


def _summarised(ranks: NDArray, patients: NDArray, resamples: int, seed: int) -> dict[str, Entry]:
    """Turn the ranks (Q,) of one direction into metrics with intervals over the patients (Q,) of the queries."""
    groups = Patients.of(patients)
    names = [*(f"R@{k}" for k in CUTOFFS), "mrr"]
    columns = np.stack([*(ranks <= k for k in CUTOFFS), 1.0 / ranks, np.ones(len(ranks))], axis=1)
    sums = groups.sums(columns)
    order = np.argsort(ranks, kind="stable")
    sorted_ranks, sorted_patients = ranks[order], groups.index[order]
    averages = np.full((resamples, len(names)), np.nan)
    medians = np.full(resamples, np.nan)
    for rows, counts in patient_counts(groups.count, resamples, seed, width=len(ranks)):
        totals = counts @ sums
        averages[rows] = totals[:, :-1] / totals[:, -1:]
        medians[rows] = _weighted_median(sorted_ranks, counts[:, sorted_patients])
    point = columns[:, :-1].mean(axis=0)
    result = {name: entry(point[i], averages[:, i], len(ranks)) for i, name in enumerate(names)}
    result["median_rank"] = entry(float(np.median(ranks)), medians, len(ranks))
    return result


def _weighted_median(values: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Take the median of sorted values (n,) repeated as often as weights (r, n) say; (r,) float64."""
    running = np.cumsum(weights, axis=1)
    total = running[:, -1:]
    lower = values[np.argmax(2 * running >= total, axis=1)]
    upper = values[np.argmax(2 * running > total, axis=1)]
    return (lower + upper) / 2


def _numbered(image_group: ArrayLike, text_group: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number the groups of both sides alike, so that comparing them is comparing integers."""
    image_group, text_group = np.asarray(image_group), np.asarray(text_group)
    for name, group in (("image_group", image_group), ("text_group", text_group)):
        if group.ndim != 1 or group.size == 0:
            raise ValueError(f"{name} must be a non-empty one-dimensional array, not of shape {group.shape}")
    _, index = np.unique(np.concatenate([image_group, text_group]), return_inverse=True)
    images, texts = index[: len(image_group)], index[len(image_group) :]
    if not np.isin(images, texts).any():
        raise ValueError("no group is on both sides: image_group and text_group share no value")
    return images, texts


def _patients_of_texts(image_group: NDArray, text_group: NDArray, patients: NDArray) -> NDArray:
    """Find the patient of every text through the images of its group; texts without images get any patient."""
    pairs = np.unique(np.stack([image_group, np.unique(patients, return_inverse=True)[1]]), axis=1)
    if (np.diff(pairs[0]) == 0).any():
        raise ValueError("a group belongs to several patients: give text_patients")
    _, first = np.unique(image_group, return_index=True)
    at = np.searchsorted(image_group[first], text_group).clip(max=len(first) - 1)
    return patients[first[at]]


def _row_reader(similarity: ArrayLike | Rows, images: int, texts: int) -> Callable[[int, int], NDArray]:
    """Give both forms of similarity the same face, checking shape and finiteness."""
    if not callable(similarity):
        whole = np.asarray(similarity)
        if whole.shape != (images, texts):
            raise ValueError(f"similarity of shape {whole.shape} for {images} images and {texts} texts")

    def rows(start: int, stop: int) -> NDArray:
        block = np.asarray(similarity(start, stop)) if callable(similarity) else whole[start:stop]
        if block.shape != (stop - start, texts):
            raise ValueError(f"similarity rows {start}..{stop} have shape {block.shape}, not {(stop - start, texts)}")
        if not np.isfinite(block).all():
            raise ValueError(f"similarity rows {start}..{stop} hold a value that is not finite")
        return block

    return rows
