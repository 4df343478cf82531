"""Numbers as they were published, and what must be known of them before others may stand beside them.

`results.csv` has facts only, each read in its source (never recalled, never from a secondary one); `protocols.yaml`
says what was tested and how, in our words; `names.yaml` what is called differently here.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from vlp_bench.errors import UserError

#: How a row was checked: read in the paper's text, in a file of its code, in its table, or computed again.
VERIFIED = ("text-verified", "file-verified", "table-verified", "recomputed")


@dataclass(frozen=True, slots=True)
class Published:
    """One published number, in the unit of its protocol (`unit`: 100 for per cent, else 1).

    `label_pct` is the share of the training labels in per cent, 0 without any; `low` and `high` are what `spread` makes
    of it as a 95 % interval, never narrower than the rounding of the number. `text` is the number as printed; of one
    printed as `<1`, the value is None and the interval from 0 to 1.
    """

    protocol: str
    task: str
    dataset: str
    metric: str
    label_pct: float
    method: str
    backbone: str
    text: str
    value: float | None
    spread: str
    source: str
    status: str
    low: float
    high: float

    @property
    def name(self) -> str:
        """Method and backbone, the latter where the former does not say it."""
        known = not self.backbone or self.method.endswith(self.backbone) or "-" in self.method
        return self.method if known else f"{self.method} {self.backbone}"


@cache
def results() -> tuple[Published, ...]:
    """Every published number, in the order of the file."""
    lines = files(__name__).joinpath("results.csv").read_text("utf-8").splitlines()
    return tuple(_row(row) for row in csv.DictReader(lines))


@cache
def protocols() -> dict[str, dict[str, Any]]:
    """What is known of each protocol, by name; `unit` is always there."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(files(__name__).joinpath("protocols.yaml").read_text("utf-8"))
    return {name: {"unit": 100, "spread_of": "", "trivial": []} | about for name, about in found.items()}


@cache
def names() -> dict[str, Any]:
    """`methods`, `backbones` and `baselines`: see names.yaml."""
    found: dict[str, Any] = yaml.safe_load(files(__name__).joinpath("names.yaml").read_text("utf-8"))
    return found


def chosen(against: str) -> tuple[Published, ...]:
    """The rows that `against` means: of a protocol, of a method (there or here), or of a paper (a part of its name).

    Raises:
        UserError: it means none.
    """
    asked = against.lower()
    synonyms = {m.lower() for m in names()["methods"].get(asked, ())} | {asked}
    for fits in (
        lambda r: r.protocol == asked,
        lambda r: r.method.lower() in synonyms,
        lambda r: asked in r.source.lower(),
    ):
        if found := tuple(r for r in results() if asked and fits(r)):
            return found
    raise UserError(
        f"against={against}: no published number is of a protocol, a method or a paper of that name. "
        f"Protocols: {', '.join(dict.fromkeys(r.protocol for r in results()))}. against=list shows the rest."
    )


def _row(row: Mapping[str, str]) -> Published:
    text, spread = row["value"], row["spread"]
    value = None if text.startswith("<") else float(text)
    half = 0.5 * 10.0 ** -len(text.partition(".")[2])
    low, high = (0.0, float(text[1:])) if value is None else (value - half, value + half)
    about = protocols()[row["protocol"]]
    if ".." in spread:
        ends = [float(end) for end in spread.split("..")]
        low, high = min(low, ends[0]), max(high, ends[1])
    elif value is not None and spread and about["spread"]:
        reach = float(spread) * (_of_mean(about["runs"]) if about["spread"] == "deviation" else 1)
        low, high = min(low, value - reach), max(high, value + reach)
    return Published(
        **{k: row[k] for k in ("protocol", "task", "dataset", "metric", "method", "backbone", "spread", "source")},
        status=row["status"],
        label_pct=float(row["label_pct"]),
        text=text,
        value=value,
        low=low,
        high=high,
    )


def _of_mean(runs: int) -> float:
    """Half of a 95 % t-interval of the mean, in deviations that were divided by the number of runs."""
    from scipy.stats import t

    return float(t.ppf(0.975, runs - 1) / (runs - 1) ** 0.5)
