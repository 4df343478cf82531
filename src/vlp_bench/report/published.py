"""Our cells beside published numbers: the difference with its interval, or why there is none."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from vlp_bench.published import Published, names, protocols
from vlp_bench.report.boards import Board, Cell, Row, average, trivial_cell
from vlp_bench.report.collect import Evaluation
from vlp_bench.report.fairness import fairness
from vlp_bench.report.tables import Table
from vlp_bench.report.wording import counted, fraction_name, listed, metric_name, words

#: How far our number of test images may be from theirs, as a share: files that cannot be read are lost.
NEAR = 0.01
HIGHER, LOWER, OPEN = "higher", "lower", "not told apart"
HOW = (
    "A difference is ours minus theirs. Its interval goes from the low end of ours minus the high end of theirs to the "
    "high end of ours minus the low end of theirs: wider than a 95 % interval where both intervals are known. Ours is "
    "the wider of the bootstrap over patients and the spread over runs."
)


@dataclass(frozen=True)
class Beside:
    """One of our cells and one published number, in the unit of the protocol.

    `trivial` marks a published trivial answer (`theirs` says which); `same` an equal method and network.
    """

    protocol: str
    task: str
    dataset: str
    metric: str
    fraction: float | None
    ours: str
    value: float
    low: float
    high: float
    runs: int
    theirs: str
    published: str
    their_low: float
    their_high: float
    source: str
    difference: float | None
    difference_low: float
    difference_high: float
    same: bool = False
    trivial: bool = False
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Which is higher, if the interval of the difference leaves no doubt."""
        return HIGHER if self.difference_low > 0 else LOWER if self.difference_high < 0 else OPEN


@dataclass(frozen=True)
class Refusal:
    """Cells of ours that may not stand beside the numbers of a protocol, and why."""

    protocol: str
    dataset: str
    metric: str
    ours: str
    target: str
    fraction: float | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What could be compared, what could not, and what must be said of it."""

    against: str
    lines: tuple[Beside, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]

    def table(self) -> Table:
        """One row a pair; CSV has the refusals, too."""
        columns = ("Test", "Labels", "Ours", "Our value", "Published", "Their value", "Difference", "So ours is")
        rows = tuple(_texts(line) for line in self.lines)
        records = [_record(line) for line in self.lines]
        records += [_refused(refusal) for refusal in self.refusals]
        notes = (*self.notes, *(f"Not comparable: {text}" for text in self.refused()))
        return Table("published", f"Beside published numbers: {self.against}", columns, rows, tuple(records), notes)

    def refused(self) -> list[str]:
        """The refusals as sentences, one for all cells with the same reason."""
        found = []
        for (protocol, reason), members in _grouped(self.refusals, lambda r: (r.protocol, r.reason)):
            cells = list(dict.fromkeys(f"{r.ours} on {r.target}" for r in members))
            shown = listed(cells[:3]) if len(cells) <= 3 else f"{', '.join(cells[:3])} and {len(cells) - 3} more"
            found.append(f"{shown} with {protocol}: {reason}")
        return found


def compared_with(boards: Sequence[Board], rows: Sequence[Published], against: str) -> Comparison:
    """Set every cell of ours beside the published rows of the same test.

    Args:
        boards: ours, see `report.boards`.
        rows: the published numbers that are wanted, see `published.chosen`.
        against: what they are called.
    """
    lines: list[Beside] = []
    refusals: list[Refusal] = []
    for protocol, of_protocol in _grouped(rows, lambda r: r.protocol):
        for (task, dataset, metric), column in _grouped(of_protocol, lambda r: (r.task, r.dataset, r.metric)):
            target = protocols()[protocol]["tests"][dataset]["target"]
            for board in boards:
                if (board.task, _name(board)) == (task, target):
                    for group in board.groups:
                        for row in group.rows:
                            _set_beside(board, row, column, (protocol, dataset, metric), lines, refusals)
    there = {(r.task, protocols()[r.protocol]["tests"][r.dataset]["target"]) for r in rows}
    for board in boards:
        if (board.task, _name(board)) not in there:
            nothing = f"nothing is published there for task={board.task} target={_name(board)}"
            if _name(board) == "synthetic":
                nothing = "your test set is synthetic, and published numbers are of real images"
            refusals += [Refusal(against, "", "", row.name, board.target, f, nothing) for row, f, _ in board.cells()]
    beside = {(line.task, line.protocol) for line in lines}
    fair = [note for board in boards if (board.task, board.protocol) in beside for note in fairness(board)]
    notes = (*_notes(lines), *dict.fromkeys(fair))
    return Comparison(against, tuple(sorted(lines, key=_order)), tuple(dict.fromkeys(refusals)), notes)


def _set_beside(
    board: Board,
    row: Row,
    column: Sequence[Published],
    test: tuple[str, str, str],
    lines: list[Beside],
    refusals: list[Refusal],
) -> None:
    """The cells of one of our rows beside one published column of several fractions."""
    protocol, dataset, metric = test
    about = protocols()[protocol]
    for fraction, cell in row.cells.items():
        runs = [run for run in cell.runs if not run.not_applicable]
        wanted = 0 if fraction is None else 100 * fraction
        at = [r for r in column if abs(r.label_pct - wanted) < 1e-6]
        reason = next(_reasons(board, runs, about, test), "")
        if not reason and not at:
            shares = ", ".join(f"{pct:g} %" for pct in sorted({r.label_pct for r in column}))
            reason = f"nothing is published for {fraction_name(fraction)} of the labels of {dataset}, only for {shares}"
        if reason:
            refusals.append(Refusal(protocol, dataset, metric, row.name, board.target, fraction, reason))
            continue
        ours = about["metrics"][metric]["ours"]
        value = _wide(average([run.metrics.get(ours) for run in runs], ours, tuple(runs)), ours, about["unit"])
        floor = trivial_cell(runs, ours)
        extra = () if floor.value is None else (f"our trivial answer {_digits(about['unit'] * floor.value, about)}",)
        label = f"{row.name} ({row.note})" if row.note else row.name
        line = Beside(
            protocol, board.task, dataset, metric, fraction, label, *value, len(runs), "", "", 0, 0, "", None, 0, 0
        )
        lines += [_beside(line, r, runs[0], extra) for r in at]
        lines += list(_trivial(line, about))


def _beside(line: Beside, row: Published, run: Evaluation, extra: tuple[str, ...]) -> Beside:
    networks = names()["backbones"].get(row.backbone, ())
    own = run.backbone.rpartition(" ")[2].split(".")[0]
    method = row.method in names()["methods"].get(run.method, ())
    notes = [*extra] if method else []
    if own not in networks:
        notes.append(f"another network (theirs {row.backbone or 'not said'}, ours {own})")
    if not protocols()[row.protocol]["tests"][row.dataset].get("images"):
        notes.append("how many images they tested was not established")
    if run.exposure:
        notes.append(f"ours may have seen test images: {'; '.join(run.exposure)}")
    return replace(
        line,
        theirs=row.name,
        published=_published(row),
        their_low=row.low,
        their_high=row.high,
        source=row.source,
        difference=None if row.value is None else line.value - row.value,
        difference_low=line.low - row.high,
        difference_high=line.high - row.low,
        same=method and own in networks,
        notes=tuple(notes),
    )


def _trivial(line: Beside, about: dict[str, Any]) -> Iterator[Beside]:
    for entry in about["trivial"]:
        if entry["metric"] == line.metric and entry.get("dataset", line.dataset) == line.dataset:
            value = float(entry["value"])
            yield replace(
                line,
                theirs=entry["answer"],
                published=str(entry["value"]),
                their_low=value,
                their_high=value,
                source="computed from the counts of the test set",
                difference=line.value - value,
                difference_low=line.low - value,
                difference_high=line.high - value,
                trivial=True,
            )


def _reasons(
    board: Board, runs: Sequence[Evaluation], about: dict[str, Any], test: tuple[str, str, str]
) -> Iterator[str]:
    """Why these runs may not stand beside that test; the first reason is the one that is told."""
    protocol, dataset, metric = test
    facts, measure = about["tests"][dataset], about["metrics"][metric]
    if not runs:
        yield "there is no value of ours"
        return
    if any(_synthetic(run) for run in runs):
        yield f"your test set is synthetic, theirs is {dataset}"
    if unlike := facts.get("unlike"):
        yield unlike
    if unlike := measure.get("unlike"):
        yield unlike
    if board.protocol != protocol:
        yield (
            f"theirs is protocol={protocol} ({about['what']}), yours is protocol={board.protocol or 'unknown'} "
            f"({words(board.adaptation) or 'no adaptation said'})"
        )
    yield from _tests(board, runs, facts, dataset)
    if changed := list(dict.fromkeys(c for run in runs for c in (*run.caveats.get("departures", ()), *_cut(run)))):
        yield f"your run departs from protocol={protocol}: {'; '.join(changed)}"
    if not any((m := run.metrics.get(measure["ours"])) and m.value is not None for run in runs):
        yield f"theirs is {measure.get('what', metric)}, and yours has no {metric_name(measure['ours'])}"


def _tests(board: Board, runs: Sequence[Evaluation], facts: dict[str, Any], dataset: str) -> Iterator[str]:
    """Whether both test sets are the same images, as far as is known."""
    split = board.target.partition(" ")[2]
    sizes = sorted({max((m.n or 0 for m in run.metrics.values()), default=0) for run in runs})
    size, theirs = sizes[-1], facts.get("images")
    least = facts.get("at_least", 1)
    said = f"{theirs:,} images" if theirs else f"{least:,} images or more"
    wanted = facts["split"] if facts.get("split") else "its own"
    what = f"their {dataset} test is {said} of {facts.get('what', 'the split')} (target.split={wanted})"
    yours = f"yours is {size:,} of {f'target.split={split}' if split else 'its own split'}"
    other_size = any(abs(n - theirs) > NEAR * theirs if theirs else n < least for n in sizes)
    if (facts.get("split") or "") != split or other_size:
        yield f"{what}, {yours}"
    if board.split != "test":
        yield f"{what}, yours is its part {board.split}"
    labels = {len(run.labels) for run in runs}
    if facts.get("labels") and labels != {facts["labels"]}:
        yours = listed([str(n) for n in sorted(labels)])
        yield f"theirs is over {counted(facts['labels'], 'label')}, yours over {yours}"
    where = next((w for run in runs if (w := run.fact("config", "target", "where"))), "")
    if where:
        yield f"{what}, yours only those with {where}"


def _cut(run: Evaluation) -> Iterator[str]:
    """Limits that make a run a try."""
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        if run.fact("config", "trainer", key) not in ("", "1.0"):
            yield f"trainer.{key}={run.fact('config', 'trainer', key)}"


def _synthetic(run: Evaluation) -> bool:
    return bool(run.fact("config", "target", "layout")) or run.target.split(" ")[0] == "synthetic"


def _wide(cell: Cell, metric: str, unit: float) -> tuple[float, float, float]:
    """Value and interval of a cell: the wider, at each end, of that over runs and the mean one of the runs' own."""
    value = cell.value or 0.0
    own = [m for run in cell.runs if (m := run.metrics.get(metric)) and m.value is not None]
    lows = [m.low if m.low is not None else m.value for m in own]
    highs = [m.high if m.high is not None else m.value for m in own]
    ends = [sum(x for x in side if x is not None) / len(own) for side in (lows, highs)]
    low = min(x for x in (value, cell.low, ends[0]) if x is not None)
    high = max(x for x in (value, cell.high, ends[1]) if x is not None)
    return unit * value, unit * low, unit * high


def _published(row: Published) -> str:
    if ".." in row.spread:
        return f"{row.text} ({row.spread.replace('..', '–')})"
    return f"{row.text} ± {row.spread}" if row.spread else row.text


def _notes(lines: Sequence[Beside]) -> Iterator[str]:
    """What must be said of the numbers, once: how the intervals are made, and what each protocol did."""
    if not lines:
        return
    for line in lines:
        if line.same:
            yield _sentence(line)
    yield HOW
    for protocol in dict.fromkeys(line.protocol for line in lines):
        about = protocols()[protocol]
        spread = about["spread_of"] or "none is published, so that the interval of theirs is that of its rounding alone"
        runs = f"; {counted(about['runs'], 'run')}" if about["runs"] else "; how many runs is not said"
        sources = dict.fromkeys(x.source for x in lines if x.protocol == protocol and not x.trivial)
        yield (
            f"{protocol}: {about['what']}; chosen by {about['select']}; {about['subset']}{runs}; their spread: "
            f"{spread}. Source: {'; '.join(sources)}."
        )
    if any(not line.same and not line.trivial for line in lines):
        yield (
            "Beside another method or network a difference is one of two systems, each with its own pre-training data "
            "and budget."
        )


def _sentence(line: Beside) -> str:
    about = protocols()[line.protocol]
    labels = f" with {fraction_name(line.fraction)} of the labels" if line.fraction else ""
    by = "" if line.verdict == OPEN or line.difference is None else f" by {_digits(abs(line.difference), about)}"
    return (
        f"{line.ours} on {line.dataset}{labels}: {_digits(line.value, about)} "
        f"({_digits(line.low, about)}–{_digits(line.high, about)}) beside {line.theirs}'s {line.published}: "
        f"{line.verdict}{by}."
    )


def _texts(line: Beside) -> tuple[str, ...]:
    about = protocols()[line.protocol]
    difference = "–" if line.difference is None else _signed(line.difference, about)
    notes = ["the same method", *line.notes] if line.same else list(line.notes)
    return (
        f"{line.dataset} {line.metric}",
        fraction_name(line.fraction),
        line.ours,
        f"{_digits(line.value, about)} ({_digits(line.low, about)}–{_digits(line.high, about)})",
        f"trivial: {line.theirs}" if line.trivial else line.theirs,
        line.published,
        f"{difference} ({_signed(line.difference_low, about)} to {_signed(line.difference_high, about)})",
        "; ".join([line.verdict, *notes]),
    )


def _record(line: Beside) -> dict[str, Any]:
    kept = {k: getattr(line, k) for k in Beside.__dataclass_fields__ if k != "notes"}
    return kept | {"verdict": line.verdict, "notes": "; ".join(line.notes), "not_comparable": ""}


def _refused(refusal: Refusal) -> dict[str, Any]:
    kept = {k: getattr(refusal, k) for k in ("protocol", "dataset", "metric", "ours", "fraction")}
    return kept | {"not_comparable": refusal.reason}


def _digits(value: float, about: dict[str, Any]) -> str:
    return f"{value:.{1 if about['unit'] == 100 else 3}f}".replace("-", "\u2212")


def _signed(value: float, about: dict[str, Any]) -> str:
    text = _digits(value, about)
    return text if text.startswith("\u2212") else f"+{text}"


def _order(line: Beside) -> tuple[Any, ...]:
    kind = (line.trivial, not line.same, -(line.their_low + line.their_high))
    return (line.protocol, line.dataset, line.metric, line.fraction or 0, line.ours, *kind)


def _name(board: Board) -> str:
    return board.target.partition(" ")[0]


def _grouped(members: Iterable[Any], key: Any) -> list[tuple[Any, list[Any]]]:
    return [(k, list(found)) for k, found in groupby(sorted(members, key=key), key)]
