"""What a downstream task is given and what it gives back. Tasks see encoders and prepared data, never a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import SPLITS
from vlp_bench.encoders.bundle import Encoders, on_device
from vlp_bench.errors import UserError
from vlp_bench.types import ImageFeatures

Metrics = dict[str, dict[str, Any]]
#: By what test items are parted into groups.
PERSON = ("view", "sex", "age")
#: What an uncertain label counts as, by the name of the policy and of the label ("" for all others). `mixed` is what
#: Irvin et al. (CheXpert, 2019) found best for each of its five competition labels; GLoRIA and MGCA use it.
UNCERTAIN: dict[str, dict[str, float]] = {
    "ignore": {"": np.nan},
    "ones": {"": 1.0},
    "zeros": {"": 0.0},
    "mixed": {"": 0.0, "Atelectasis": 1.0, "Edema": 1.0, "Pleural Effusion": 1.0},
}


class Target:
    """The images and targets of a downstream data set.

    Args:
        store: prepared data.
        name: for messages.
        kind: multilabel, binary or multiclass.
        labels: label names, or {name: label} where `!label` means its absence; None takes every label.
        uncertain: what -1 means: ignore (unknown), ones, zeros, or mixed, by label.
        views: frontal or all.

    Raises:
        UserError: an unknown label, kind or policy; no image; a label without positives in training.
    """

    def __init__(
        self,
        store: PreparedData,
        *,
        name: str,
        kind: str = "multilabel",
        labels: list[str] | Mapping[str, str] | None = None,
        uncertain: str = "ignore",
        views: str = "frontal",
    ) -> None:
        if kind not in ("multilabel", "binary", "multiclass"):
            raise UserError(f"target.kind={kind}: expected multilabel, binary or multiclass.")
        if uncertain not in UNCERTAIN:
            raise UserError(f"target.uncertain={uncertain}: expected one of {', '.join(UNCERTAIN)}.")
        self.store, self.name, self.kind = store, name, kind
        names = dict(labels) if isinstance(labels, Mapping) else {n: n for n in (labels or store.labels)}
        self.labels = list(names)
        values = store.image_labels
        policy = UNCERTAIN[uncertain]
        values = np.where(values == -1, [policy.get(name, policy[""]) for name in store.labels], values)
        columns = [self._column(values.astype(np.float32), label) for label in names.values()]
        self.targets = np.stack(columns, axis=1) if columns else np.zeros((len(values), 0), np.float32)
        known = ~np.isnan(self.targets)
        self.viewed = store.images["frontal"].to_numpy() | (views != "frontal")
        self._usable = (known.all(1) if kind != "multilabel" else known.any(1)) & self.viewed
        if kind == "multiclass":
            self._usable &= np.nansum(self.targets, 1) == 1

    def _column(self, values: np.ndarray, label: str) -> np.ndarray:
        name = label.removeprefix("!")
        if name not in self.store.labels:
            raise UserError(
                f"target={self.name} has no label {name!r}. It has: {', '.join(self.store.labels) or 'none at all'}."
            )
        column = values[:, self.store.labels.index(name)]
        return 1 - column if label.startswith("!") else column

    def rows(self, split: str) -> np.ndarray:
        """Image rows of a split that have a target.

        Raises:
            UserError: an unknown split, or one without such an image.
        """
        if split not in SPLITS:
            raise UserError(f"split={split}: expected {', '.join(SPLITS)}.")
        rows = np.flatnonzero(self._usable & self.store.in_split(split))
        if len(rows) == 0:
            raise UserError(f"target={self.name} has no labelled {split} image.")
        return rows

    def require_both_classes(self, rows: np.ndarray, split: str) -> None:
        """Refuse a target that cannot be measured.

        Raises:
            UserError: no label has both a positive and a negative among the rows.
        """
        chosen = self.targets[rows]
        both = (np.nansum(chosen == 1, 0) > 0) & (np.nansum(chosen == 0, 0) > 0)
        if not both.any():
            raise UserError(
                f"target={self.name} has no label with both positives and negatives among its {len(rows)} {split} "
                f"images ({', '.join(self.labels[:6])}): nothing can be measured."
            )

    def subset(self, fraction: float, draw: int, by: str = "patient", rows: np.ndarray | None = None) -> np.ndarray:
        """Training rows of a share of the patients; for one draw, smaller shares lie inside larger ones.

        Args:
            fraction: the share.
            draw: which of the subsets of that size.
            by: `image` draws images whoever they are of, as the published subsets do.
            rows: the training rows there are; None takes those with a target.

        Raises:
            UserError: a fraction outside (0, 1], or another `by`.
        """
        if not 0 < fraction <= 1:
            raise UserError(f"label_fraction={fraction}: expected a share above 0 and at most 1.")
        if by not in ("patient", "image"):
            raise UserError(f"subset={by}: expected patient or image.")
        rows = self.rows("train") if rows is None else rows
        patients = rows if by == "image" else self.store.images["patient_id"].to_numpy()[rows]
        order = np.random.default_rng(draw).permutation(np.unique(patients))
        chosen = order[: max(1, round(fraction * len(order)))]
        return rows[np.isin(patients, chosen)]

    def patients(self, rows: np.ndarray) -> np.ndarray:
        """Patient of each row."""
        return self.store.images["patient_id"].to_numpy()[rows]


@dataclass
class Cell:
    """One evaluation: which encoders, on which target, with how many labels, adapted how."""

    encoders: Encoders
    target: Target
    adaptation: Mapping[str, Any]
    label_fraction: float
    draw: int
    seed: int
    split: str
    resamples: int
    out: Path
    cache: Path
    trainer: Callable[..., Any]
    subset: str = "patient"

    def train_rows(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Image rows that may be used for training, of those with labels or of `rows`."""
        return self.target.subset(self.label_fraction, self.draw, self.subset, rows)

    @property
    def image_size(self) -> int:
        """Side of the network's input."""
        return self.encoders.vision.spec.image_size

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Centre crops of image rows: uint8 (N, 1, S, S)."""
        corner = np.full(len(rows), round((self.target.store.size - self.image_size) / 2))
        return torch.from_numpy(self.target.store.crops(rows, self.image_size, corner, corner)[:, None])

    @torch.inference_mode()
    def features(self, rows: np.ndarray) -> np.ndarray:
        """Pooled features float32 (N, D) of image rows; computed once per encoder and data, and kept."""
        store = self.target.store
        path = self.cache / "features" / f"{self.encoders.hash}-{store.fingerprint}-{self.image_size}.npy"
        if path.exists():
            kept = np.load(path)
        else:
            from vlp_bench.files import whole

            everything = np.arange(len(store.images))
            kept = np.concatenate([f.pooled.numpy() for f in self.encode(everything)])
            with whole(path) as temporary, open(temporary, "wb") as file:
                np.save(file, kept)
        return kept[rows]

    @torch.inference_mode()
    def encode(self, rows: np.ndarray) -> Iterator[ImageFeatures]:
        """Features of image rows, batch by batch, on the device at hand, back on the CPU in float32."""
        vision = self.encoders.vision
        with on_device(vision) as device:
            for part in self.parts(rows):
                yield vision(self.pixels(part).to(device)).to("cpu")

    def parts(self, items: np.ndarray) -> Iterator[np.ndarray]:
        """Items, batch by batch."""
        size = int(self.adaptation.get("batch_size", 128))
        yield from (items[i : i + size] for i in range(0, len(items), size))

    def items(self, rows: np.ndarray) -> pd.DataFrame:
        """Image rows as the items of a table of predictions: `item_id`, `patient_id` and, where known, PERSON."""
        images = self.target.store.images["image_id"].to_numpy()[rows]
        persons = self.target.store.persons.iloc[rows].reset_index(drop=True)
        return pd.DataFrame({"item_id": images, "patient_id": self.target.patients(rows)}).join(persons[list(PERSON)])


@dataclass
class Outcome:
    """What a task found: metrics and the trivial baselines of the same test set, and every prediction."""

    metrics: Metrics
    trivial: Metrics
    predictions: pd.DataFrame
    labels: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """Something to look at: BGR uint8 (H, W, 3), what it shows, and the heading it belongs under."""

    image: np.ndarray
    caption: str
    group: str


class Task(ABC):
    """A downstream task.

    `primary` names the metric that a table shows, `learns` whether it trains on labels, `rescores` whether it has
    `rescored`.
    """

    learns: bool = True
    rescores: bool = False

    def __init__(self, primary: str) -> None:
        self.primary = primary

    @abstractmethod
    def run(self, cell: Cell) -> Outcome:
        """Adapt on the training subset, choose on validation, measure on the split."""

    def rescored(self, cell: Cell) -> np.ndarray:
        """Scores (N, L) of the images of the split as `cell` shows them, by what `run` adapted and chose."""
        raise NotImplementedError(type(self).__name__)

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> Iterable[Picture]:
        """At most about `count` pictures of what was found; asked for after `run`, by whoever may keep them."""
        return ()
