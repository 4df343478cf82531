"""From run folders to a saved workspace and a report at Weights and Biases. Numbers go there, and never a picture.

The workspace compares all runs of a project, the report those of the boards at hand; both show what the vocabulary
declares. Runs are found there by what `logger=wandb` tells of each: `encoders` (a row of a board) and `cell`.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vlp_bench.errors import UserError
from vlp_bench.files import read_json, write_json
from vlp_bench.report.boards import Board, boards
from vlp_bench.report.collect import Collection, collect
from vlp_bench.report.compare import compared
from vlp_bench.report.tables import leaderboard_table, overall_metrics
from vlp_bench.report.wording import metric_name, sentence
from vlp_bench.vocabulary import CURVES, FRACTION, PANELS, PRETRAINING, STEP, Measure, cell, logged, row

ROWS, HIGH = 24, 6  # a grid of panels is so wide, and a panel so high
LONGEST_TITLE = 128


def publish(
    runs: Path | str | Sequence[Path | str],
    out: Path,
    *,
    project: str,
    entity: str | None = None,
    title: str,
    statistics: str = "honest",
    resamples: int = 1000,
) -> dict[str, str]:
    """Make a workspace and a report, or bring those of an earlier call up to date.

    Args:
        runs: as of `build_report`.
        out: folder whose `dashboards.json` remembers where they are.
        project: of wandb.
        entity: whose; None takes the default of the login.
        title: of both.
        statistics: as of `build_report`.
        resamples: as of `build_report`.

    Returns:
        the addresses of `workspace` and `report`.

    Raises:
        UserError: as `build_report`; or wandb cannot be reached, or does not know the login.
    """
    ws, wr, _ = _library()
    found = collect(runs)
    from requests.exceptions import RequestException
    from wandb.errors import Error

    try:
        place = {"entity": _owner(entity), "project": project}
        all_boards = [compared(board, statistics, resamples) for board in boards(found.evaluations)]
        made: dict[str, Any] = {
            "workspace": workspace(found, all_boards, title, **place),
            "report": report(found, all_boards, title, **place),
        }
        path = Path(out) / "dashboards.json"
        before = read_json(path, "the addresses at wandb") if path.exists() else {}
        before = before if {k: before.get(k) for k in place} == place else {}
        # the report first: it makes the project where there is none
        for name, kind in (("report", wr.Report), ("workspace", ws.Workspace)):
            there = _there(kind, before.get(name))
            if there is not None:
                for part in ("sections", "runset_settings", "name") if name == "workspace" else ("blocks", "title"):
                    setattr(there, part, getattr(made[name], part))
                made[name] = there
            made[name].save()
            # at once: what is made must not be made again, whatever comes next
            before = before | place | {name: made[name].url}
            write_json(path, before)
    except (Error, RequestException) as error:
        raise UserError(
            "report to=wandb needs a login (`wandb login`) and the network, to=page neither. wandb says: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return {name: before[name] for name in ("workspace", "report")}


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    """Its workspaces, reports and expressions.

    Raises:
        UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own use of pydantic
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
            from wandb_workspaces import expr
    except ImportError as error:
        raise UserError("report to=wandb needs wandb-workspaces: pip install 'vlp-bench[wandb]'.") from error
    return ws, wr, expr


def _owner(entity: str | None) -> str:
    import wandb

    api = wandb.Api(timeout=30)  # fails without a login
    return entity or str(api.default_entity)


def _there(kind: Any, url: str | None) -> Any:
    """What an earlier call has made, or None where there is none any more."""
    if url is None:
        return None
    try:
        return kind.from_url(url)
    except (ValueError, TypeError, KeyError):
        return None


def workspace(found: Collection, all_boards: Sequence[Board], title: str, *, entity: str, project: str) -> Any:
    """Build the workspace (`wandb_workspaces.workspaces.Workspace`); nothing is sent.

    One section a heading of the vocabulary, then one a board; runs are grouped by encoders.
    """
    ws, wr, expr = _library()
    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in _curves(wr, found)]
    for board in all_boards:
        panels = [*_measures(wr, board), wr.MarkdownPanel(markdown=leaderboard_table(board).markdown())]
        sections.append(ws.Section(name=board.title, panels=panels, is_open=True))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=sections,
        runset_settings=ws.RunsetSettings(groupby=[expr.Config("encoders")]),
        auto_generate_panels=True,  # below ours, with the load of the machines
    )


def report(found: Collection, all_boards: Sequence[Board], title: str, *, entity: str, project: str) -> Any:
    """Build the report (`wandb_workspaces.reports.v2.Report`); nothing is sent.

    A board is its table and its panels, with a set of runs for each row.
    """
    _, wr, _ = _library()
    blocks: list[Any] = []
    for board in all_boards:
        names = sorted({row(run.backbone, run.variant) for _, _, one in board.cells() for run in one.runs})
        runsets = _runsets(names, cell(board.task, board.target, board.adaptation, board.protocol))
        text = leaderboard_table(board).markdown().partition("\n")[2].strip()
        grid = wr.PanelGrid(runsets=runsets, panels=_laid_out(wr, _measures(wr, board)))
        blocks += [wr.H1(text=board.title), wr.MarkdownBlock(text=text), grid]
    names = sorted({row(p.info.get("name"), p.info.get("variant")) for p in found.pretrainings})
    if names:
        blocks.append(wr.H1(text="Pre-training"))
        for heading, panels in _curves(wr, found):
            grid = wr.PanelGrid(runsets=_runsets(names, PRETRAINING), panels=_laid_out(wr, panels))
            blocks += [wr.H2(text=heading), grid]
    # a title is part of an address
    return wr.Report(entity=entity, project=project, title=title.replace("/", " ")[:LONGEST_TITLE], blocks=blocks)


def _runsets(names: Sequence[str], of: str) -> list[Any]:
    """One set of runs for each row: those of one cell. They are looked for in the report's own project."""
    _, wr, expr = _library()
    chosen = [expr.And(expr.Config("encoders") == name, expr.Config("cell") == of) for name in names]
    # grouped, so that runs with more and more labels make one line
    by = ["config.encoders"]
    return [wr.Runset(name=name, filters=which, groupby=by) for name, which in zip(names, chosen, strict=True)]


def _curves(wr: ModuleType, found: Collection) -> Iterator[tuple[str, list[Any]]]:
    """The panels of each heading: training and validation of one name together, and each term by itself."""
    terms = sorted({c.term for p in found.pretrainings for c in p.curves if c.term != "total"})
    for heading in PANELS:
        together: dict[str, list[tuple[str, Measure]]] = {}
        for pattern, measure in CURVES.items():
            if measure.panel == heading:
                for name in [pattern.replace("*", term) for term in terms] if "*" in pattern else [pattern]:
                    together.setdefault(name.removeprefix("train/").removeprefix("val/"), []).append((name, measure))
        yield (
            heading,
            [
                wr.LinePlot(
                    title=sentence(part.replace("/", ": ")),
                    x=STEP,
                    y=[name for name, _ in curves],
                    title_y=curves[0][1].unit or None,
                    groupby_aggfunc="mean",
                    groupby_rangefunc="minmax",
                )
                for part, curves in together.items()
            ],
        )


def _measures(wr: ModuleType, board: Board) -> Iterator[Any]:
    """One panel a measure, the headline first: value and ends of its interval, over the label fractions if several."""
    of = cell(board.task, board.target, board.adaptation, board.protocol)
    for name in overall_metrics(board):
        shown = [logged(of, kind, name) for kind in ("test", "low", "high")]
        title = sentence(metric_name(name))
        grouped = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        if len([f for f in board.fractions if f is not None]) > 1:
            yield wr.LinePlot(title=title, x=FRACTION, y=shown, log_x=True, title_x="share of the labels", **grouped)
        else:
            yield wr.BarPlot(title=title, metrics=shown, **grouped)


def _laid_out(wr: ModuleType, panels: Any) -> list[Any]:
    """The same panels, three in a row of a report's grid."""
    made = list(panels)
    for i, panel in enumerate(made):
        panel.layout = wr.Layout(x=i % 3 * ROWS // 3, y=i // 3 * HIGH, w=ROWS // 3, h=HIGH)
    return made
