"""How much of a result is left when the test images are worse than they were."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlp_bench.data.corruptions import SEVERITIES, Corrupted
from vlp_bench.metrics.bootstrap import Patients, entry
from vlp_bench.metrics.paired import auroc_statistic, paired_bootstrap
from vlp_bench.tasks.base import Cell, Task


def robustness(cell: Cell, task: Task, corruptions: Sequence[str]) -> dict[str, Any]:
    """AUROC on the images of the split at every severity of some corruptions, and what is lost of it.

    Nothing is adapted or chosen anew. What is lost is paired: each resample of the patients gives the value with and
    without the corruption.

    Args:
        cell: what `task.run` was given.
        task: after its `run`; one that has `rescored`.
        corruptions: names of `data.corruptions.CORRUPTIONS`.

    Returns:
        `metric`, `clean` (an entry) and `corruptions`: name to severity to the entries `value` and `drop`.
    """
    rows = cell.target.rows(cell.split)
    targets, patients = cell.target.targets[rows], Patients.of(cell.target.patients(rows))
    shown = [(name, severity) for name in corruptions for severity in SEVERITIES]
    scores = [task.rescored(cell), *(task.rescored(_worse(cell, *how)) for how in shown)]
    statistics = [[auroc_statistic(found, targets, patients)] for found in scores]
    values, drawn = paired_bootstrap(statistics, patients.count, resamples=cell.resamples, width=len(rows))
    found: dict[str, dict[str, Any]] = {name: {} for name in corruptions}
    for i, (name, severity) in enumerate(shown, 1):
        found[name][str(severity)] = {
            "value": entry(float(values[i]), drawn[i], len(rows)),
            "drop": entry(float(values[0] - values[i]), drawn[0] - drawn[i], len(rows)),
        }
    return {"metric": "auroc", "clean": entry(float(values[0]), drawn[0], len(rows)), "corruptions": found}


def _worse(cell: Cell, corruption: str, severity: int) -> Cell:
    target = copy.copy(cell.target)
    target.store = Corrupted(target.store, corruption, severity)
    return replace(cell, target=target)
