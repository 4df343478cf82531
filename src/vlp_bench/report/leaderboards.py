"""Leaderboards on the page: the table, its notes, its charts, and what is folded away below them."""

from collections.abc import Sequence
from typing import Any

from vlp_bench.report import svg
from vlp_bench.report.boards import BOOTSTRAP, RANGE, STUDENT, Board, Cell, Group, Row
from vlp_bench.report.comparison_tables import comparisons_table, refusals, spread_table
from vlp_bench.report.elements import Colours, downloads, figure, folded_table, scrolling
from vlp_bench.report.fairness import fairness
from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.panels import panels
from vlp_bench.report.tables import (
    TIES,
    VERDICTS,
    cell_id,
    interval_text,
    labels_table,
    leaderboard_table,
    measures_table,
)
from vlp_bench.report.wording import (
    duration,
    fraction_name,
    metric_name,
    number,
    ranks,
    rises,
    sentence,
    short,
    words,
)

CAVEAT_HEADS = {
    "breaks": "This protocol breaks",
    "differs": "Otherwise than published",
    "departures": "Changed in these runs",
}
INTERVALS = {BOOTSTRAP: "", RANGE: "range", STUDENT: "t-interval"}


def series_colours(boards: Sequence[Board]) -> Colours:
    """Give every row one colour on the whole page."""
    keys = sorted({(row.name, row.note) for board in boards for group in board.groups for row in group.rows})
    return {key: i for i, key in enumerate(keys)}


def board_section(board: Board, colours: Colours) -> Markup:
    """Write one leaderboard: table, charts, further measures, downloads."""
    facts = [
        metric_name(board.metric) + ("" if rises(board.metric) else " (lower is better)"),
        f"split {words(board.split)}" if board.split else "",
        f"protocol {words(board.protocol)}" if board.protocol else "",
    ]
    table = leaderboard_table(board)
    return tag(
        "article",
        tag("h3", board.title),
        tag("p", sentence(" · ".join(fact for fact in facts if fact)), class_="meta"),
        [
            tag("p", f"{CAVEAT_HEADS[kind]}: {'; '.join(told)}.", class_="breaks")
            for kind, told in board.caveats.items()
            if told
        ],
        _leaderboard(board, colours),
        downloads(table),
        _board_notes(board),
        _comparisons(board),
        tag("div", [_charts(board, group, colours) for group in board.groups], class_="charts"),
        panels(board, colours),
        folded_table(spread_table(board), "Spread over subsets and seeds"),
        folded_table(measures_table(board), "All measures"),
        folded_table(labels_table(board), sentence(f"{metric_name(board.metric)} per label")),
        id=board.slug,
        data_task=sentence(words(board.task)),
        data_target=board.target,
        data_protocol=words(board.protocol),
    )


def _leaderboard(board: Board, colours: Colours) -> Markup:
    """Write the table of a board, one table body per group."""
    heads = [tag("th", "Backbone", scope="col"), *(_column_head(fraction) for fraction in board.fractions)]
    bodies = []
    for group in board.groups:
        rows = []
        if len(board.groups) > 1:
            text = f"Target data {short(group.fingerprint) or 'unknown'}: not comparable with the other rows"
            rows.append(tag("tr", tag("th", tag("span", text), colspan=len(heads), scope="rowgroup"), class_="group"))
        rows += [_row(board, row, colours) for row in group.rows]
        if group.trivial:
            rows.append(_row(board, group.trivial, colours))
        bodies.append(tag("tbody", rows))
    table = tag("table", tag("thead", tag("tr", heads)), bodies, class_="board")
    return scrolling(table, board.title)


def _comparisons(board: Board) -> Markup:
    """Show how the rows compare; where none could be, only the reasons."""
    table = comparisons_table(board)
    shown = folded_table(table, "Differences from the best", opened=True)
    reasons = refusals(board) if table and not shown else ()
    return render(shown, [tag("p", reason, class_="note") for reason in reasons])


def _column_head(fraction: float | None) -> Markup:
    name = fraction_name(fraction) if not fraction else f"{fraction_name(fraction)} of labels"
    return tag("th", name, scope="col", class_="number")


def _row(board: Board, row: Row, colours: Colours) -> Markup:
    """Write the row of a backbone or of the trivial answer."""
    swatch = svg.swatch(None if row.trivial else colours[row.name, row.note])
    notes = [row.note, _training_cost(row)]
    name = [swatch, tag("span", row.name, class_="name"), [tag("small", note) for note in notes if note]]
    cells = [_cell(board, row, fraction) for fraction in board.fractions]
    return tag("tr", tag("th", name, scope="row"), cells, class_="trivial" if row.trivial else None)


def _training_cost(row: Row) -> str:
    """Say what the pre-training of a row cost, where its runs agree on it."""
    runs = [run for cell in row.cells.values() for run in cell.runs]
    steps = {run.fact("pretrain", "steps") for run in runs} - {"", "0"}
    times = sorted({float(t) for run in runs if duration(t := run.fact("pretrain", "wall_seconds"))} - {0.0})
    if len(steps) != 1:
        return ""
    count = steps.pop()
    told = f"pre-trained for {int(count):,} steps" if count.isdigit() else f"pre-trained for {count} steps"
    return f"{told}, {duration(times[len(times) // 2])}" if times else told


def _cell(board: Board, row: Row, fraction: float | None) -> Markup:
    """Write one value with its interval, basis and marks; the value leads to its provenance."""
    cell = row.cells.get(fraction)
    if cell is None or cell.value is None:
        reason = "not run" if cell is None else "undefined"
        return tag("td", tag("span", "–"), tag("small", reason), class_="number", data_sort="")
    text: Any = number(cell.value, board.metric)
    if cell.best:
        text = tag("strong", text)
    if not row.trivial:
        text = tag("a", text, href=f"#{cell_id(board, row, fraction)}", title="Provenance")
    basis = [f"n {cell.n:,}" if cell.n is not None else ""]
    if len(cell.runs) > 1:
        basis.append(" ".join(part for part in (f"{len(cell.runs)} runs,", INTERVALS[cell.interval]) if part))
    marks = [f"rank {ranks(cell.rank)}" if cell.rank else "", TIES.get(cell.tie, "")]
    standing = " · ".join(mark for mark in marks if mark)
    verdict = tag("span", f"▾ {VERDICTS[cell.verdict]}", class_=f"mark {cell.verdict}") if cell.verdict else None
    return tag(
        "td",
        tag("span", text, class_="value"),
        tag("span", interval_text(cell, board.metric), class_="interval"),
        tag("small", " · ".join(part for part in basis if part)),
        tag("span", standing, class_="mark tie" if cell.tie else "mark") if standing else None,
        verdict,
        tag("span", "⚠ seen before", title="; ".join(cell.exposure), class_="mark below") if cell.exposure else None,
        class_="number",
        data_sort=repr(cell.value),
    )


def _board_notes(board: Board) -> Markup:
    """Say what was kept apart or left out."""
    notes = []
    if len(board.groups) > 1:
        notes.append(
            "The target data of these rows differ (see their fingerprints), so they were neither averaged nor ranked "
            "against each other."
        )
    if any(row.note for group in board.groups for row in group.rows):
        notes.append("Rows of the same name differ in what stands below the name and were not averaged.")
    if board.repeats:
        notes.append(f"Repeats of the same draw and seed count once, the newest: left out {'; '.join(board.repeats)}.")
    seen = dict.fromkeys(reason for _, _, cell in board.cells() for reason in cell.exposure)
    notes += [f"Seen before: {reason}." for reason in seen]
    notes += fairness(board)
    return render([tag("p", note, class_="note") for note in notes])


def _charts(board: Board, group: Group, colours: Colours) -> Markup:
    """Draw the intervals of a group and, for several fractions, its label efficiency."""
    suffix = f", data {short(group.fingerprint) or 'unknown'}" if len(board.groups) > 1 else ""
    blocks = []
    for fraction in board.fractions:
        bars = [_bar(row, row.cells[fraction], board.metric, colours) for row in group.rows if _known(row, fraction)]
        floor = group.trivial.cells.get(fraction) if group.trivial else None
        if bars:
            head = fraction_name(fraction) if not fraction else f"{fraction_name(fraction)} of labels"
            blocks.append(svg.Block(head, tuple(bars), floor.value if floor else None))
    if not blocks:
        return Markup("")
    title = f"{metric_name(board.metric)} with intervals{suffix}"
    figures = [figure(svg.interval_chart(blocks, title), title, [("trivial answer", svg.swatch(None))])]
    return render(figures, _efficiency(board, group, colours, suffix))


def _known(row: Row, fraction: float | None) -> bool:
    return fraction in row.cells and row.cells[fraction].value is not None


def _bar(row: Row, cell: Cell, metric: str, colours: Colours) -> svg.Bar:
    assert cell.value is not None
    name = f"{row.name} ({row.note})" if row.note else row.name
    return svg.Bar(name, number(cell.value, metric), cell.value, cell.low, cell.high, colours[row.name, row.note])


def _efficiency(board: Board, group: Group, colours: Colours, suffix: str) -> Markup:
    """Draw the metric against the fraction of labels."""
    fractions = [f for f in board.fractions if f]
    measured = {f for row in group.rows for f in fractions if _known(row, f)}
    if len(measured) < 2:
        return Markup("")
    series, legend = [], []
    for row in group.rows:
        at = [(f, row.cells[f]) for f in fractions if _known(row, f)]
        if not at:
            continue
        points = tuple((f, cell.value) for f, cell in at if cell.value is not None)
        band = tuple((cell.low, cell.high) for _, cell in at if cell.low is not None and cell.high is not None)
        colour = colours[row.name, row.note]
        series.append(svg.Series(row.name, points, band, colour))
        legend.append((f"{row.name} ({row.note})" if row.note else row.name, svg.swatch(colour)))
    floor = group.trivial.cells if group.trivial else {}
    reference = [(f, value) for f in fractions if f in floor and (value := floor[f].value) is not None]
    if reference:
        legend.append(("trivial answer", svg.swatch(None)))
    title = f"{metric_name(board.metric)} against the fraction of labels{suffix}"
    ticks = [(f, fraction_name(f)) for f in fractions]
    chart = svg.line_chart(
        series, title, x_ticks=ticks, logarithmic=True, reference=reference, x_name="labels used for training"
    )
    return figure(chart, title, legend)
