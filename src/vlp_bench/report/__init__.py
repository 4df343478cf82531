"""From run folders to one page that people pass around."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlp_bench.errors import UserError
from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect
from vlp_bench.report.compare import compared
from vlp_bench.report.comparison_tables import comparisons_table, spread_table
from vlp_bench.report.evidence import studied
from vlp_bench.report.evidence_tables import calibration_table, robustness_table, subgroups_table
from vlp_bench.report.page import write_page
from vlp_bench.report.tables import console_table, labels_table, leaderboard_table, measures_table

__all__ = ["ReportSummary", "build_report", "summary_table"]

TITLE = "Medical vision–language pre-training compared"


@dataclass(frozen=True)
class ReportSummary:
    """Where the report lies and what went into it."""

    index: Path
    evaluations: int
    pretrainings: int
    pictures: int
    tables: int
    unreadable: int


def build_report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    title: str = TITLE,
    statistics: str = "honest",
    resamples: int = 1000,
) -> ReportSummary:
    """Write one self-contained page and its tables from run folders.

    All files are written aside first and moved into place at the end, the page last, so a reader of `out` never
    sees half a file. Tables of an earlier report that no longer exist are removed; other files are left alone.

    Args:
        runs: folder of run folders, searched recursively, or several.
        out: folder to write `index.html` and `tables/` into.
        title: heading of the page.
        statistics: how rows are compared, one of `report.compare.STATISTICS`: `honest` is the paired bootstrap over
            patients, `delong` DeLong's test; `t_test`, `welch` and `bootstrap_t` are those of the papers.
        resamples: of the bootstrap, at least.

    Raises:
        UserError: if a runs folder does not exist, holds no readable result, `out` cannot be a folder, or
            `statistics` is unknown.
    """
    found = collect(runs)
    all_boards = [studied(compared(board, statistics, resamples), resamples) for board in boards(found.evaluations)]
    writers = (
        leaderboard_table,
        comparisons_table,
        spread_table,
        measures_table,
        labels_table,
        subgroups_table,
        calibration_table,
        robustness_table,
    )
    tables = [table for board in all_boards for write in writers if (table := write(board)) is not None]
    files = {}
    for table in tables:
        files[f"tables/{table.slug}.md"] = table.markdown()
        files[f"tables/{table.slug}.csv"] = table.csv()
        files[f"tables/{table.slug}.tex"] = table.latex()
    files["tables/index.json"] = json.dumps({t.slug: t.title for t in tables}, indent=1, ensure_ascii=False) + "\n"
    files["index.html"] = write_page(found, all_boards, title)
    out = Path(out)
    _place(out, files)
    return ReportSummary(
        index=out / "index.html",
        evaluations=len(found.evaluations),
        pretrainings=len(found.pretrainings),
        pictures=len(found.pictures),
        tables=len(tables),
        unreadable=len(found.unreadable),
    )


def summary_table(runs: Path | str | Sequence[Path | str]) -> list[list[str]]:
    """List every compared value as rows of strings for a console, the header first.

    Raises:
        UserError: as `build_report`.
    """
    return console_table(boards(collect(runs).evaluations))


def _place(out: Path, files: dict[str, str]) -> None:
    """Write files below `out`, each appearing whole, in the order given."""
    staging = out / f".writing-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another folder with out=") from error
    try:
        for name, text in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8", newline="\n")
        (out / "tables").mkdir(exist_ok=True)
        _remove_stale(out / "tables", files)
        for name in files:
            os.replace(staging / name, out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale(folder: Path, files: dict[str, str]) -> None:
    """Remove the tables that an earlier report lists and this one does not have."""
    try:
        listed = json.loads((folder / "index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return
    for slug in listed if isinstance(listed, dict) else ():
        for name in (f"{slug}.md", f"{slug}.csv", f"{slug}.tex"):
            if Path(name).name == name and f"tables/{name}" not in files:
                (folder / name).unlink(missing_ok=True)
