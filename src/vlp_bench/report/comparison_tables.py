"""Tables of how rows compare, and of how far their runs spread."""

import math
from typing import Any

from vlp_bench.metrics import variance_split
from vlp_bench.report.boards import Board, Cell, Group, Pair, Row
from vlp_bench.report.compare import LEVEL, STATISTICS
from vlp_bench.report.tables import Table, cell_id, detail, full_name
from vlp_bench.report.wording import fraction_name, listed, metric_name, number, p_value, ranks, sentence, signed

PARTS = ("subset", "seed", "residual", "together")


def comparisons_table(board: Board) -> Table | None:
    """Write how every row compares with the best of its column; CSV has every pair, and what was not compared."""
    records = [_pair_record(board, group, pair) for group in board.groups for pair in group.pairs]
    records += [
        _names(board, group, refused.fraction, refused.row, None) | {"not_compared": refused.reason}
        for group in board.groups
        for refused in group.refused
    ]
    if not records:
        return None
    found = [line for group in board.groups for f in board.fractions for line in _against_best(board, group, f)]
    lines, places = [line for line, _ in found], [place for _, place in found]
    columns: tuple[str, ...] = ("Backbone", "Labels", "Difference from the best", "p, Holm", "Rank")
    if len({line[1] for line in lines}) < 2:  # one fraction needs no column
        columns, lines = columns[:1] + columns[2:], [line[:1] + line[2:] for line in lines]
    title = f"{board.title}: differences of {metric_name(board.metric)}, by {STATISTICS[board.statistics]}"
    links = tuple(tuple(place if c.startswith("Difference") else "" for c in columns[1:]) for place in places)
    return Table(f"{board.slug}-comparisons", title, columns, tuple(lines), tuple(records), refusals(board), links)


def refusals(board: Board) -> tuple[str, ...]:
    """Say which rows were not compared and why, those of one reason together."""
    reasons: dict[tuple[str, float | None], list[str]] = {}
    for group in board.groups:
        for refused in group.refused:
            name = full_name(board, group, group.rows[refused.row])
            reasons.setdefault((refused.reason, refused.fraction), []).append(name)
    several = len(board.fractions) > 1
    return tuple(
        f"Not compared: {listed(names)}{f' at {fraction_name(fraction)}' if several else ''}: {reason}."
        for (reason, fraction), names in reasons.items()
    )


def spread_table(board: Board) -> Table | None:
    """Split the spread over runs into what comes from subsets and what from seeds, as standard deviations."""
    lines: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    notes: dict[str, list[str]] = {}
    for group in board.groups:
        for row in group.rows:
            for fraction, cell in row.cells.items():
                record = _spread(board, group, row, fraction, cell)
                if record is None:
                    continue
                name, records = full_name(board, group, row), [*records, record]
                counts = [str(record[key]) for key in ("runs", "subsets", "seeds")]
                deviations = [_deviation(record[f"variance_{part}"], board.metric) for part in PARTS]
                lines.append((name, fraction_name(fraction), *counts, *deviations))
                if record["note"]:
                    notes.setdefault(record["note"], []).append(f"{name} at {fraction_name(fraction)}")
    if not lines:
        return None
    told = tuple(f"{sentence(n)}{'' if len(w) == len(lines) else f' ({listed(w)})'}." for n, w in notes.items())
    columns = ("Backbone", "Labels", "Runs", "Subsets", "Seeds", "Subset SD", "Seed SD", "Rest SD", "Together SD")
    title = f"{board.title}: spread of {metric_name(board.metric)} over subsets and seeds"
    return Table(f"{board.slug}-spread", title, columns, tuple(lines), tuple(records), told)


def _against_best(board: Board, group: Group, fraction: float | None) -> list[tuple[tuple[str, ...], str]]:
    """Lines of texts, each with the place that its row comes from."""
    column = [i for i, row in enumerate(group.rows) if fraction in row.cells]
    best = next((i for i in column if group.rows[i].cells[fraction].best), None)
    if best is None or not any(pair.fraction == fraction for pair in group.pairs):
        return []
    lines: list[tuple[tuple[str, ...], str]] = []
    for i in column:
        cell, pair = group.rows[i].cells[fraction], group.pair(fraction, i, best)
        told = ("best", "–") if i == best else _difference_texts(pair, board.metric)
        rank = ranks(cell.rank) if cell.rank else "–"
        texts = (full_name(board, group, group.rows[i]), fraction_name(fraction), *told, rank)
        lines.append((texts, cell_id(board, group.rows[i], fraction)))
    return lines


def _difference_texts(pair: Pair | None, metric: str) -> tuple[str, str]:
    if pair is None:
        return "not compared", "–"
    d = pair.difference
    ends = "\u00a0to\u00a0".join(signed(end, metric) for end in (d.low, d.high))  # a narrow column breaks before them
    interval = "" if math.isnan(d.low) else f" ({ends})"
    return f"{signed(d.value, metric)}{interval}", p_value(pair.adjusted)


def _pair_record(board: Board, group: Group, pair: Pair) -> dict[str, Any]:
    d = pair.difference
    numbers = {"difference": d.value, "low": d.low, "high": d.high, "p": d.p, "p_holm": pair.adjusted}
    return (
        _names(board, group, pair.fraction, pair.first, pair.second)
        | {name: _known(value) for name, value in numbers.items()}
        | {"inside_the_noise": None if math.isnan(pair.adjusted) else pair.adjusted >= LEVEL, "not_compared": ""}
    )


def _names(board: Board, group: Group, fraction: float | None, first: int, second: int | None) -> dict[str, Any]:
    one, other = group.rows[first], None if second is None else group.rows[second]
    return {
        "target_fingerprint": group.fingerprint,
        "label_fraction": fraction,
        "metric": board.metric,
        "statistics": board.statistics,
        "first": one.name,
        "first_note": one.note,
        "second": other.name if other else "",
        "second_note": other.note if other else "",
    }


def _spread(board: Board, group: Group, row: Row, fraction: float | None, cell: Cell) -> dict[str, Any] | None:
    """Split the variance of the runs behind a cell; None where there is one run only."""
    runs = [run for run in cell.runs if run.metrics[board.metric].value is not None]
    if len(runs) < 2:
        return None
    subsets = ["" if fraction == 1 else run.draw for run in runs]  # all labels can be drawn in one way only
    seeds = [(run.seed, run.pretrain_seed) for run in runs]
    split = variance_split([run.metrics[board.metric].value or 0.0 for run in runs], subsets, seeds)
    return (
        detail(group, row, fraction, cell)
        | {"metric": board.metric, "subsets": len(set(subsets)), "seeds": len(set(seeds))}
        | {f"variance_{part}": _known(getattr(split, part)) for part in PARTS}
        | {"note": split.note}
    )


def _deviation(variance: float | None, metric: str) -> str:
    return "–" if variance is None else number(math.sqrt(variance), metric)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
