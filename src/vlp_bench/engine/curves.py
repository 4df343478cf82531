"""`metrics.csv`: what Lightning's CSV logger writes, but a resumed run keeps the curve it had."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vlp_bench.files import whole


class Curves(Logger):
    """One row a logged step, one column a metric, empty where a step has none.

    A row is in the file as soon as it is logged, so that a run that is killed has its curve up to there.

    Args:
        path: the csv.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Unused by us; Lightning asks."""
        return "curves"

    @property
    def version(self) -> str:
        """Unused by us; Lightning asks."""
        return ""

    @rank_zero_only
    def keep_until(self, step: int) -> None:
        """Take over the rows of an interrupted run, up to the step from which it goes on."""
        if self.path.exists():
            lines = self.path.read_text("utf-8").splitlines(keepends=True)
            # one that was being written is none
            rows = csv.DictReader(line for line in lines if line.endswith("\n"))
            self.rows = [row for row in rows if int(row["step"]) < step]
            self.rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        epoch = {k: int(v) for k, v in metrics.items() if k == "epoch"}
        row = {**epoch, "step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        if self.rows and self.rows[-1] == row:
            return
        self.rows.append(row)
        if row.keys() <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)
        else:
            self.rewrite()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside the csv."""

    def rewrite(self) -> None:
        """Write every row, atomically: there is a new column."""
        self.columns = list(dict.fromkeys(["epoch", "step", *sorted({k for row in self.rows for k in row})]))
        with whole(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
