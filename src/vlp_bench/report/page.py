"""Put the page together: what was compared, what came out in plain words, then the sections with the evidence."""

from collections.abc import Iterable, Sequence
from importlib.resources import files

from vlp_bench.report.boards import BELOW, NOISE, OVERLAP, UNCLEAR, Board, Cell, Row
from vlp_bench.report.collect import Collection
from vlp_bench.report.leaderboards import board_section, series_colours
from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.sections import pictures_section, pretraining_section, problems_section, provenance_section
from vlp_bench.report.tables import interval_text
from vlp_bench.report.wording import counted, fraction_name, listed, metric_name, number, sentence, short, words


def write_page(found: Collection, boards: Sequence[Board], title: str) -> str:
    """Write the whole page as one HTML document that needs nothing else."""
    assets = files("vlp_bench.report").joinpath("assets")
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("style.css", "page.js"))
    colours = series_colours(boards)
    sections = [
        ("summary", "Summary", _summary(found, boards)),
        ("results", "Results", render(_reading_guide(boards), [board_section(board, colours) for board in boards])),
        ("pretraining", "Pre-training", pretraining_section(found.pretrainings)),
        ("pictures", "Pictures", pictures_section(found.pictures)),
        ("provenance", "Provenance", provenance_section(boards)),
        ("problems", "Could not be read", problems_section(found.unreadable)),
    ]
    sections = [section for section in sections if section[2]]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        _header(found, boards, title),
        tag("nav", [tag("a", name, href=f"#{anchor}") for anchor, name, _ in sections], aria_label="Sections"),
        tag("main", [_section(*section) for section in sections]),
        tag("script", Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(anchor: str, name: str, content: Markup) -> Markup:
    return tag("section", tag("h2", name), content, id=anchor)


def _header(found: Collection, boards: Sequence[Board], title: str) -> Markup:
    """Say what was compared, on what data, when and with which code."""
    runs = found.evaluations
    names = sorted({run.backbone for run in runs})
    dates = sorted({run.fact("started")[:10] for run in runs} - {""})
    code = _distinct(
        f"{run.fact('commit')[:10]}{' with local changes' if run.fact('dirty') == 'True' else ''}"
        for run in runs
        if run.fact("commit")
    )
    facts = [
        ("Compared", ", ".join(names)),
        ("Tasks", sentence(listed(_distinct(f"{words(b.task)} on {b.target}" for b in boards)))),
        ("Data", listed(_data_facts(boards))),
        ("Runs", counted(len(runs), "evaluation") + _and_pretrainings(found)),
        ("When", " to ".join(_distinct([dates[0], dates[-1]])) if dates else ""),
        ("Code", ", ".join(code)),
        ("Device", ", ".join(_distinct(run.fact("device") for run in runs))),
    ]
    entries = [tag("div", tag("dt", name), tag("dd", text)) for name, text in facts if text]
    return tag("header", tag("h1", title), tag("dl", entries, class_="facts"))


def _and_pretrainings(found: Collection) -> str:
    return f", {counted(len(found.pretrainings), 'pre-training')}" if found.pretrainings else ""


def _data_facts(boards: Sequence[Board]) -> list[str]:
    """Name every target with its fingerprint and the largest number of test items."""
    facts: dict[tuple[str, str], int] = {}
    for board in boards:
        for group in board.groups:
            sizes = [cell.n for row in group.rows for cell in row.cells.values() if cell.n is not None]
            key = (board.target, group.fingerprint)
            facts[key] = max([*sizes, facts.get(key, 0)])
    return [
        target
        + (f" ({', '.join(part for part in (_items(n), short(fingerprint)) if part)})" if n or fingerprint else "")
        for (target, fingerprint), n in facts.items()
    ]


def _items(n: int) -> str:
    return f"{n:,} test items" if n else ""


def _summary(found: Collection, boards: Sequence[Board]) -> Markup:
    """Tell the outcome in plain words."""
    notices = _distinct(run.demonstration for run in found.evaluations)
    lines = [line for board in boards for line in _board_lines(board)]
    return render(
        [tag("p", notice, class_="notice") for notice in notices],
        _statistics_notice(boards),
        tag("ul", [tag("li", line) for line in lines], class_="outcome"),
        _trivial_line(boards),
    )


def _board_lines(board: Board) -> Iterable[Markup]:
    """Say who leads a board, at the smallest and at the largest fraction of labels."""
    fractions = list(dict.fromkeys([board.fractions[0], board.fractions[-1]]))
    for group in board.groups:
        told = [text for f in fractions if (text := _leader(board, group.rows, f)) is not None]
        if not told:
            continue
        data = f" (data {short(group.fingerprint)})" if len(board.groups) > 1 else ""
        yield render(tag("a", board.title + data, href=f"#{board.slug}"), tag("br"), told)


def _leader(board: Board, rows: Sequence[Row], fraction: float | None) -> Markup | None:
    """Say which row is best at a fraction, and whether by more than the intervals allow for."""
    here = [(row, row.cells[fraction]) for row in rows if fraction in row.cells]
    here = [(row, cell) for row, cell in here if cell.value is not None]
    when = "Without labels" if not fraction else f"With {fraction_name(fraction)} of the labels"
    best = next(((row, cell) for row, cell in here if cell.best), None)
    if best is None:
        if len(here) != 1:
            return None
        row, cell = here[0]
        return render(f"{when}, ", tag("strong", row.name), f" reaches {_value(cell, board.metric)}. ", _floor(cell))
    row, cell = best
    rivals = [(other.name + (f" ({other.note})" if other.note else ""), c.tie) for other, c in here if c is not cell]
    noise, overlap = ([name for name, tie in rivals if tie == kind] for kind in (NOISE, OVERLAP))
    parts = [f"the difference from {listed(noise)} is inside the noise"] if noise else []
    parts += [f"its interval overlaps that of {listed(overlap)}"] if overlap else []
    if parts:
        outcome = f", but {listed(parts)}. "
    else:
        by = "noise" if cell.rank else "intervals"
        outcome = f", ahead of all others by more than the {by}. "
    return render(
        f"{when}, ", tag("strong", row.name), f" leads with {_value(cell, board.metric)}", outcome, _floor(cell)
    )


def _floor(cell: Cell) -> str:
    """Say so when even the named value fails to beat the trivial answer."""
    return {BELOW: "That does not beat the trivial answer. ", UNCLEAR: "That is not clear of the trivial answer. "}.get(
        cell.verdict, ""
    )


def _value(cell: Cell, metric: str) -> str:
    return f"{metric_name(metric)} = {number(cell.value, metric)} {interval_text(cell, metric)}".strip()


def _statistics_notice(boards: Sequence[Board]) -> Iterable[Markup]:
    """Warn of statistics that see less than the test set and the runs give."""
    for statistics in _distinct(board.statistics for board in boards):
        if statistics in ("t_test", "welch", "bootstrap_t"):
            yield tag("p", f"Statistics as in the papers. {TELLS[statistics]}", class_="notice")


def _trivial_line(boards: Sequence[Board]) -> Markup:
    """Count the values that do not beat an answer that needs no image."""
    cells = [cell for board in boards for _, _, cell in board.cells() if cell.value is not None]
    failing = sum(1 for cell in cells if cell.verdict)
    if not failing:
        text = "Every value is clear of the trivial answer, the one that needs no image."
    else:
        text = (
            f"{failing} of {counted(len(cells), 'value')} cannot be told from the trivial answer, the one that needs "
            "no image, or fall below it; the tables flag them."
        )
    return tag("p", text)


_RUNS_AS_THEY_ARE = (
    "The runs of a row are taken as they are: how much other seeds or subsets would change is told by the spread over "
    "subsets and seeds."
)
#: What the choices of `statistics=` tell, and what they leave open.
TELLS = {
    "honest": "Rows are compared with each other on the same test items: patients are drawn again and again, and each "
    "draw gives every row a value. The interval holds 95 % of the differences, and p tells how rarely none or the "
    "opposite is drawn; it cannot be smaller than their number allows. " + _RUNS_AS_THEY_ARE,
    "delong": "Rows are compared with each other on the same test items by DeLong's test for correlated AUROCs; images "
    "of one patient are taken as related (Obuchowski 1997). " + _RUNS_AS_THEY_ARE,
    "t_test": "Rows are compared by Student's two-sample t-test between the values of their runs, as papers with three "
    "repeats do. It knows nothing of how small the test set is.",
    "welch": "Rows are compared by Welch's two-sample t-test between the values of their runs. It knows nothing of how "
    "small the test set is.",
    "bootstrap_t": "Rows are compared by Student's two-sample t-test between 30 bootstrap rounds of each, as some "
    "papers do. Rounds are no independent runs: such a p-value measures resampling noise only and can be made as small "
    "as one likes by more rounds. Do not conclude from it.",
}


def _reading_guide(boards: Sequence[Board]) -> Markup:
    """Explain intervals, comparisons and flags once for all tables."""
    points = [
        "A value from one run carries its 95 % bootstrap interval over patients. A value from two runs is their mean "
        "with their range, from three or more the mean with a 95 % t-interval over runs; these two describe how much "
        "draws and seeds matter, not how small the test set is.",
        *(TELLS[statistics] for statistics in _distinct(board.statistics for board in boards)),
        "All p-values of a table are corrected for their number (Holm), every pair of rows at every fraction counted: "
        "the best row was not chosen before its value was seen. A difference is inside the noise if p after the "
        "correction is 0.05 or more. A rank is an interval too: all places that the differences beyond the noise leave "
        "open.",
        "The best value of a column is bold. Values that cannot be told from it are marked, and so is the best value "
        "itself. Where rows could not be compared on the same test items, the mark says that intervals overlap, which "
        "is a coarser rule.",
        "The trivial answer needs no image: a constant score, the majority class or a random order. A value at or "
        "below it is flagged, and so is one whose interval reaches it.",
        "Seen before: the encoders were pre-trained on a data set that shares images with the test set, or the split "
        "that was asked for has patients in several parts. The reason stands below the table.",
        "Runs are averaged only when they differ in nothing but draw and seeds. Other pre-training data, steps, "
        "weights, target data or protocol give a row or a table of their own.",
        "Every value leads to its provenance: select it.",
    ]
    return tag(
        "details", tag("summary", "How to read the tables"), tag("ul", [tag("li", p) for p in points]), class_="guide"
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))
