"""From boards to tables for people (Markdown), for programs (CSV) and for the console."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlp_bench.report.boards import (
    BELOW,
    NOISE,
    OVERLAP,
    TRIVIAL,
    TRIVIAL_ROW,
    UNCLEAR,
    Board,
    Cell,
    Group,
    Row,
    average,
    trivial_cell,
)
from vlp_bench.report.collect import Evaluation
from vlp_bench.report.fairness import fairness
from vlp_bench.report.latex import latex_table
from vlp_bench.report.wording import (
    fraction_name,
    metric_name,
    number,
    sentence,
    short,
    words,
)

VERDICTS = {BELOW: "does not beat trivial", UNCLEAR: "not clear of trivial"}
TIES = {NOISE: "inside the noise", OVERLAP: "intervals overlap"}


@dataclass(frozen=True)
class Table:
    """A plain table for Markdown, LaTeX and the page, and its records for CSV, which need not have its layout.

    `links` says where the cells of a row, after its first, come from: places of the page; empty for none.
    """

    slug: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...] = field(default=())
    notes: tuple[str, ...] = ()
    links: tuple[tuple[str, ...], ...] = ()

    def markdown(self) -> str:
        """Write the title, a pipe table if it has rows, and the notes."""
        table = pipe_table(self.columns, self.rows) if self.rows else ""
        notes = "".join(f"\n{_safe(note)}\n" for note in self.notes)
        return f"# {_flat(self.title)}\n\n{table}{notes}"

    def csv(self) -> str:
        """Write one line per number, at full precision."""
        stream = io.StringIO()
        fields = list(dict.fromkeys(key for record in self.records for key in record))
        writer = csv.DictWriter(stream, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return stream.getvalue()

    def latex(self) -> str:
        """Write a table environment for the package booktabs."""
        return latex_table(self.title, self.columns, self.rows, self.notes, self.slug)


def overall_metrics(board: Board) -> list[str]:
    """List the metrics of a board that are not about a single label, the headline first."""
    runs = [run for _, _, cell in board.cells() for run in cell.runs]
    labels = {label for run in runs for label in run.labels}
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return sorted((n for n in names if n.partition("/")[2] not in labels), key=lambda n: n != board.metric)


def board_labels(board: Board) -> list[str]:
    """List the labels for which the headline metric was measured one by one."""
    runs = [run for _, _, cell in board.cells() for run in cell.runs]
    labels = dict.fromkeys(label for run in runs for label in run.labels)
    return [label for label in labels if any(f"{board.metric}/{label}" in run.metrics for run in runs)]


def cell_id(board: Board, row: Row, fraction: float | None) -> str:
    """Name the place of a cell's provenance; empty for what has none."""
    rows = [r for group in board.groups for r in group.rows]
    # by identity: rows hold arrays and dicts, and no two are the same
    place = next((i for i, r in enumerate(rows) if r is row), None)
    return "" if place is None else f"{board.slug}--{place + 1}-{board.fractions.index(fraction) + 1}"


def leaderboard_table(board: Board) -> Table:
    """Write a board as a table: Markdown has a column per fraction, CSV a line per cell."""
    columns = ("Backbone", *(fraction_name(f) for f in board.fractions))
    rows, records = [], []
    for group in board.groups:
        for row in [*group.rows, *([group.trivial] if group.trivial else [])]:
            name = f"{row.name} ({row.note})" if row.note else row.name
            if len(board.groups) > 1:
                name += f" [target data {short(group.fingerprint) or 'unknown'}]"
            cells = [row.cells.get(f) for f in board.fractions]
            rows.append((name, *(cell_text(cell, board.metric) for cell in cells)))
            records += [_record(board, group, row, f, row.cells[f]) for f in board.fractions if f in row.cells]
    title = f"{board.title}: {metric_name(board.metric)}"
    return Table(board.slug, title, columns, tuple(rows), tuple(records), tuple(fairness(board)))


def _record(board: Board, group: Group, row: Row, fraction: float | None, cell: Cell) -> dict[str, Any]:
    return {
        "task": board.task,
        "target": board.target,
        "split": board.split,
        "protocol": board.protocol,
        "adaptation": board.adaptation,
        "target_fingerprint": group.fingerprint,
        "backbone": row.name,
        "note": row.note,
        "trivial": row.trivial,
        "label_fraction": fraction,
        "metric": board.metric,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "interval": cell.interval,
        "n": cell.n,
        "runs": len(cell.runs),
        "best": cell.best,
        "tie": bool(cell.tie),
        "tie_by": cell.tie,
        "rank_low": cell.rank[0] if cell.rank else None,
        "rank_high": cell.rank[1] if cell.rank else None,
        "against_trivial": cell.verdict,
        "exposure": "; ".join(cell.exposure),
        "folders": ";".join(run.folder for run in cell.runs),
    }


def measures_table(board: Board) -> Table:
    """Write all overall metrics of a board: a row per backbone and fraction, a column per metric."""
    names = overall_metrics(board)
    rows, records, links = [], [], []

    def add(group: Group, row: Row, fraction: float | None, cells: list[Cell]) -> None:
        texts = [cell_text(cell, name) for cell, name in zip(cells, names, strict=True)]
        rows.append((full_name(board, group, row), fraction_name(fraction), *texts))
        links.append(("", *[cell_id(board, row, fraction)] * len(names)))
        for cell, name in zip(cells, names, strict=True):
            records.append(detail(group, row, fraction, cell) | {"metric": name})

    for group in board.groups:
        for row in group.rows:
            for fraction, cell in row.cells.items():
                add(group, row, fraction, [metric_cell(cell, name) for name in names])
        for fraction in board.fractions:
            cells = [trivial_cell(_runs_of(group, fraction), name) for name in names]
            if any(cell.value is not None for cell in cells):
                add(group, TRIVIAL_ROW, fraction, cells)
            runs = _runs_of(group, fraction)
            for answer in dict.fromkeys(name for run in runs for name in run.baselines):
                named = replace(TRIVIAL_ROW, name=f"{TRIVIAL}: {words(answer)}")
                add(group, named, fraction, [trivial_cell(runs, name, answer) for name in names])
    columns = ("Backbone", "Labels", *(sentence(metric_name(name)) for name in names))
    title = f"{board.title}: all measures"
    return Table(f"{board.slug}-measures", title, columns, tuple(rows), tuple(records), links=tuple(links))


def labels_table(board: Board) -> Table | None:
    """Write the headline metric per label at the largest fraction of each backbone; CSV has every fraction."""
    labels = board_labels(board)
    if not labels:
        return None
    heads: list[tuple[Group, Row, float | None]] = []
    for group in board.groups:
        measured = [row for row in group.rows if row.cells[largest(row.cells)].value is not None]
        heads += [(group, row, largest(row.cells)) for row in measured]
        heads.append((group, TRIVIAL_ROW, largest(f for row in group.rows for f in row.cells)))
    several = len({fraction for _, _, fraction in heads}) > 1
    names = [
        full_name(board, g, r) + (f", {fraction_name(f)}" if several and not r.trivial else "") for g, r, f in heads
    ]
    rows, records = [], []
    for label in labels:
        name = f"{board.metric}/{label}"
        cells = [
            trivial_cell(_runs_of(g, f), name) if r.trivial else metric_cell(r.cells[f], name) for g, r, f in heads
        ]
        rows.append((label, _positives(board, label), *(cell_text(c, board.metric) for c in cells)))
        for group in board.groups:
            for row in group.rows:
                for fraction, cell in row.cells.items():
                    record = detail(group, row, fraction, metric_cell(cell, name))
                    records.append(record | {"metric": board.metric, "label": label})
    shown = "" if several else f" at {fraction_name(heads[0][2])}"
    title = f"{board.title}: {metric_name(board.metric)} per label{shown}"
    links = (("", *(cell_id(board, r, f) for _, r, f in heads)),) * len(rows)
    columns = ("Label", "Positive", *names)
    return Table(f"{board.slug}-labels", title, columns, tuple(rows), tuple(records), links=links)


def largest(fractions: Iterable[float | None]) -> float | None:
    """The largest fraction of labels; none at all (None) is less than any."""
    return max(fractions, key=lambda f: (f is not None, f))


def _runs_of(group: Group, fraction: float | None) -> list[Evaluation]:
    return [run for row in group.rows if fraction in row.cells for run in row.cells[fraction].runs]


def metric_cell(cell: Cell, name: str) -> Cell:
    """Another metric of the runs behind a cell."""
    return average([run.metrics.get(name) for run in cell.runs], name, cell.runs)


def _positives(board: Board, label: str) -> str:
    """Say how many of the known test targets are positive, where predictions were kept."""
    counts = {run.label_counts[label] for _, _, cell in board.cells() for run in cell.runs if label in run.label_counts}
    return ", ".join(f"{positive} of {known}" for positive, known in sorted(counts))


def full_name(board: Board, group: Group, row: Row) -> str:
    """Name a row with what sets it apart from others of its name."""
    name = f"{row.name} ({row.note})" if row.note else row.name
    return name if len(board.groups) == 1 else f"{name} [{short(group.fingerprint) or 'unknown'}]"


def detail(group: Group, row: Row, fraction: float | None, cell: Cell) -> dict[str, Any]:
    """Start the record of a cell."""
    return {
        "target_fingerprint": group.fingerprint,
        "backbone": row.name,
        "note": row.note,
        "label_fraction": fraction,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "interval": cell.interval,
        "n": cell.n,
        "runs": len(cell.runs),
    }


def console_table(all_boards: Sequence[Board]) -> list[list[str]]:
    """Write all boards as one small table of strings, the header first."""
    table = [["task", "target", "adaptation", "labels", "backbone", "metric", "result", "trivial"]]
    for board in all_boards:
        for group in board.groups:
            for row in group.rows:
                for fraction, cell in row.cells.items():
                    floor = group.trivial.cells.get(fraction) if group.trivial else None
                    table.append(
                        [
                            words(board.task),
                            board.target,
                            words(board.adaptation),
                            fraction_name(fraction),
                            f"{row.name} ({row.note})" if row.note else row.name,
                            metric_name(board.metric),
                            f"{number(cell.value, board.metric)} {interval_text(cell, board.metric)}".strip(),
                            number(floor.value, board.metric) if floor else "–",
                        ]
                    )
    return table


def cell_text(cell: Cell | None, metric: str) -> str:
    """Write a cell for Markdown: value, interval, number of runs and marks."""
    if cell is None or cell.value is None:
        return "–"
    value = number(cell.value, metric)
    text = f"**{value}**" if cell.best else value
    interval = interval_text(cell, metric)
    runs = f"{len(cell.runs)} runs" if len(cell.runs) > 1 else ""
    seen = f"seen before: {'; '.join(cell.exposure)}" if cell.exposure else ""
    marks = [mark for mark in (TIES.get(cell.tie, ""), VERDICTS.get(cell.verdict, ""), seen) if mark]
    return " ".join(part for part in (text, interval, runs, f"[{', '.join(marks)}]" if marks else "") if part)


def interval_text(cell: Cell, metric: str) -> str:
    """Write an interval as (low–high); empty without one or when it is a single point."""
    if cell.low is None or cell.high is None or (cell.low == cell.high == cell.value):
        return ""
    return f"({number(cell.low, metric)}–{number(cell.high, metric)})"


def _flat(text: str) -> str:
    return " ".join(text.split())


def pipe_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with a line feed after each line."""
    return "".join(f"{_pipes(line)}\n" for line in (columns, ["---"] * len(columns), *rows))


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_safe(cell) for cell in cells)} |"


def _safe(text: str) -> str:
    return _flat(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
