"""What runs predicted, item by item: the base of comparisons, of groups of patients and of curves."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_bench.metrics import auroc_statistic, mean_statistic
from vlp_bench.metrics.bootstrap import Patients
from vlp_bench.metrics.paired import Statistic
from vlp_bench.report.collect import Evaluation
from vlp_bench.report.wording import metric_name


def _named(values: Sequence[Any]) -> NDArray[np.str_]:
    return np.array([str(v or "") for v in values])


def _banded(values: Sequence[Any]) -> NDArray[np.str_]:
    years = np.array([np.nan if v is None else v for v in values], np.float64)
    return np.where(np.isnan(years), "", np.array(AGE_BANDS)[np.searchsorted(AGES, np.nan_to_num(years), "right")])


#: Bands of Seyyed-Kalantari et al. (2021), in years.
AGES = (20, 40, 60, 80)
AGE_BANDS = ("under 20", "20–39", "40–59", "60–79", "80 or more")
#: What is known of the person on an image, and how it parts the items; an empty name is an unknown group.
ATTRIBUTES: dict[str, Callable[[Sequence[Any]], NDArray[np.str_]]] = {"view": _named, "sex": _named, "age": _banded}


class Unusable(Exception):
    """Why predictions cannot be used."""


@dataclass(frozen=True)
class Predictions:
    """The test items of one run, sorted by name, and what it predicted.

    That is scores (N, L), values (N,) to average, or something that gives the statistic itself.
    """

    items: NDArray[np.str_]
    patients: NDArray[np.str_]
    targets: NDArray[np.float64]
    scores: NDArray[np.float64] | None
    values: NDArray[np.float64]
    given: Callable[[Patients], Statistic] | None = None
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)  # by attribute, the group of each item

    @property
    def key(self) -> str:
        """A hash of what must be the same for two runs to be compared."""
        parts = ("\n".join(self.items), "\n".join(self.patients), np.nan_to_num(self.targets, nan=-1.0).tobytes())
        return hashlib.sha256(b"\0".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()

    def statistic(self, patients: Patients) -> Statistic:
        """The metric as a function of how often each patient counts."""
        if self.scores is not None:
            return auroc_statistic(self.scores, self.targets, patients)
        if self.given is not None:
            return self.given(patients)
        return mean_statistic(self.values, patients)

    def only(self, chosen: NDArray[np.bool_]) -> "Predictions":
        """Some of the items.

        Raises:
            Unusable: the statistic is one of all items at once.
        """
        if self.given is not None:
            raise Unusable("boxes are scored over all images at once")
        scores = None if self.scores is None else self.scores[chosen]
        groups = {name: column[chosen] for name, column in self.groups.items()}
        return Predictions(
            self.items[chosen],
            self.patients[chosen],
            self.targets[chosen],
            scores,
            self.values[chosen],
            groups=groups,
        )


def read(run: Evaluation, metric: str) -> Predictions:
    """Read what a run predicted, and make sure that it gives the value of its result.

    Args:
        run: of whichever task.
        metric: one that its result has.

    Raises:
        Unusable: with the reason, for people.
    """
    if run.predictions is None:
        raise Unusable("no predictions.parquet lies beside the result")
    import pyarrow.parquet as parquet  # slow to import, and most callers of this room never need it

    try:
        stored = set(parquet.read_schema(run.predictions).names)
        if any(name.startswith("truths_") for name in stored):
            return _of_boxes(parquet.read_table(run.predictions, use_threads=False).to_pandas(), run, metric)
        wanted = _columns(stored, run, metric)
        said = [name for name in ATTRIBUTES if name in stored]
        names = ["item_id", "patient_id", *said, *wanted]
        table = parquet.read_table(run.predictions, columns=names, use_threads=False)
    except Unusable:
        raise
    except Exception as error:  # pyarrow raises many kinds
        told = " ".join(
            str(error).replace(f"{run.predictions.parent}/", "").split()
        )  # where they lie is nobody's business
        raise Unusable(f"the predictions cannot be read ({told[:120]})") from error
    items, patients = (np.array([str(x) for x in table.column(c).to_pylist()]) for c in ("item_id", "patient_id"))
    order = np.argsort(items, kind="stable")
    if len(items) == 0 or (items[order][1:] == items[order][:-1]).any():
        raise Unusable("the predictions name an item twice" if len(items) else "the predictions are empty")
    numbers = np.stack([table.column(c).to_numpy().astype(np.float64) for c in wanted], axis=1)[order]
    scored = len(wanted) > 1
    found = Predictions(
        items[order],
        patients[order],
        numbers[:, 1::2] if scored else np.zeros((len(items), 0)),
        numbers[:, ::2] if scored else None,
        numbers[:, 0],
        groups={name: ATTRIBUTES[name](table.column(name).to_pylist())[order] for name in said},
    )
    _verify(found, run, metric)
    return found


def column(run: Evaluation, name: str) -> NDArray[np.float64] | None:
    """One column of numbers of the predictions, known ones alone; None where they have none."""
    if run.predictions is None:
        return None
    import pyarrow.parquet as parquet

    try:
        if name not in parquet.read_schema(run.predictions).names:
            return None
        values = parquet.read_table(run.predictions, columns=[name], use_threads=False).column(name).to_numpy()
    except Exception:  # pyarrow raises many kinds; `read` says which
        return None
    values = values.astype(np.float64)
    return values[np.isfinite(values)]


def _of_boxes(table: Any, run: Evaluation, metric: str) -> Predictions:
    """Read the matches of boxes; images are the items, and how many boxes they have are the targets."""
    from vlp_bench.metrics.detection import AVERAGED, matches_from_table, precision_statistic  # imports pandas

    if metric not in AVERAGED:
        raise Unusable(f"the predictions hold nothing from which {metric_name(metric)} can be resampled")
    table = table.assign(item_id=table["item_id"].astype(str)).sort_values("item_id", ignore_index=True)
    if table["item_id"].duplicated().any():
        raise Unusable("the predictions name an item twice")
    matches = matches_from_table(table)
    truths = np.stack([np.where(m.known, m.truths, np.nan) for m in matches.values()], axis=1)
    items, patients = (table[c].astype(str).to_numpy(np.str_) for c in ("item_id", "patient_id"))
    given = partial(precision_statistic, matches, name=metric)
    found = Predictions(items, patients, truths, None, np.zeros(len(table)), given)
    _verify(found, run, metric)
    return found


def _columns(stored: set[str], run: Evaluation, metric: str) -> list[str]:
    """Name the columns that a metric needs: one to average, or the score and the target of each label in turn."""
    head, _, label = metric.partition("/")
    wanted = [f"{kind}_{name}" for name in ([label] if label else run.labels) for kind in ("score", "target")]
    if head == "auroc" and wanted and stored.issuperset(wanted):
        return wanted
    if f"mean_{metric}" in stored:
        return [f"mean_{metric}"]
    raise Unusable(f"the predictions hold nothing from which {metric_name(metric)} can be resampled")


def _verify(found: Predictions, run: Evaluation, metric: str) -> None:
    patients = Patients.of(found.patients)
    try:
        (again,) = found.statistic(patients)(np.ones((1, patients.count), np.int32))
    except ValueError as error:
        raise Unusable(f"the predictions cannot be scored: {error}") from error
    value = run.metrics[metric].value
    if value is not None and not math.isclose(again, value, rel_tol=1e-3, abs_tol=1e-4):
        raise Unusable(f"the predictions give {again:.4f} and the result says {value:.4f}")
