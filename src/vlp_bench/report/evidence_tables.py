"""Tables of what lies behind the values: groups of patients, calibration, worse images."""

from typing import Any

from vlp_bench.report.boards import Board, Cell, Group, average
from vlp_bench.report.collect import Metric
from vlp_bench.report.evidence import Subgroup
from vlp_bench.report.tables import Table, cell_id, cell_text, detail, full_name, interval_text, largest
from vlp_bench.report.wording import fraction_name, listed, metric_name, number, sentence, signed, words

#: Codes of data sets, in words.
GROUP_NAMES = {
    "F": "women",
    "M": "men",
    "PA": "PA, standing",
    "AP": "AP, often lying",
    "FRONTAL": "frontal, PA or AP",
    "LATERAL": "lateral",
}


def heads(board: Board, group: Group, rows: list[int]) -> list[str]:
    """Names of some rows of a group, each with the fraction it is shown at where they differ."""
    at = [largest(group.rows[i].cells) for i in rows]
    several = len(set(at)) > 1
    names = [full_name(board, group, group.rows[i]) for i in rows]
    return [f"{n}, {fraction_name(f)}" if several else n for n, f in zip(names, at, strict=True)]


def subgroups_table(board: Board) -> Table | None:
    """Write the headline metric by view, sex and age, a column a backbone."""
    lines: list[tuple[str, ...]] = []
    records, links, notes, names = [], [], [], []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        rows = sorted({i for part in evidence.subgroups for i in part.values})
        if len(board.groups) > 1 and lines:
            continue  # other test items: their values are in the CSV
        names = heads(board, group, rows)
        places = [cell_id(board, group.rows[i], largest(group.rows[i].cells)) for i in rows]
        for part in evidence.subgroups:
            lines.append(_line(board, part, rows))
            links.append(("", "", *(places if part.values else [""] * len(rows))))
        for count in dict.fromkeys(evidence.labels_of.values()):
            if count:
                by = [attribute for attribute, n in evidence.labels_of.items() if n == count]
                notes.append(f"By {listed(by)}: {_macro(count)}.")
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        for part in evidence.subgroups:
            records += _records(board, group, part)
    if not lines:
        return None
    title = f"{board.title}: {metric_name(board.metric)} by group of patients"
    columns = ("Group", "Patients", "Items", *names)
    return Table(f"{board.slug}-groups", title, columns, tuple(lines), tuple(records), tuple(notes), tuple(links))


def _macro(count: int) -> str:
    labels = "the one label that has" if count == 1 else f"mean over the {count} labels that have"
    return f"{labels} both classes in every group shown"


def group_name(part: Subgroup) -> str:
    """Say which patients are meant."""
    name = GROUP_NAMES.get(part.name, part.name)
    if part.attribute == "age" and part.name:
        name += " years"
    return f"{sentence(part.attribute)}: {name or 'not known'}"


def _line(board: Board, part: Subgroup, rows: list[int]) -> tuple[str, ...]:
    if part.reason:
        few = part.reason.startswith("fewer")  # small groups are nobody's business: not even how small
        counts = ("few", "few") if few else (f"{part.patients:,}" if part.patients else "–", f"{part.items:,}")
        return (group_name(part), *counts, *[f"– ({part.reason})"] * len(rows))
    cells = [average([part.values.get(i)], board.metric, ()) for i in rows]
    return (
        group_name(part),
        f"{part.patients:,}",
        f"{part.items:,}",
        *(_value(cell, board.metric) for cell in cells),
    )


def _value(cell: Cell, metric: str) -> str:
    return f"{number(cell.value, metric)} {interval_text(cell, metric)}".strip()


def _records(board: Board, group: Group, part: Subgroup) -> list[dict[str, Any]]:
    said = {"attribute": part.attribute, "group": part.name, "metric": board.metric}
    if part.reason:
        return [{"target_fingerprint": group.fingerprint, **said, "reason": part.reason}]
    found = []
    for i, metric in part.values.items():
        row = group.rows[i]
        fraction = largest(row.cells)
        cell = average([metric], board.metric, row.cells[fraction].runs)
        found.append(detail(group, row, fraction, cell) | said | {"patients": part.patients, "reason": ""})
    return found


def calibration_table(board: Board) -> Table | None:
    """Write how the probabilities of each backbone fit what was there."""
    lines, records, links = [], [], []
    for group, evidence in zip(board.groups, board.evidence, strict=False):
        for i, found in evidence.calibration.items():
            row = group.rows[i]
            fraction = largest(row.cells)
            score = average([found.brier], "brier", row.cells[fraction].runs)
            numbers = (found.error, found.said, found.there)
            texts = [number(v, "share") for v in numbers]
            lines.append(
                (full_name(board, group, row), fraction_name(fraction), texts[0], _value(score, "brier"), *texts[1:])
            )
            links.append(("", *[cell_id(board, row, fraction)] * 4))
            record = detail(group, row, fraction, score) | {"metric": "brier", "calibration_error": found.error}
            records.append(record | {"mean_probability": found.said, "share_of_positives": found.there})
    if not lines:
        return None
    columns = ("Backbone", "Labels", "Calibration error", "Brier score", "Mean probability", "Positive")
    notes = (
        "The calibration error is the mean distance between probability and share of positives over ten bins of equal "
        "width, of each label, averaged over labels; small test sets make it larger than it is. Lower is better for "
        "both.",
    )
    title = f"{board.title}: calibration"
    return Table(f"{board.slug}-calibration", title, columns, tuple(lines), tuple(records), notes, tuple(links))


def robustness_table(board: Board) -> Table | None:
    """Write what is left on worse images and what is lost, a row for each corruption and severity."""
    columns_of = [
        (group, row, row.cells[largest(row.cells)])
        for group in board.groups
        for row in group.rows
        if any(run.robustness for run in row.cells[largest(row.cells)].runs)
    ]
    if not columns_of:
        return None
    shown = list(dict.fromkeys(key for _, _, cell in columns_of for run in cell.runs for key in _found(run)))
    names = [full_name(board, group, row) for group, row, _ in columns_of]
    metric = next(run.robustness["metric"] for _, _, cell in columns_of for run in cell.runs if run.robustness)
    lines, records = [], []
    clean = [robust_cell(cell, None) for _, _, cell in columns_of]
    lines.append(("Nothing", *(cell_text(cell, metric) for cell in clean)))
    for key in shown:
        texts = []
        for group, row, cell in columns_of:
            value, drop = robust_cell(cell, key), robust_cell(cell, key, "drop")
            texts.append(_loss(value, drop, metric))
            record = detail(group, row, largest(row.cells), value) | {"corruption": key[0], "severity": key[1]}
            records.append(
                record | {"metric": metric, "loss": drop.value, "loss_low": drop.low, "loss_high": drop.high}
            )
        lines.append((f"{sentence(words(key[0]))} {key[1]}", *texts))
    title = f"{board.title}: {metric_name(metric)} on worse images, and what changes by it"
    links = (tuple(cell_id(board, row, largest(row.cells)) for _, row, _ in columns_of),) * len(lines)
    table = (f"{board.slug}-robustness", title, ("Images made worse by", *names), tuple(lines), tuple(records))
    return Table(*table, ("1 is mild, 3 is strong. Nothing is adapted anew.",), links)


def _found(run: Any) -> dict[tuple[str, int], dict[str, Metric]]:
    return run.robustness.get("found", {})


def robust_cell(cell: Cell, key: tuple[str, int] | None, kind: str = "value") -> Cell:
    """The value on worse images (None: as they are), or what is lost by it (`drop`), over the runs of a cell."""
    entries = [
        run.robustness["clean"] if key is None else _found(run).get(key, {}).get(kind)
        for run in cell.runs
        if run.robustness
    ]
    return average(entries, "" if kind == "drop" else "auroc", cell.runs)


def _loss(value: Cell, drop: Cell, metric: str) -> str:
    if value.value is None or drop.value is None:
        return "–"
    ends = ""
    if drop.low is not None and drop.high is not None:
        ends = f" ({signed(-drop.high, metric)}\u00a0to\u00a0{signed(-drop.low, metric)})"
    return f"{number(value.value, metric)}, {signed(-drop.value, metric)}{ends}"
