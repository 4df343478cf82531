"""What must be said beside a table of methods: with what each was trained, how each was searched, what is missing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlp_bench.published import names
from vlp_bench.report.boards import Board
from vlp_bench.report.collect import Evaluation
from vlp_bench.report.wording import listed, short

#: What methods of one table should have in common in pre-training: in words, and where a result says it.
BUDGET: dict[str, Callable[[Evaluation], str]] = {
    "data": lambda e: short(e.fact("data_fingerprint")),
    "numbers of updates": lambda e: e.fact("pretrain", "steps"),
    "batch sizes": lambda e: e.fact("pretrain", "batch_size"),
    "rules for the exported epoch": lambda e: e.fact("pretrain", "select"),
}
#: What is searched on validation downstream, where a list of it is given.
SEARCHED = ("lr", "batch_size", "optimizer", "weight_decay")


def fairness(board: Board) -> list[str]:
    """Sentences for people who read the board as a comparison of methods.

    Where methods were trained with different data, numbers of updates, batch sizes or rules for the epoch; that all had
    the same search downstream, or which had not; which baselines have no row. Pure: asks the runs of the board alone.
    """
    runs = [run for _, _, cell in board.cells() for run in cell.runs]
    return [*_budget(runs), *_search(board, runs), *_missing(runs)]


def _budget(runs: Sequence[Evaluation]) -> Iterator[str]:
    trained = [run for run in runs if run.fact("pretrain", "steps")]
    if len({run.backbone for run in trained}) < 2:
        return
    for what, fact in BUDGET.items():
        by_value: dict[str, list[str]] = {}
        for run in trained:
            by_value.setdefault(fact(run) or "unknown", []).append(run.backbone)
        if len(by_value) > 1:
            parts = [f"{listed(sorted(set(backbones)))}: {value}" for value, backbones in sorted(by_value.items())]
            yield f"Not pre-trained alike, different {what}: {'; '.join(parts)}."


def _search(board: Board, runs: Sequence[Evaluation]) -> Iterator[str]:
    """One recipe for all, and its search; otherwise who had which."""
    learned = [run for run in runs if run.label_fraction is not None]
    if not learned:
        return
    recipes: dict[str, list[Evaluation]] = {}
    for run in learned:
        recipes.setdefault(run.fact("recipe"), []).append(run)
    if len(recipes) > 1:
        parts = [
            f"{listed(sorted({run.backbone for run in members}))}: {_grid(members[0])}" for members in recipes.values()
        ]
        yield f"Not searched alike downstream: {'; '.join(parts)}."
    else:
        grids = list(dict.fromkeys(_grid(run) for run in learned))  # a protocol may publish one for each label fraction
        yield f"Every row had the same search downstream: {'; or, by label fraction, '.join(grids)}."
    departures = board.caveats.get("departures", ())
    if departures and len(recipes) > 1:
        yield f"Some rows depart from the protocol: {'; '.join(departures)}."


def _grid(run: Evaluation) -> str:
    config: Any = run.provenance.get("config") or {}
    adaptation = config.get("adaptation") if isinstance(config.get("adaptation"), dict) else {}
    several = [f"{key} of {adaptation[key]}" for key in SEARCHED if isinstance(adaptation.get(key), list)]
    fixed = [f"{k}={adaptation[k]}" for k in SEARCHED if k in adaptation and not isinstance(adaptation[k], list)]
    grid = f"{listed(several)}, chosen on validation" if several else "one setting"
    said = f" ({', '.join(fixed)})" if fixed else ""
    chosen = f"; epoch by validation {adaptation['select']}" if adaptation.get("select") else ""
    return f"{grid}{said}{chosen}"


def _missing(runs: Sequence[Evaluation]) -> Iterator[str]:
    there = {run.method for run in runs if not run.not_applicable}
    if not any(run.fact("pretrain", "steps") for run in runs):
        return
    for method, about in names()["baselines"].items():
        if method not in there:
            failed = next((run.not_applicable for run in runs if run.method == method), "")
            yield f"No row of the {about['name']}: {failed or about['how']}."
