"""Read run folders into records. What cannot be read is listed with its reason, and the rest goes on."""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlp_bench.errors import UserError

SCHEMA = 1
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KEYS = ("method", "variant", "backbone", "task", "target", "split", "protocol", "adaptation", "primary")
#: Rules of fair comparison that a protocol breaks, what is otherwise than published, what these runs changed of it.
CAVEATS = ("breaks", "differs", "departures")
SEED_KEYS = ("draw", "seed", "pretrain_seed")


@dataclass(frozen=True)
class Metric:
    """One measured number: None where it is undefined; `n` counts the items behind it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation run, as its `result.json` tells it."""

    folder: str
    method: str
    variant: str
    backbone: str
    task: str
    target: str
    split: str
    protocol: str
    adaptation: str
    primary: str
    label_fraction: float | None
    draw: str
    seed: str
    pretrain_seed: str
    metrics: dict[str, Metric]
    trivial: dict[str, Metric]
    labels: tuple[str, ...]
    provenance: dict[str, Any]
    demonstration: str = ""
    label_counts: dict[str, tuple[int, int]] = field(default_factory=dict)  # label: (positives, known)
    caveats: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of the protocol, by CAVEATS
    baselines: dict[str, dict[str, Metric]] = field(default_factory=dict)  # further trivial answers by name
    not_applicable: str = ""  # why there is no value
    probabilities: bool = False  # whether the scores of its predictions are said to be some
    robustness: dict[str, Any] = field(default_factory=dict)  # what is left on worse images, see `robustness.py`
    exposure: tuple[str, ...] = ()  # why test images may have been seen before
    predictions: Path | None = None  # the file with one row per test item, where it was kept

    def fact(self, *path: str) -> str:
        """Look up a nested entry of the provenance as text; empty when absent."""
        here: Any = self.provenance
        for key in path:
            here = here.get(key) if isinstance(here, dict) else None
        return "" if here is None else str(here)


@dataclass(frozen=True)
class Curve:
    """One loss term of one split over the steps of a pre-training run."""

    term: str
    split: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Pretraining:
    """A pre-training run: what `run.json` says and the curves of `metrics.csv`."""

    folder: str
    info: dict[str, Any]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption, and the heading it belongs under."""

    folder: str
    caption: str
    group: str
    png: bytes


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """Everything found under the run folders, in a fixed order."""

    evaluations: tuple[Evaluation, ...]
    pretrainings: tuple[Pretraining, ...]
    pictures: tuple[Picture, ...]
    unreadable: tuple[Unreadable, ...]


def collect(runs: Path | str | Sequence[Path | str]) -> Collection:
    """Read all run folders below `runs`, however deep.

    Args:
        runs: one folder or several.

    Raises:
        UserError: if a folder does not exist or no evaluation could be read below them.
    """
    roots = [Path(runs)] if isinstance(runs, str | Path) else [Path(root) for root in runs]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: give runs= the folder that holds the run folders")
    evaluations: list[Evaluation] = []
    pretrainings: list[Pretraining] = []
    pictures: list[Picture] = []
    unreadable: list[Unreadable] = []
    readers: dict[str, tuple[list, Callable]] = {
        "result.json": (evaluations, _read_evaluations),
        "run.json": (pretrainings, _read_pretrainings),
        "pictures/index.json": (pictures, _read_pictures),
    }
    for folder, name in _run_folders(roots):
        for file, (records, read) in readers.items():
            if not (folder / file).is_file():
                continue
            try:
                records.extend(read(folder, name, unreadable))
            except (OSError, ValueError, KeyError, TypeError) as error:
                unreadable.append(Unreadable(f"{name}/{file}", _reason(error)))
    if not evaluations:
        raise UserError(_nothing_found(roots, unreadable))
    return Collection(tuple(evaluations), tuple(pretrainings), tuple(pictures), tuple(unreadable))


def _nothing_found(roots: Sequence[Path], unreadable: Sequence[Unreadable]) -> str:
    """Say where nothing was found and what to do about it."""
    where = ", ".join(str(root) for root in roots)
    if unreadable:
        reasons = "; ".join(f"{u.file}: {u.reason}" for u in unreadable)
        return f"no result below {where} could be read ({reasons}): run the evaluation again"
    return f"no result.json below {where}: run `vlp-bench evaluate` first, or give runs= the folder that holds its runs"


def _run_folders(roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Walk the roots in a fixed order, each folder once, with the name it goes by in the report."""
    seen = set()
    for root in roots:
        for path, folders, _ in os.walk(root):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            folder = Path(path)
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            inner = folder.relative_to(root)
            yield folder, (inner if len(roots) == 1 and inner.parts else root.resolve().name / inner).as_posix()


def _read_evaluations(folder: Path, name: str, unreadable: list[Unreadable]) -> list[Evaluation]:
    """Read one `result.json`, and the label counts of the predictions beside it."""
    data = _read_object(folder / "result.json")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')!r} is not one this version reads ({SCHEMA})")
    missing = [key for key in ("backbone", "task", "target", "primary", "metrics") if not data.get(key)]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    metrics, trivial = _read_metrics(data["metrics"]), _read_metrics(data.get("trivial") or {})
    if data["primary"] not in metrics:
        raise ValueError(f"the primary metric {data['primary']!r} is not among the metrics")
    labels = tuple(str(label) for label in data.get("labels") or ())
    counts = {}
    try:
        counts = _count_labels(folder / "predictions.parquet", labels)
    except Exception as error:  # pyarrow raises many kinds; the result itself is still good
        unreadable.append(Unreadable(f"{name}/predictions.parquet", _reason(error)))
    provenance, facts = data.get("provenance") or {}, data.get("facts") or {}
    if not isinstance(provenance, dict) or not isinstance(facts, dict):
        raise ValueError(f"{'facts' if isinstance(provenance, dict) else 'provenance'} is not an object")
    protocol, caveats = _read_protocol(data.get("protocol"))
    predictions = folder / "predictions.parquet"
    return [
        Evaluation(
            folder=name,
            **{key: _text((data | {"protocol": protocol}).get(key)) for key in TEXT_KEYS + SEED_KEYS},
            label_fraction=_number(data.get("label_fraction")),
            metrics=metrics,
            trivial=trivial,
            labels=labels,
            provenance=provenance,
            demonstration=_text(data.get("demonstration")),
            label_counts=counts,
            caveats=caveats,
            baselines={_text(k): _read_metrics(v) for k, v in (facts.get("baselines") or {}).items()},
            not_applicable=_text(facts.get("not_applicable")),
            probabilities=facts.get("probabilities") is True,
            robustness=_read_robustness(facts.get("robustness")),
            exposure=tuple(map(_text, provenance.get("exposure") or ())),
            predictions=predictions if predictions.is_file() else None,
        )
    ]


def _read_pretrainings(folder: Path, name: str, unreadable: list[Unreadable]) -> list[Pretraining]:
    """Read `run.json` when it tells of a pre-training, and the loss curves beside it."""
    info = _read_object(folder / "run.json")
    if info.get("verb") != "pretrain":
        return []
    curves: tuple[Curve, ...] = ()
    if (folder / "metrics.csv").is_file():
        try:
            curves = _read_curves(folder / "metrics.csv")
        except (OSError, ValueError, csv.Error) as error:
            unreadable.append(Unreadable(f"{name}/metrics.csv", _reason(error)))
    return [Pretraining(name, info, curves)]


def _read_pictures(folder: Path, name: str, unreadable: list[Unreadable]) -> list[Picture]:
    """Read the pictures that `pictures/index.json` lists."""
    index = json.loads((folder / "pictures" / "index.json").read_text("utf-8"))
    if not isinstance(index, list) or not all(isinstance(item, dict) for item in index):
        raise ValueError("not a list of objects with file, caption and group")
    pictures = []
    for item in index:
        file = _text(item.get("file"))
        try:
            if not file or Path(file).name != file:
                raise ValueError("the file must lie beside the index")
            png = (folder / "pictures" / file).read_bytes()
            if not png.startswith(PNG_SIGNATURE):
                raise ValueError("not a PNG file")
        except (OSError, ValueError) as error:
            unreadable.append(Unreadable(f"{name}/pictures/{file}", _reason(error)))
            continue
        pictures.append(Picture(name, _text(item.get("caption")), _text(item.get("group")), png))
    return pictures


def _read_curves(file: Path) -> tuple[Curve, ...]:
    """Read the loss columns of a CSV whose rows leave most cells empty."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with file.open(newline="", encoding="utf-8") as stream:
        for line, row in enumerate(csv.DictReader(stream)):
            step = _parsed(row.get("step"), float(line))
            for column, cell in row.items():
                split, _, rest = (column or "").partition("/")
                if split not in ("train", "val") or not (rest == "loss" or rest.startswith("loss/")):
                    continue
                value = _parsed(cell, math.nan)
                if math.isfinite(value) and math.isfinite(step):
                    points.setdefault((rest.removeprefix("loss/"), split), []).append((step, value))
    curves = []
    for (term, split), pairs in points.items():
        pairs.sort(key=lambda pair: pair[0])
        steps, values = zip(*pairs, strict=True)
        curves.append(Curve("total" if term == "loss" else term, split, steps, values))
    return tuple(curves)


def _count_labels(file: Path, labels: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count positives and known targets per label in a predictions file; empty without such a file."""
    if not file.is_file() or not labels:
        return {}
    import pyarrow.parquet as parquet  # slow to import, and most callers of this room never need it

    wanted = {f"target_{label}": label for label in labels}
    stored = [name for name in parquet.read_schema(file).names if name in wanted]
    table = parquet.read_table(file, columns=stored, use_threads=False)
    counts = {}
    for name in stored:
        values = table.column(name).to_numpy().astype(float)
        counts[wanted[name]] = (int((values == 1).sum()), int((values == values).sum()))
    return counts


def _read_protocol(data: Any) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Read the protocol: its name alone, or an object with name and caveats."""
    if not isinstance(data, dict):
        return data, {}
    for kind in CAVEATS:
        if not isinstance(data.get(kind) or (), list | tuple):
            raise ValueError(f"the protocol's {kind} are not a list")
    return data.get("name"), {kind: tuple(map(_text, data.get(kind) or ())) for kind in CAVEATS}


def _read_robustness(data: Any) -> dict[str, Any]:
    """Check the shape of what was measured on worse images: `metric`, `clean`, and entries by corruption, severity."""
    if not data:
        return {}
    corruptions = data.get("corruptions") if isinstance(data, dict) else None
    if not isinstance(corruptions, dict) or not all(isinstance(s, dict) for s in corruptions.values()):
        raise ValueError("robustness must hold metric, clean and corruptions")
    found = {
        (_text(name), int(severity)): _read_metrics(entries)
        for name, severities in corruptions.items()
        for severity, entries in severities.items()
    }
    return {
        "metric": _text(data.get("metric")),
        "clean": _read_metrics({"value": data["clean"]})["value"],
        "found": found,
    }


def _read_metrics(data: Any) -> dict[str, Metric]:
    """Check the shape of `metrics` or `trivial`."""
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ValueError("metrics must map names to objects with value, low, high and n")
    metrics = {}
    for name, entry in data.items():
        n = _number(entry.get("n"))
        value, low, high = (_number(entry.get(key)) for key in ("value", "low", "high"))
        metrics[name] = Metric(value, low, high, None if n is None else int(n))
    return metrics


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    data = json.loads(file.read_text("utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _number(value: Any) -> float | None:
    """Take a finite number, or None for null and nan; refuse anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else None


def _parsed(cell: Any, default: float) -> float:
    """Parse a CSV cell; empty cells give the default."""
    return float(cell) if isinstance(cell, str) and cell.strip() else default


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _reason(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg}, line {error.lineno})"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    return " ".join(str(error).split()) or type(error).__name__
