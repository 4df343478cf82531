"""From boards to comparisons: which differences between rows are more than noise.

Rows are compared on the predictions that their runs kept, item by item, and only where the test items and their
targets are the same. What cannot be compared is named with its reason, and keeps the coarser rule of its intervals.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlp_bench.errors import UserError
from vlp_bench.metrics import (
    Difference,
    bootstrap_difference,
    bootstrap_t_difference,
    delong,
    holm,
    paired_bootstrap,
    rank_intervals,
    t_difference,
)
from vlp_bench.metrics.bootstrap import Patients
from vlp_bench.report.boards import NOISE, OVERLAP, Board, Cell, Group, Pair, Refused
from vlp_bench.report.collect import Evaluation
from vlp_bench.report.predictions import Predictions, Unusable, read
from vlp_bench.report.wording import counted, metric_name, rises

#: Choices of `statistics=`, in words.
STATISTICS = {
    "honest": "paired bootstrap over patients",
    "delong": "DeLong's test, with images of one patient taken as related",
    "t_test": "Student's t-test between runs",
    "welch": "Welch's t-test between runs",
    "bootstrap_t": "Student's t-test between 30 bootstrap rounds of each",
}
LEVEL = 0.05
ROUNDS = 30
#: Resamples for each comparison that is corrected for: at least so many that the smallest possible p-value is still
#: clear after the correction, at most so many that it can fall to 0.001.
COARSE, FINE = 50, 2000
WORK = 1_000_000_000  # scores weighted in all resamples of a column, where COARSE leaves the choice: a few seconds

Runs = Mapping[int, Sequence[Evaluation]]
Found = tuple[dict[tuple[int, int], Difference], dict[int, str]]


def compared(board: Board, statistics: str = "honest", resamples: int = 1000) -> Board:
    """Add to a board how its rows compare.

    The p-values of all pairs of the board, at all fractions, are one family: the best row was not chosen before its
    values were seen, so the comparisons with it count as some of all.

    Args:
        board: what `boards` made.
        statistics: one of STATISTICS.
        resamples: of the bootstrap, at least; more are drawn where many pairs are corrected for, and of small test
            sets.

    Raises:
        UserError: `statistics` is not one of those known.
    """
    if statistics not in STATISTICS:
        raise UserError(f"statistics={statistics}: expected {', '.join(STATISTICS)}.")
    columns = [(i, fraction) for i in range(len(board.groups)) for fraction in board.fractions]
    runs = [_column(board.groups[i], fraction) for i, fraction in columns]
    family = sum(len(column) * (len(column) - 1) // 2 for column in runs)
    pairs: list[list[Pair]] = [[] for _ in board.groups]
    refused: list[list[Refused]] = [[] for _ in board.groups]
    for (i, fraction), column in zip(columns, runs, strict=True):
        if len(column) < 2:
            continue
        differences, reasons = _compare(column, board.metric, statistics, resamples, family)
        pairs[i] += [Pair(fraction, *rows, difference) for rows, difference in differences.items()]
        refused[i] += [Refused(fraction, row, reason) for row, reason in reasons.items()]
    adjusted = iter(holm([pair.difference.p for group in pairs for pair in group]).tolist())
    groups = [
        _marked(
            replace(g, pairs=tuple(replace(p, adjusted=next(adjusted)) for p in found), refused=tuple(left_out)), board
        )
        for g, found, left_out in zip(board.groups, pairs, refused, strict=True)
    ]
    return replace(board, groups=tuple(groups), statistics=statistics)


def _column(group: Group, fraction: float | None) -> Runs:
    """Rows that have a value at a fraction, with their runs."""
    cells = {i: row.cells[fraction] for i, row in enumerate(group.rows) if fraction in row.cells}
    return {i: cell.runs for i, cell in cells.items() if cell.value is not None}


def _compare(column: Runs, metric: str, statistics: str, resamples: int, family: int) -> Found:
    """Compare all rows of a column that can be."""
    if statistics in ("t_test", "welch"):
        return _by_runs(column, metric, statistics == "t_test")
    samples: dict[int, list[Predictions]] = {}
    reasons: dict[int, str] = {}
    for row, runs in column.items():
        try:
            samples[row] = [read(run, metric) for run in runs]
            if statistics == "delong" and any(run.scores is None for run in samples[row]):
                raise Unusable(f"DeLong's test is one of AUROC, and this is {metric_name(metric)}")
        except Unusable as reason:
            reasons[row] = str(reason)
    reasons |= _differing(samples)
    samples = {row: sample for row, sample in samples.items() if row not in reasons}
    if len(samples) < 2:
        return {}, reasons
    if statistics == "delong":
        return _by_placements(samples), reasons
    if statistics == "bootstrap_t":
        return _by_rounds(samples), reasons
    work = sum(run.targets.size for sample in samples.values() for run in sample)
    affordable = min(max(WORK // max(work, 1), COARSE * family), FINE * family)
    return _by_resamples(samples, max(resamples, affordable)), reasons


def _by_resamples(samples: dict[int, list[Predictions]], resamples: int) -> dict[tuple[int, int], Difference]:
    first = next(iter(samples.values()))[0]
    patients = Patients.of(first.patients)
    runs = [[run.statistic(patients) for run in sample] for sample in samples.values()]
    values, drawn = paired_bootstrap(runs, patients.count, resamples=resamples, width=len(first.items))
    at = {row: k for k, row in enumerate(samples)}
    return {
        (a, b): bootstrap_difference(values[at[a]], values[at[b]], drawn[at[a]], drawn[at[b]])
        for a, b in itertools.combinations(samples, 2)
    }


def _by_placements(samples: dict[int, list[Predictions]]) -> dict[tuple[int, int], Difference]:
    first = next(iter(samples.values()))[0]
    scores = [[run.scores for run in sample if run.scores is not None] for sample in samples.values()]
    found = delong(scores, first.targets, first.patients)
    at = {row: k for k, row in enumerate(samples)}
    return {(a, b): found.difference(at[a], at[b]) for a, b in itertools.combinations(samples, 2)}


def _by_rounds(samples: dict[int, list[Predictions]]) -> dict[tuple[int, int], Difference]:
    """Resample items, not patients, and each row for itself, as the paper does."""
    rounds = {}
    for row, sample in samples.items():
        items = Patients.of(np.arange(len(sample[0].items)))
        runs = [run.statistic(items) for run in sample]
        _, (rounds[row],) = paired_bootstrap([runs], items.count, resamples=ROUNDS, seed=row)
    return {(a, b): bootstrap_t_difference(rounds[a], rounds[b]) for a, b in itertools.combinations(samples, 2)}


def _by_runs(column: Runs, metric: str, equal_variances: bool) -> Found:
    """Test the values of runs, without a look at predictions."""
    values = {row: [v for run in runs if (v := run.metrics[metric].value) is not None] for row, runs in column.items()}
    reasons = {row: "one run, and a t-test needs two or more" for row, found in values.items() if len(found) < 2}
    rows = [row for row in values if row not in reasons]
    return {
        (a, b): t_difference(values[a], values[b], equal_variances=equal_variances)
        for a, b in itertools.combinations(rows, 2)
    }, reasons


def _differing(samples: Mapping[int, Sequence[Predictions]]) -> dict[int, str]:
    """Refuse the rows whose test set is not that of most runs, and say what differs."""
    keys = {row: [run.key for run in sample] for row, sample in samples.items()}
    counts: dict[str, int] = {}
    for key in itertools.chain.from_iterable(keys.values()):
        counts[key] = counts.get(key, 0) + 1
    if len(counts) < 2:
        return {}
    usual = max(counts, key=lambda key: counts[key])
    known = next(run for row in samples for run, key in zip(samples[row], keys[row], strict=True) if key == usual)
    reasons = {}
    for row, sample in samples.items():
        other = next((run for run, key in zip(sample, keys[row], strict=True) if key != usual), None)
        if other is not None:
            reasons[row] = _what_differs(other, known)
    return reasons


def _what_differs(one: Predictions, usual: Predictions) -> str:
    shared = len(np.intersect1d(one.items, usual.items))
    if shared < max(len(one.items), len(usual.items)):
        theirs = counted(len(one.items), "test item")
        return f"another test set: {theirs}, of which {shared:,} are among the {len(usual.items):,} of the others"
    if one.targets.shape == usual.targets.shape:
        same = (one.targets == usual.targets) | (np.isnan(one.targets) & np.isnan(usual.targets))
        changed = int((~same.all(axis=1)).sum())
        if changed:
            return f"another test set: the same items, but other targets for {changed:,} of {len(one.items):,}"
    return "another test set: the same items, but of other patients"


def _marked(group: Group, board: Board) -> Group:
    """Replace the rule of overlapping intervals where a comparison is known, and give every compared row its ranks."""
    rows = [dict(row.cells) for row in group.rows]
    for fraction in board.fractions:
        column = list(_column(group, fraction))
        compared_rows = {r for p in group.pairs if p.fraction == fraction for r in (p.first, p.second)}
        ranks = _ranks(group, column, fraction, rises(board.metric))
        best = next((row for row in column if rows[row][fraction].best), None)
        for row in column:
            rows[row][fraction] = replace(rows[row][fraction], rank=ranks[row] if row in compared_rows else None)
        if best is not None:
            ties = {row: _tie(group, fraction, best, row, rows) for row in column if row != best}
            kinds = set(ties.values())
            ties[best] = NOISE if NOISE in kinds else OVERLAP if OVERLAP in kinds else ""
            for row, tie in ties.items():
                rows[row][fraction] = replace(rows[row][fraction], tie=tie)
    return replace(group, rows=tuple(replace(row, cells=c) for row, c in zip(group.rows, rows, strict=True)))


def _tie(group: Group, fraction: float | None, best: int, row: int, cells: list[dict[float | None, Cell]]) -> str:
    pair = group.pair(fraction, best, row)
    if pair is None or math.isnan(pair.adjusted):
        return OVERLAP if cells[best][fraction].overlaps(cells[row][fraction]) else ""
    return NOISE if pair.adjusted >= LEVEL else ""


def _ranks(group: Group, column: Sequence[int], fraction: float | None, rising: bool) -> dict[int, tuple[int, int]]:
    """Ranks that the comparisons leave open; a row that was not compared may stand anywhere."""
    at = {row: k for k, row in enumerate(column)}
    beats = np.zeros((len(column), len(column)), bool)
    for pair in group.pairs:
        if pair.fraction == fraction and pair.adjusted < LEVEL:
            first, second = at[pair.first], at[pair.second]
            better, worse = (first, second) if (pair.difference.value > 0) == rising else (second, first)
            beats[better, worse] = True
    return {row: (int(low), int(high)) for row, (low, high) in zip(column, rank_intervals(beats), strict=True)}
