"""What lies behind the values of a board: groups of patients, curves of scores, calibration, ranks; from predictions.

Everything is taken at the largest fraction of labels that a row has, and from all of its runs there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vlp_bench.metrics import paired_bootstrap
from vlp_bench.metrics.bootstrap import Patients, entry, mean_entries
from vlp_bench.metrics.curves import GRID, brier, calibration_error, mean_curve, precision_recall, reliability, roc
from vlp_bench.report.boards import Board, Group, Row
from vlp_bench.report.collect import Metric
from vlp_bench.report.predictions import AGE_BANDS, ATTRIBUTES, Predictions, Unusable, column, read
from vlp_bench.report.tables import largest
from vlp_bench.report.wording import listed

FEWEST = 20  # patients, of which a group is shown: fewer say nothing, and are nobody's business
MOST_LABELS = 12  # with curves of their own
FEW_DECISIONS = 10  # of which a share is too coarse to be drawn
ALL = "mean of labels"

Points = tuple[tuple[float, float], ...]
Lines = dict[int, Points]  # by row


@dataclass(frozen=True)
class Subgroup:
    """Patients who share something: how many, and the value of each row, or why there is none."""

    attribute: str
    name: str
    patients: int
    items: int
    values: Mapping[int, Metric] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Calibration:
    """How the probabilities of a row fit what was there."""

    error: float
    brier: Metric
    said: float
    there: float


@dataclass(frozen=True)
class Evidence:
    """What was found for one group of a board; rows are numbered as in the group.

    Attributes:
        subgroups: of patients.
        labels_of: how many labels the values of an attribute are averaged over, where they are.
        roc: by label, lines of (false alarms, found); the mean of labels first.
        precision: by label, lines of (recall, precision).
        prevalence: of each label.
        reliable: lines of (said, there).
        calibration: by row.
        found: by direction, lines of (K, share of own reports among the first K).
        overlap: lines of (IoU, share of items that reach it).
        notes: what could not be shown, and why.
    """

    subgroups: tuple[Subgroup, ...] = ()
    labels_of: Mapping[str, int] = field(default_factory=dict)
    roc: Mapping[str, Lines] = field(default_factory=dict)
    precision: Mapping[str, Lines] = field(default_factory=dict)
    prevalence: Mapping[str, float] = field(default_factory=dict)
    reliable: Lines = field(default_factory=dict)
    calibration: Mapping[int, Calibration] = field(default_factory=dict)
    found: Mapping[str, Lines] = field(default_factory=dict)
    overlap: Lines = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def studied(board: Board, resamples: int = 1000) -> Board:
    """Add to a board what its predictions show.

    Args:
        board: what `boards` made.
        resamples: of the bootstrap over the patients of a group.
    """
    return replace(board, evidence=tuple(_group(board, group, resamples) for group in board.groups))


def _group(board: Board, group: Group, resamples: int) -> Evidence:
    samples, reasons = _samples(board, group)
    subgroups, labels_of = _subgroups(samples, resamples)
    scored = {i: runs for i, runs in samples.items() if all(run.scores is not None for run in runs)}
    labels = _labels(group, scored)
    curves = _curves(scored, labels)
    probable = {i: runs for i, runs in scored.items() if all(run.probabilities for run in _runs(group.rows[i]))}
    notes = _notes(group, reasons)
    if scored and not probable:
        notes.append("No calibration: the scores are not said to be probabilities.")
    if len(labels) > MOST_LABELS:
        notes.append(f"Curves of the {MOST_LABELS} labels with most positives; the mean is over all {len(labels)}.")
    return Evidence(
        subgroups,
        labels_of,
        *curves,
        {i: _reliable(runs) for i, runs in probable.items()},
        {i: _calibration(runs) for i, runs in probable.items()},
        {d: lines for d in ("i2t", "t2i") if (lines := _lines(group, f"rank_{d}", _found))},
        _lines(group, "mean_box_iou", _overlap),
        tuple(notes),
    )


def _notes(group: Group, reasons: Mapping[int, str]) -> list[str]:
    """Name the rows without groups and curves, those of one reason together; not again where comparisons did."""
    said = {(refused.row, refused.reason) for refused in group.refused}
    by_reason: dict[str, list[str]] = {}
    for i, reason in reasons.items():
        if (i, reason) not in said:
            by_reason.setdefault(reason, []).append(group.rows[i].name)
    return [f"Without groups and curves: {listed(names)}: {reason}." for reason, names in by_reason.items()]


def _runs(row: Row) -> Sequence:
    return row.cells[largest(row.cells)].runs


def _samples(board: Board, group: Group) -> tuple[dict[int, list[Predictions]], dict[int, str]]:
    """Read the runs of every row; rows whose test items are not those of the first are left out, with the reason."""
    samples: dict[int, list[Predictions]] = {}
    reasons: dict[int, str] = {}
    known = ""
    for i, row in enumerate(group.rows):
        if row.cells[largest(row.cells)].value is None:
            continue
        try:
            found = [read(run, board.metric) for run in _runs(row)]
            known = known or found[0].key
            if {run.key for run in found} != {known}:
                raise Unusable("its test items or targets are not those of the first row")
            samples[i] = found
        except Unusable as reason:
            reasons[i] = str(reason)
    return samples, reasons


def _subgroups(samples: Mapping[int, list[Predictions]], resamples: int) -> tuple[tuple[Subgroup, ...], dict[str, int]]:
    """Part the test items by view, sex and age, as far as they are known."""
    first = next(iter(samples.values()), [None])[0]
    if first is None:
        return (), {}
    shown: list[Subgroup] = []
    labels_of: dict[str, int] = {}
    for attribute in ATTRIBUTES:
        names = first.groups.get(attribute)
        if names is None:
            continue
        if not names.any():
            shown.append(Subgroup(attribute, "", 0, len(names), reason="not known to the prepared data"))
            continue
        order = {band: str(k) for k, band in enumerate(AGE_BANDS)}
        masks = {str(name): names == name for name in sorted(set(names), key=lambda n: (not n, order.get(n, n)))}
        sizes = {name: len(np.unique(first.patients[mask])) for name, mask in masks.items()}
        large = [name for name in masks if sizes[name] >= FEWEST]
        labels = np.all([_both(first.targets[masks[name]]) for name in large], axis=0) if large else np.zeros(0, bool)
        if first.scores is not None:
            labels_of[attribute] = int(labels.sum())
        for name, mask in masks.items():
            group = Subgroup(attribute, name, sizes[name], int(mask.sum()))
            if name not in large:
                group = replace(group, reason=f"fewer than {FEWEST} patients")
            elif first.scores is not None and not labels.any():
                group = replace(group, reason="no label has both classes in every group")
            else:
                group = _valued(group, samples, mask, labels, resamples)
            shown.append(group)
    return tuple(shown), labels_of


def _both(targets: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.any(targets == 1, axis=0) & np.any(targets == 0, axis=0)


def _valued(
    group: Subgroup,
    samples: Mapping[int, list[Predictions]],
    mask: NDArray[np.bool_],
    labels: NDArray[np.bool_],
    resamples: int,
) -> Subgroup:
    """Measure every row on one group; the labels are the same for all groups of an attribute."""
    values = {}
    try:
        for i, runs in samples.items():
            parts = [run.only(mask) for run in runs]
            parts = [
                p if p.scores is None else replace(p, scores=p.scores[:, labels], targets=p.targets[:, labels])
                for p in parts
            ]
            patients = Patients.of(parts[0].patients)
            statistics = [[part.statistic(patients) for part in parts]]
            value, drawn = paired_bootstrap(statistics, patients.count, resamples=resamples, width=len(parts[0].items))
            values[i] = Metric(**entry(float(value[0]), drawn[0], len(parts[0].items)))
    except Unusable as reason:
        return replace(group, reason=str(reason))
    return replace(group, values=values)


def _labels(group: Group, scored: Mapping[int, list[Predictions]]) -> dict[str, int]:
    """The labels that can be ranked, with their columns, most positives first."""
    for i, runs in scored.items():
        targets, names = runs[0].targets, _runs(group.rows[i])[0].labels
        if len(names) != targets.shape[1]:
            return {}
        both = _both(targets)
        return {names[k]: int(k) for k in np.argsort(-np.nansum(targets, axis=0), kind="stable") if both[k]}
    return {}


def _curves(
    scored: Mapping[int, list[Predictions]], labels: Mapping[str, int]
) -> tuple[dict[str, Lines], dict[str, Lines], dict[str, float]]:
    """ROC and precision-recall curves, averaged over the runs of a row."""
    found: tuple[dict[str, Lines], dict[str, Lines]] = ({}, {})
    shown = list(labels)[:MOST_LABELS]
    for i, runs in scored.items():
        for lines, curve in zip(found, (roc, precision_recall), strict=True):
            each = {
                name: mean_curve(curve(_scores(run)[:, k], run.targets[:, k]) for run in runs)
                for name, k in labels.items()
            }
            if len(labels) > 1:
                lines.setdefault(ALL, {})[i] = _points(mean_curve(each.values()))
            for name in shown:
                lines.setdefault(name, {})[i] = _points(each[name])
    first = next(iter(scored.values()), [None])[0]
    prevalence = {} if first is None else {n: float(np.nanmean(first.targets[:, k])) for n, k in labels.items()}
    return *found, prevalence


def _scores(run: Predictions) -> NDArray[np.float64]:
    assert run.scores is not None
    return run.scores


def _points(curve: NDArray[np.float64]) -> Points:
    return tuple(zip(GRID.tolist(), curve.tolist(), strict=True))


def _reliable(runs: Sequence[Predictions]) -> Points:
    scores, targets = (np.concatenate(parts) for parts in ([_scores(r) for r in runs], [r.targets for r in runs]))
    said, there, count = reliability(scores, targets)
    enough = count >= FEW_DECISIONS
    return tuple(zip(said[enough].tolist(), there[enough].tolist(), strict=True))


def _calibration(runs: Sequence[Predictions]) -> Calibration:
    targets = runs[0].targets
    squared = np.mean([brier(_scores(run), targets) for run in runs], axis=0)
    known = ~np.isnan(targets)
    return Calibration(
        float(np.mean([calibration_error(_scores(run), targets) for run in runs])),
        Metric(**mean_entries({"brier": squared}, runs[0].patients)["brier"]),
        float(np.mean([_scores(run)[known].mean() for run in runs])),
        float(targets[known].mean()),
    )


def _lines(group: Group, name: str, draw: Callable[[NDArray[np.float64]], Points]) -> Lines:
    """Draw a line for each row from one column of the predictions of all its runs."""
    lines = {}
    for i, row in enumerate(group.rows):
        values = [found for run in _runs(row) if (found := column(run, name)) is not None]
        if values and sum(map(len, values)):
            lines[i] = draw(np.concatenate(values))
    return lines


def _found(ranks: NDArray[np.float64]) -> Points:
    """Share of queries whose own report is among the first K, for K that grow by about a fifth."""
    most = max(int(ranks.max()), 2)
    steps = np.unique(np.round(np.geomspace(1, most, 40)))
    return tuple((float(k), float((ranks <= k).mean())) for k in steps)


def _overlap(ious: NDArray[np.float64]) -> Points:
    return tuple((float(t), float((ious >= t).mean())) for t in np.linspace(0, 1, 21))
