"""From records to boards: what may be averaged, what is best, what is a tie, what fails to beat the trivial answer.

A board compares backbones on one task, target, split, protocol, adaptation and headline metric. Within it, rows
that were measured on different target data or labels form separate groups, each with its own trivial row and its own
best. Runs are averaged only when they differ in nothing but draw and seeds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from vlp_bench.metrics import Difference
from vlp_bench.report.collect import CAVEATS, Evaluation, Metric
from vlp_bench.report.wording import rises, sentence, short, words

if TYPE_CHECKING:
    from vlp_bench.report.evidence import Evidence

BOOTSTRAP, RANGE, STUDENT = "bootstrap", "range", "t"
TRIVIAL = "trivial answer"
FEW = 3  # a t-interval from fewer runs says more about the formula than about the runs
BELOW, UNCLEAR = "below", "unclear"
OVERLAP, NOISE = "overlap", "noise"  # why a value is taken to equal the best: by its interval, or by a paired test


@dataclass(frozen=True)
class Cell:
    """One value of a board: the mean over its runs, and how its interval came about."""

    value: float | None
    low: float | None
    high: float | None
    interval: str
    n: int | None
    runs: tuple[Evaluation, ...]
    best: bool = False
    tie: str = ""
    verdict: str = ""
    rank: tuple[int, int] | None = None

    @property
    def exposure(self) -> tuple[str, ...]:
        """Why its runs may have seen test images before."""
        return tuple(dict.fromkeys(reason for run in self.runs for reason in run.exposure))

    def overlaps(self, other: "Cell") -> bool:
        """Tell whether the intervals share a point; a cell without interval counts as its value alone."""
        low, high = _ends(self)
        other_low, other_high = _ends(other)
        return low <= other_high and other_low <= high


@dataclass(frozen=True)
class Row:
    """A backbone (or the trivial answer) with one cell per label fraction."""

    name: str
    note: str
    cells: dict[float | None, Cell]
    trivial: bool = False


TRIVIAL_ROW = Row(TRIVIAL, "", {}, trivial=True)


@dataclass(frozen=True)
class Pair:
    """Two rows compared at one fraction: the first minus the second. `adjusted` is the p-value after Holm."""

    fraction: float | None
    first: int
    second: int
    difference: Difference
    adjusted: float = float("nan")


@dataclass(frozen=True)
class Refused:
    """A row that could not be compared at one fraction, and why."""

    fraction: float | None
    row: int
    reason: str


@dataclass(frozen=True)
class Group:
    """Rows measured on the same target data, the trivial row that goes with them, and how they compare."""

    fingerprint: str
    rows: tuple[Row, ...]
    trivial: Row | None
    pairs: tuple[Pair, ...] = ()
    refused: tuple[Refused, ...] = ()

    def pair(self, fraction: float | None, first: int, second: int) -> Pair | None:
        """Look up a comparison, in either order: the value is that of `first` minus `second`."""
        for pair in self.pairs:
            if pair.fraction == fraction and (pair.first, pair.second) == (first, second):
                return pair
            if pair.fraction == fraction and (pair.first, pair.second) == (second, first):
                d = pair.difference
                return Pair(fraction, first, second, Difference(-d.value, -d.high, -d.low, d.p), pair.adjusted)
        return None


@dataclass(frozen=True)
class Board:
    """One leaderboard."""

    slug: str
    task: str
    target: str
    split: str
    protocol: str
    adaptation: str
    metric: str
    fractions: tuple[float | None, ...]
    groups: tuple[Group, ...]
    repeats: tuple[str, ...] = ()
    caveats: dict[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: str = ""
    evidence: "tuple[Evidence, ...]" = ()  # of each group, where it was looked for

    @property
    def title(self) -> str:
        """What is compared, in words."""
        parts = [sentence(words(self.task)), self.target, words(self.adaptation)]
        if self.protocol not in ("", "honest"):  # the rule needs no mention, a published protocol does
            parts.append(words(self.protocol))
        return " · ".join(part for part in parts if part not in ("", "none"))

    def cells(self) -> Iterable[tuple[Row, float | None, Cell]]:
        """Go through all cells that are not trivial, in reading order."""
        for group in self.groups:
            for row in group.rows:
                for fraction in self.fractions:
                    if fraction in row.cells:
                        yield row, fraction, row.cells[fraction]


def boards(evaluations: Sequence[Evaluation]) -> list[Board]:
    """Sort evaluations into boards, in alphabetical order of what they compare."""
    found: dict[tuple[str, ...], list[Evaluation]] = {}
    for e in evaluations:
        key = (e.task, e.target, e.split, e.protocol, e.adaptation, e.primary)
        found.setdefault(key, []).append(e)
    slugs: set[str] = set()
    return [_board(key, members, _slug(key, slugs)) for key, members in sorted(found.items())]


def _board(key: tuple[str, ...], members: list[Evaluation], slug: str) -> Board:
    """Build one board from the evaluations that share its key."""
    task, target, split, protocol, adaptation, metric = key
    fractions = sorted({e.label_fraction for e in members}, key=lambda f: (f is not None, f))
    by_target: dict[tuple[str, tuple[str, ...]], list[Evaluation]] = {}
    # what has no value names no labels: it stands with those that do
    for e in sorted(members, key=lambda e: bool(e.not_applicable)):
        data = (e.fact("target_fingerprint"), e.labels)
        known = next((d for d in by_target if d[0] == data[0]), data) if e.not_applicable else data
        by_target.setdefault(known, []).append(e)
    groups, repeats = [], []
    for (fingerprint, _), group in sorted(by_target.items(), key=lambda item: (-len(item[1]), item[0])):
        kept, dropped = _without_repeats(group)
        repeats += dropped
        groups.append(_group(fingerprint, kept, metric, fractions))
    caveats = {kind: tuple(dict.fromkeys(c for e in members for c in e.caveats.get(kind, ()))) for kind in CAVEATS}
    return Board(
        slug,
        *(task, target, split, protocol, adaptation, metric),
        tuple(fractions),
        tuple(groups),
        tuple(repeats),
        caveats,
    )


def _group(fingerprint: str, members: list[Evaluation], metric: str, fractions: list[float | None]) -> Group:
    """Average what may be averaged, then judge every cell against the others and the trivial answer."""
    identities: dict[tuple[str, ...], list[Evaluation]] = {}
    for e in members:
        identities.setdefault(_identity(e, members), []).append(e)
    notes = _notes(list(identities))
    rows = []
    for identity, runs in identities.items():
        cells = {}
        for fraction in fractions:
            at = tuple(e for e in runs if e.label_fraction == fraction)
            if at:
                cells[fraction] = average([e.metrics.get(metric) for e in at], metric, at)
        why = next((f"no value: {e.not_applicable}" for e in runs if e.not_applicable), "")
        rows.append(Row(identity[0], "; ".join(part for part in (notes[identity], why) if part), cells))
    trivial = _trivial_row(members, metric, fractions)
    rows = _judged(rows, trivial, metric, fractions)
    rows.sort(key=lambda row: _standing(row, metric, fractions))
    return Group(fingerprint, tuple(rows), trivial)


def average(entries: Sequence[Metric | None], metric: str, runs: tuple[Evaluation, ...]) -> Cell:
    """Combine the same number from several runs into one cell.

    One run keeps its bootstrap interval. Two give their range, three or more a 95 % t-interval of the mean.
    """
    known = [e for e in entries if e is not None and e.value is not None]
    if not known:
        return Cell(None, None, None, "", next((e.n for e in entries if e is not None), None), runs)
    values = np.array([e.value for e in known])
    n = min((e.n for e in known if e.n is not None), default=None)
    if len(known) == 1:
        return Cell(known[0].value, known[0].low, known[0].high, BOOTSTRAP, n, runs)
    mean = float(values.mean())
    if len(known) < FEW:
        return Cell(mean, float(values.min()), float(values.max()), RANGE, n, runs)
    half = float(stdtrit(len(known) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(known)))
    low, high = mean - half, mean + half
    if rises(metric) and values.min() >= 0 and values.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return Cell(mean, low, high, STUDENT, n, runs)


def _identity(e: Evaluation, members: Sequence[Evaluation]) -> tuple[str, ...]:
    """Everything that two runs must share to be averaged, the name first.

    The weights take part only when the same pre-training seed produced several: pre-trainings that differ in their
    seed are repetitions, pre-trainings that differ in anything else are not.
    """
    parts = _pretraining(e)
    weights = {
        m.fact("bundle_hash") for m in members if m.pretrain_seed == e.pretrain_seed and parts == _pretraining(m)
    }
    return (*parts, e.fact("bundle_hash") if len(weights) > 1 else "", e.fact("recipe"))


def _pretraining(e: Evaluation) -> tuple[str, ...]:
    recipe = e.fact("pretrain", "provenance", "recipe")
    return (e.backbone, e.method, e.variant, e.fact("data_fingerprint"), e.fact("pretrain", "steps"), recipe)


def _notes(identities: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Say what sets rows of the same name apart; rows with a name of their own need no note."""
    kinds = (
        "",
        "method",
        "variant",
        "pre-training data",
        "pre-training steps",
        "pre-training recipe",
        "weights",
        "recipe",
    )
    several_recipes = len({identity[-1] for identity in identities}) > 1
    notes = {}
    for identity in identities:
        namesakes = [other for other in identities if other[0] == identity[0]]
        differing = [i for i in range(1, len(kinds)) if len({other[i] for other in namesakes}) > 1]
        if several_recipes and len(kinds) - 1 not in differing:
            differing.append(len(kinds) - 1)  # a comparison across recipes is said to be one
        notes[identity] = ", ".join(f"{kinds[i]} {short(identity[i]) or 'unknown'}" for i in differing)
    return notes


def _without_repeats(members: list[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """Keep the newest of runs that share fraction, draw and all seeds: a repeated run is no independent run."""
    newest: dict[tuple, Evaluation] = {}
    repeats = []
    for e in sorted(members, key=lambda e: (e.fact("started"), e.folder)):
        draw = "" if e.label_fraction == 1 else e.draw  # all labels can be drawn in one way only
        key = (*_identity(e, members), e.label_fraction, draw, e.seed, e.pretrain_seed)
        earlier = newest.get(key)
        if earlier is not None:
            other = earlier.fact("config_hash") != e.fact("config_hash")
            repeats.append(f"{earlier.folder} (replaced by {e.folder}{', which has another configuration' * other})")
        newest[key] = e
    return sorted(newest.values(), key=lambda e: e.folder), sorted(repeats)


def _trivial_row(members: Sequence[Evaluation], metric: str, fractions: Sequence[float | None]) -> Row | None:
    """Collect the trivial answer per fraction."""
    cells = {f: trivial_cell([e for e in members if e.label_fraction == f], metric) for f in fractions}
    known = {f: cell for f, cell in cells.items() if cell.value is not None}
    return Row(TRIVIAL, "", known, trivial=True) if known else None


def trivial_cell(runs: Sequence[Evaluation], metric: str, baseline: str | None = None) -> Cell:
    """Combine the trivial answers of runs on the same data, or a further one by name: runs that share it count once.

    Where they differ, because draws differ in their majority class, the interval is the range.
    """
    answers = [e.trivial if baseline is None else e.baselines.get(baseline, {}) for e in runs]
    shared = dict.fromkeys(answer[metric] for answer in answers if metric in answer)
    known = [entry for entry in shared if entry.value is not None]
    cell = average(known, metric, ())
    if len(known) < FEW:  # alone it keeps its interval, and two are given as their range already
        return cell
    values = [entry.value for entry in known if entry.value is not None]
    return replace(cell, low=min(values), high=max(values), interval=RANGE)


def _judged(rows: list[Row], trivial: Row | None, metric: str, fractions: Sequence[float | None]) -> list[Row]:
    """Mark the best cell of every column, its ties, and the cells that do not beat the trivial answer."""
    judged = [dict(row.cells) for row in rows]
    for fraction in fractions:
        floor = trivial.cells.get(fraction) if trivial else None
        column = {i: cells[fraction] for i, cells in enumerate(judged) if fraction in cells}
        ranked = sorted((i for i in column if column[i].value is not None), key=lambda i: _rank(column[i], metric))
        best = column[ranked[0]] if len(ranked) > 1 else None  # a lone value has beaten nobody
        for i, cell in column.items():
            tied = best is not None and cell.value is not None and cell is not best and cell.overlaps(best)
            rivals = [column[j] for j in ranked[1:]]
            judged[i][fraction] = replace(
                cell,
                best=cell is best,
                tie=OVERLAP if tied or (cell is best and any(cell.overlaps(rival) for rival in rivals)) else "",
                verdict=_verdict(cell, floor, metric),
            )
    return [replace(row, cells=cells) for row, cells in zip(rows, judged, strict=True)]


def _verdict(cell: Cell, floor: Cell | None, metric: str) -> str:
    """Compare a cell with the trivial answer: below it, not clear of it, or nothing to remark."""
    if cell.value is None or floor is None or floor.value is None:
        return ""
    low, high = _ends(cell)
    if not rises(metric):
        return BELOW if cell.value >= floor.value else UNCLEAR if high >= floor.value else ""
    return BELOW if cell.value <= floor.value else UNCLEAR if low <= floor.value else ""


def _standing(row: Row, metric: str, fractions: Sequence[float | None]) -> tuple:
    """Order rows by their value at the largest fraction, then at the next; names settle equal rows."""
    keys = [_rank(row.cells[f], metric) if f in row.cells else np.inf for f in reversed(fractions)]
    return (*keys, row.name, row.note)


def _rank(cell: Cell, metric: str) -> float:
    if cell.value is None:
        return float("inf")
    return -cell.value if rises(metric) else cell.value


def _ends(cell: Cell) -> tuple[float, float]:
    value = float("nan") if cell.value is None else cell.value
    return (value if cell.low is None else cell.low), (value if cell.high is None else cell.high)


def _slug(key: Sequence[str], taken: set[str]) -> str:
    """Make a file name from a key, different from those taken."""
    base = re.sub(r"[^a-z0-9]+", "-", "-".join(key).lower()).strip("-")[:100] or "table"
    slug, i = base, 2
    while slug in taken:
        slug, i = f"{base}-{i}", i + 1
    taken.add(slug)
    return slug
