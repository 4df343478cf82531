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

    Args:
        path: the csv.
        flush_every: rows between writes.
    """

    def __init__(self, path: Path, flush_every: int = 100) -> None:
        super().__init__()
        self.path, self.flush_every = path, flush_every
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
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        epoch = {k: int(v) for k, v in metrics.items() if k == "epoch"}
        self.rows.append({**epoch, "step": step, **{k: v for k, v in metrics.items() if k != "epoch"}})
        if len(self.rows) % self.flush_every == 0:
            self.save()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside the csv."""

    @rank_zero_only
    def save(self) -> None:
        """Write every row, atomically."""
        if not self.rows:
            return
        names = dict.fromkeys(["epoch", "step", *sorted({k for row in self.rows for k in row})])
        with whole(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(names), restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()
