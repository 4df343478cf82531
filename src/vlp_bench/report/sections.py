"""The sections of the page: boards with their charts, pre-training curves, pictures, provenance, problems."""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

from vlp_bench.report import svg
from vlp_bench.report.boards import BOOTSTRAP, RANGE, STUDENT, Board, Cell, Group, Row
from vlp_bench.report.collect import Curve, Evaluation, Picture, Pretraining, Unreadable
from vlp_bench.report.comparison_tables import comparisons_table, refusals, spread_table
from vlp_bench.report.fairness import fairness
from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.tables import (
    TIES,
    VERDICTS,
    Table,
    interval_text,
    labels_table,
    leaderboard_table,
    measures_table,
)
from vlp_bench.report.wording import (
    counted,
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

WIDE = 600  # pixels from which a picture has a row of the gallery to itself
MAX_PICTURE_BYTES = 16_000_000  # keeps the page light enough to be mailed
CAVEAT_HEADS = {
    "breaks": "This protocol breaks",
    "differs": "Otherwise than published",
    "departures": "Changed in these runs",
}
INTERVALS = {BOOTSTRAP: "", RANGE: "range", STUDENT: "t-interval"}

SPLITS = {"train": ("training", 6), "val": ("validation", 1)}

Colours = dict[tuple[str, str], int]


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
        tag("p", "This table as ", _download(table, "csv"), " or ", _download(table, "md"), ".", class_="files"),
        _board_notes(board),
        _comparisons(board),
        tag("div", [_charts(board, group, colours) for group in board.groups], class_="charts"),
        _plain(spread_table(board), "Spread over subsets and seeds"),
        _plain(measures_table(board), "All measures"),
        _plain(labels_table(board), sentence(f"{metric_name(board.metric)} per label")),
        id=board.slug,
    )


def cell_id(board: Board, row: Row, fraction: float | None) -> str:
    """Name the place of a cell's provenance."""
    rows = [r for group in board.groups for r in group.rows]
    return f"{board.slug}--{rows.index(row) + 1}-{board.fractions.index(fraction) + 1}"


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
    return _scrolling(table, board.title)


def _comparisons(board: Board) -> Markup:
    """Show how the rows compare; where none could be, only the reasons."""
    table = comparisons_table(board)
    shown = _plain(table, "Differences from the best", opened=True)
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
        return tag("td", tag("span", "–", title=reason), class_="number", data_sort="")
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
    figures = [_figure(svg.interval_chart(blocks, title), title, [("trivial answer", svg.swatch(None))])]
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
    return _figure(chart, title, legend)


def _figure(chart: Markup, caption: str, legend: Iterable[tuple[str, Markup]] = ()) -> Markup:
    """Frame a chart with its caption above and its legend below."""
    entries = [tag("li", sample, tag("span", name)) for name, sample in legend]
    return tag(
        "figure", tag("figcaption", sentence(caption)), chart, tag("ul", entries, class_="legend") if entries else None
    )


def _plain(table: Table | None, summary: str, opened: bool = False) -> Markup | None:
    """Write a secondary table, folded away unless `opened`."""
    if table is None or not table.rows:
        return None
    heads = [tag("th", c, scope="col", class_="number" if i else None) for i, c in enumerate(table.columns)]
    rows = []
    for first, *rest in table.rows:
        cells = [tag("td", text.replace("**", ""), class_="number") for text in rest]
        rows.append(tag("tr", tag("th", first, scope="row"), cells))
    content = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="plain")
    return tag(
        "details",
        tag("summary", summary),
        tag("p", table.title, class_="meta"),
        _scrolling(content, table.title),
        [tag("p", note, class_="note") for note in table.notes],
        tag("p", "This table as ", _download(table, "csv"), " or ", _download(table, "md"), ".", class_="files"),
        class_="more",
        open=opened,
    )


def _scrolling(table: Markup, name: str) -> Markup:
    """Let a wide table scroll by itself, also by keyboard."""
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def _download(table: Table, kind: str) -> Markup:
    """Offer a table as a file that travels inside the page."""
    text, media, name = (
        (table.csv(), "text/csv", "CSV") if kind == "csv" else (table.markdown(), "text/markdown", "Markdown")
    )
    data = base64.b64encode(text.encode()).decode()
    return tag("a", name, href=f"data:{media};charset=utf-8;base64,{data}", download=f"{table.slug}.{kind}")


def pretraining_section(pretrainings: Sequence[Pretraining]) -> Markup:
    """Draw the loss curves of every pre-training, a small panel per term."""
    return render([_pretraining(run) for run in pretrainings])


def _pretraining(run: Pretraining) -> Markup:
    info = run.info
    training = info.get("training")
    training = training if isinstance(training, dict) else {}
    name = " ".join(str(info[key]) for key in ("name", "variant") if info.get(key)) or run.folder
    seed, seconds, steps = info.get("pretrain_seed"), training.get("wall_seconds"), training.get("steps")
    facts = [
        f"seed {seed}" if seed is not None else "",
        f"{steps:,} steps" if isinstance(steps, int) else "",
        duration(seconds),
        run.folder,
    ]
    terms = dict.fromkeys(curve.term for curve in run.curves)
    panels = [_panel(term, [c for c in run.curves if c.term == term]) for term in terms]
    legend = [(text, svg.swatch(colour, marked=False)) for text, colour in SPLITS.values()]
    entries = [tag("li", sample, tag("span", label)) for label, sample in legend]
    return tag(
        "article",
        tag("h3", name),
        tag("p", " · ".join(fact for fact in facts if fact), class_="meta"),
        tag("div", panels, class_="panels") if panels else tag("p", "No loss curves were kept.", class_="note"),
        tag("ul", entries, class_="legend") if panels else None,
        tag("details", tag("summary", "What the run recorded"), tag("pre", _json(info))),
    )


def _panel(term: str, curves: Sequence[Curve]) -> Markup:
    """Draw one loss term, training and validation together."""
    series = [
        svg.Series(
            c.split, svg.thinned(list(zip(c.steps, c.values, strict=True))), colour=SPLITS[c.split][1], marked=False
        )
        for c in curves
    ]
    chart = svg.line_chart(series, f"{term} loss over steps", height=160.0, width=240.0, x_name="step")
    return _figure(chart, f"{words(term)} loss")


def pictures_section(pictures: Sequence[Picture]) -> Markup:
    """Show the pictures under their headings; what would make the page too heavy is only counted."""
    groups: dict[str, list[Markup]] = {}
    used, left_out = 0, 0
    for picture in pictures:
        used += len(picture.png)
        if used > MAX_PICTURE_BYTES:
            left_out += 1
            continue
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        image = tag("img", src=source, alt=picture.caption or "picture without caption", loading="lazy")
        wide = int.from_bytes(picture.png[16:20], "big") > WIDE  # where a PNG says its width
        figure = tag("figure", image, tag("figcaption", picture.caption), class_="wide" if wide else None)
        groups.setdefault(picture.group, []).append(figure)
    note = f"{counted(left_out, 'more picture')} lie in the run folders, too large for this page." if left_out else ""
    return render(
        [
            render(tag("h3", group) if group else None, tag("div", figures, class_="gallery"))
            for group, figures in groups.items()
        ],
        tag("p", note, class_="note") if note else None,
    )


def provenance_section(boards: Sequence[Board]) -> Markup:
    """List where every value comes from: one entry per cell, one block per run."""
    parts = []
    for board in boards:
        entries = [_provenance(board, row, fraction, cell) for row, fraction, cell in board.cells()]
        parts.append(tag("article", tag("h3", board.title), entries))
    return render(parts)


def _provenance(board: Board, row: Row, fraction: float | None, cell: Cell) -> Markup:
    anchor = cell_id(board, row, fraction)
    name = f"{row.name} ({row.note})" if row.note else row.name
    value = f"{metric_name(board.metric)} {number(cell.value, board.metric)}"
    title = f"{name}, {fraction_name(fraction)}: {value}, {counted(len(cell.runs), 'run')}"
    back = tag("p", tag("a", "Back to the table", href=f"#{board.slug}"))
    sources = {(run.fact("commit")[:10], short(run.fact("target_fingerprint"))) for run in cell.runs}
    basis = [f"commit {commit or 'unknown'}, target data {data or 'unknown'}" for commit, data in sorted(sources)]
    return tag(
        "details",
        tag("summary", title, " ", tag("small", "; ".join(basis))),
        tag("div", [_run(run, board.metric) for run in cell.runs], back, id=anchor, class_="runs"),
    )


def _run(run: Evaluation, metric: str) -> Markup:
    """Describe one run: enough to repeat it."""
    measured = run.metrics[metric]
    versions = run.provenance.get("versions")
    facts = [
        ("Folder", run.folder),
        ("Value", f"{number(measured.value, metric)} ({number(measured.low, metric)}–{number(measured.high, metric)})"),
        ("Command", tag("code", run.fact("command")) if run.fact("command") else ""),
        ("Commit", run.fact("commit") + (" with local changes" if run.fact("dirty") == "True" else "")),
        ("Seeds", _seeds(run)),
        ("Pre-training data", run.fact("data_fingerprint")),
        ("Target data", run.fact("target_fingerprint")),
        ("Weights", run.fact("bundle_hash")),
        ("Started", run.fact("started")),
        ("Wall time", duration(run.fact("wall_seconds"))),
        ("Device", run.fact("device")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("Configuration", run.fact("config_hash")),
    ]
    config = run.provenance.get("config")
    return render(
        tag("dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts if v], class_="provenance"),
        tag("details", tag("summary", "Resolved configuration"), tag("pre", _json(config))) if config else None,
    )


def _seeds(run: Evaluation) -> str:
    parts = (("training", run.seed), ("label draw", run.draw), ("pre-training", run.pretrain_seed))
    return ", ".join(f"{name} {value}" for name, value in parts if value)


def problems_section(unreadable: Sequence[Unreadable]) -> Markup:
    """List files that could not be read, with the reason."""
    if not unreadable:
        return Markup("")
    items = [tag("li", tag("code", u.file), f": {u.reason}") for u in unreadable]
    return render(tag("p", "The rest of the report does without these files."), tag("ul", items))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
