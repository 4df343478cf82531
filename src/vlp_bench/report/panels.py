"""What is folded away below a leaderboard: groups of patients, curves, calibration, ranks, overlaps, worse images."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlp_bench.report import svg
from vlp_bench.report.boards import Board, Cell, Group, Row
from vlp_bench.report.elements import Colours, figure, folded, folded_table, plain_table
from vlp_bench.report.evidence import Lines
from vlp_bench.report.evidence_tables import calibration_table, robust_cell, robustness_table, subgroups_table
from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.tables import full_name, largest
from vlp_bench.report.wording import metric_name, sentence, words

SMALL, LARGE = (250.0, 230.0), (svg.WIDTH, 320.0)
SHARES = [(t / 4, f"{t / 4:g}") for t in range(5)]
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


def panels(board: Board, colours: Colours) -> Markup:
    """Write all panels for which there is something to show."""
    return render(
        folded_table(subgroups_table(board), sentence(f"{metric_name(board.metric)} by view, sex and age")),
        _curves(board, colours),
        _calibration(board, colours),
        _retrieval(board, colours),
        _grounding(board, colours),
        _robustness(board, colours),
        [tag("p", note, class_="note") for evidence in board.evidence for note in evidence.notes],
    )


def _series(board: Board, group: Group, lines: Lines, colours: Colours, marks: int | None = 6) -> list[svg.Series]:
    drawn = []
    for i, points in lines.items():
        row = group.rows[i]
        if points:
            drawn.append(svg.Series(full_name(board, group, row), points, colour=colours[_key(row)], marks=marks))
    return drawn


def _key(row: Row) -> tuple[str, str]:
    return row.name, row.note


def _legend(board: Board, group: Group, rows: Any, colours: Colours, floor: str = "") -> Markup:
    """One legend for all charts of a panel."""
    entries = [(full_name(board, group, group.rows[i]), svg.swatch(colours[_key(group.rows[i])])) for i in rows]
    entries += [(floor, svg.swatch(None))] if floor else []
    return tag("ul", [tag("li", sample, tag("span", name)) for name, sample in entries], class_="legend")


def _curves(board: Board, colours: Colours) -> Markup | None:
    """ROC and precision-recall curves, of the mean of labels and of each."""
    parts = []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        if not evidence.roc:
            continue
        chance = [(0.0, 0.0), (1.0, 1.0)]
        roc = [_roc(board, group, label, lines, colours, chance) for label, lines in evidence.roc.items()]
        precision = []
        for label, lines in evidence.precision.items():
            share = evidence.prevalence.get(label)
            floor = [(0.0, share), (1.0, share)] if share is not None else []
            precision.append(_square(board, group, "Precision", label, lines, colours, floor, "recall"))
        rows = dict.fromkeys(i for lines in evidence.roc.values() for i in lines)
        parts += [
            tag("p", "Share of positives found (up) against the share of false alarms (along).", class_="meta"),
            tag("div", roc, class_="panels"),
            tag("p", "Precision (up) against recall (along); dashed: the share of positives.", class_="meta"),
            tag("div", precision, class_="panels"),
            _legend(board, group, rows, colours, "no skill"),
        ]
    return folded("ROC and precision–recall curves", *parts) if parts else None


def _roc(
    board: Board, group: Group, label: str, lines: Lines, colours: Colours, chance: list[tuple[float, float]]
) -> Markup:
    return _square(board, group, "ROC", label, lines, colours, chance, "false alarms")


def _square(
    board: Board,
    group: Group,
    kind: str,
    title: str,
    lines: Lines,
    colours: Colours,
    reference: list[tuple[float, float]],
    x_name: str,
    marks: int | None = 6,
    size: tuple[float, float] = SMALL,
) -> Markup:
    """Draw shares against shares."""
    chart = svg.line_chart(
        _series(board, group, lines, colours, marks),
        f"{kind}: {title}",
        x_ticks=SHARES,
        y_range=(0.0, 1.0),
        reference=reference,
        x_name=x_name,
        width=size[0],
        height=size[1],
    )
    return figure(chart, title)


def _calibration(board: Board, colours: Colours) -> Markup | None:
    table = calibration_table(board)
    if table is None:
        return None
    charts = []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        if not any(evidence.reliable.values()):
            continue
        ideal = [(0.0, 0.0), (1.0, 1.0)]
        title, lines = "Share of positives against probability", evidence.reliable
        charts.append(
            _square(board, group, "Calibration", title, lines, colours, ideal, "mean probability", None, LARGE)
        )
        charts.append(_legend(board, group, lines, colours, "as it should be"))
    return folded("Calibration", plain_table(table), tag("div", charts, class_="charts"))


def _retrieval(board: Board, colours: Colours) -> Markup | None:
    """How far down the list the own report, or image, is found."""
    charts: list[Markup] = []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        for direction, lines in evidence.found.items():
            most = max(x for points in lines.values() for x, _ in points)
            chance = [(k, k / most) for k in (1.0, *(most * t / 20 for t in range(1, 21))) if k >= 1]
            ticks = [(float(k), f"{k:,}") for k in (1, 10, 100, 1000, 10_000) if k <= most]
            title = f"Own one among the first K, {DIRECTIONS[direction]}"
            chart = svg.line_chart(
                _series(board, group, lines, colours),
                title,
                x_ticks=ticks,
                logarithmic=True,
                y_range=(0.0, 1.0),
                reference=chance,
                x_name="K",
            )
            charts.append(figure(chart, title))
        if evidence.found:
            rows = dict.fromkeys(i for lines in evidence.found.values() for i in lines)
            charts.append(_legend(board, group, rows, colours, "random order"))
    return folded("How far down the list", tag("div", charts, class_="charts")) if charts else None


def _grounding(board: Board, colours: Colours) -> Markup | None:
    """How many boxes are met at which overlap."""
    charts: list[Markup] = []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        if evidence.overlap:
            title = "Share of findings whose boxes are met at least so well"
            charts.append(
                _square(board, group, "Overlap", title, evidence.overlap, colours, [], "IoU of boxes", size=LARGE)
            )
            charts.append(_legend(board, group, evidence.overlap, colours))
    return folded("How well the boxes are met", tag("div", charts, class_="charts")) if charts else None


def _robustness(board: Board, colours: Colours) -> Markup | None:
    table = robustness_table(board)
    if table is None:
        return None
    charts: list[Markup] = []
    for group in board.groups:
        rows = {
            i: row.cells[largest(row.cells)]
            for i, row in enumerate(group.rows)
            if any(run.robustness for run in row.cells[largest(row.cells)].runs)
        }
        keys = [k for cell in rows.values() for run in cell.runs for k in run.robustness.get("found", {})]
        drawn = {name: _severities(rows, name, keys) for name in dict.fromkeys(name for name, _ in keys)}
        values = [y for lines in drawn.values() for points in lines.values() for _, y in points]
        for name, lines in drawn.items():
            charts.append(_worse(board, group, name, lines, colours, (min(values), max(values))))
        if rows:
            charts.append(_legend(board, group, rows, colours))
    return folded("Robustness to worse images", tag("div", charts, class_="panels"), plain_table(table))


def _severities(rows: Mapping[int, Cell], name: str, keys: Sequence[tuple[str, int]]) -> Lines:
    """The value of each row as it is, and at each severity of one corruption."""
    steps = [None, *dict.fromkeys(key for key in keys if key[0] == name)]
    lines: Lines = {}
    for i, cell in rows.items():
        found = [(float(key[1]) if key else 0.0, robust_cell(cell, key).value) for key in steps]
        lines[i] = tuple((severity, value) for severity, value in found if value is not None)
    return lines


def _worse(
    board: Board, group: Group, name: str, lines: Lines, colours: Colours, values: tuple[float, float]
) -> Markup:
    """Draw one corruption; all of them on the same scale."""
    title = sentence(words(name))
    ticks = [(0.0, "as it is"), (1.0, "1"), (2.0, "2"), (3.0, "3")]
    series = _series(board, group, lines, colours, None)
    chart = svg.line_chart(
        series, title, x_ticks=ticks, y_range=values, x_name="severity", width=SMALL[0], height=SMALL[1]
    )
    return figure(chart, title)
