"""Image to report and report to image, by the rules under which it was published."""

from collections.abc import Sequence

import numpy as np

from vlp_bench.errors import UserError
from vlp_bench.metrics.bootstrap import mean_entries
from vlp_bench.metrics.retrieval import (
    rank_metrics,
    relevance_columns,
    retrieval_ranks,
    trivial_relevance,
    trivial_retrieval,
)
from vlp_bench.tasks.base import Cell, Metrics, Outcome, Picture, Task
from vlp_bench.tasks.pictures import attention
from vlp_bench.tasks.scoring import Scores, pairs
from vlp_bench.tasks.sentence_pictures import prototypes, reconstructions
from vlp_bench.tasks.text_pictures import important_words, retrieved

RELEVANT = ("pair", "class", "labels")
CUTOFFS = (1, 5, 10)


class Retrieval(Task):
    """The first frontal image of each study against the report of each study; nothing is trained.

    Args:
        primary: the metric that a table shows.
        relevant: which reports are right for an image: `pair`, its own; `class`, those of studies with the same one of
            `target.labels` and no other, `per_class` studies of each (CheXpert 5x200); `labels`, those of studies whose
            labels are all the same (MedViLL).
        per_class: studies of each class, at most.
        pool: candidates of each query, its own report among them, drawn anew for each; None takes them all. Only
            with `labels`.
        published: order ties and count queries as the code that MedViLL's numbers come from.

    Raises:
        UserError: another `relevant`, or a pool without `labels`.
    """

    learns = False

    def __init__(
        self,
        primary: str,
        relevant: str = "pair",
        per_class: int = 200,
        pool: int | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(primary)
        if relevant not in RELEVANT:
            raise UserError(f"task.relevant={relevant}: expected one of {', '.join(RELEVANT)}.")
        if pool is not None and (relevant != "labels" or pool < 2):
            raise UserError(f"task.pool={pool}: pools of 2 or more go with task.relevant=labels.")
        self.relevant, self.per_class, self.pool = relevant, per_class, pool
        self.order = {"ties": "reversed argsort", "without": "count"} if published else {}

    def run(self, cell: Cell) -> Outcome:
        """Score images with reports.

        Raises:
            UserError: the encoders cannot compare images and texts, or no study can be asked for.
        """
        rows, studies = pairs(cell)
        if self.relevant == "pair":
            return _own_report(cell, rows, studies)
        labels = cell.target.targets[rows]
        if self.relevant == "class":
            chosen = _one_class(labels, self.per_class, cell.seed)
            if len(chosen) == 0:
                raise UserError(
                    f"target={cell.target.name} has no {cell.split} study with exactly one of its labels: "
                    "task.relevant=class cannot be measured."
                )
            rows, studies, labels = rows[chosen], studies[chosen], labels[chosen]
        same = _same(labels)
        pool = None if self.pool is None else _pools(len(rows), self.pool, cell.seed)
        return self._judge(cell, rows, studies, same, pool)

    def _judge(
        self, cell: Cell, rows: np.ndarray, studies: np.ndarray, same: np.ndarray, pool: np.ndarray | None
    ) -> Outcome:
        """Both directions; with pools, a report's candidates are the images of the studies in its pool."""
        scores = Scores(cell, rows, studies)
        if pool is None:
            matrix = scores.matrix()
            asked = {"i2t": (matrix, same), "t2i": (matrix.T, same.T)}
        else:
            right = np.take_along_axis(same, pool, 1)
            query, candidate = np.repeat(np.arange(len(rows)), pool.shape[1]), pool.ravel()
            asked = {
                "i2t": (scores.of(query, candidate).reshape(pool.shape), right),
                "t2i": (scores.of(candidate, query).reshape(pool.shape), right),
            }
        patients = cell.target.patients(rows)
        columns, trivial = {}, {}
        for direction, (found, right) in asked.items():
            for name, values in relevance_columns(found, right, CUTOFFS, **self.order).items():
                columns[f"{direction}/{name}"] = values
            for name, values in trivial_relevance(right, CUTOFFS).items():
                trivial[f"{direction}/{name}"] = values
        predictions = cell.items(rows).assign(**{f"mean_{name}": values for name, values in columns.items()})
        facts = {"queries": len(rows), "candidates": next(iter(asked.values()))[0].shape[1]}
        return Outcome(
            mean_entries(columns, patients, cell.resamples),
            _exact(trivial, patients),
            predictions,
            [],
            facts,
        )

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> list[Picture]:
        """Where the encoders look, which reports they find, and what else the parts of the bundle can show."""
        some = count // 4
        looks = attention(cell, count - 2 * some) + retrieved(cell, some) + important_words(cell, some)
        return looks + (prototypes(cell) + reconstructions(cell) if count > 0 else [])


def _own_report(cell: Cell, rows: np.ndarray, studies: np.ndarray) -> Outcome:
    scores = Scores(cell, rows, studies)
    # by blocks, a dual encoder never holds all scores at once; a joint one must not read a pair twice
    ranks = retrieval_ranks(scores.matrix() if scores.vectors is None else scores.block, studies, studies)
    patients = cell.target.patients(rows)
    columns: dict[str, np.ndarray] = {}
    for direction, rank in zip(("i2t", "t2i"), ranks, strict=True):
        columns |= {f"mean_{direction}/R@{k}": (rank <= k).astype(float) for k in CUTOFFS}
        columns[f"mean_{direction}/mrr"] = 1 / rank
        columns[f"rank_{direction}"] = rank
    return Outcome(
        rank_metrics(*ranks, patients, patients, cell.resamples),
        trivial_retrieval(studies, studies),
        cell.items(rows).assign(**columns),
        [],
        {"candidates": len(rows)},
    )


def _exact(columns: dict[str, np.ndarray], patients: Sequence[str] | np.ndarray) -> Metrics:
    """Means whose only uncertainty would be that of the queries, which are given."""
    found = mean_entries(columns, patients, 0)
    return {name: {**entry, "low": entry["value"], "high": entry["value"]} for name, entry in found.items()}


def _one_class(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Places of studies with exactly one label, as many of each class as the rarest has, `per_class` at most."""
    alone = np.flatnonzero(np.nansum(labels == 1, axis=1) == 1)
    classes = np.argmax(labels[alone] == 1, axis=1)
    drawn = np.random.default_rng(seed).permutation(len(alone))
    present = np.unique(classes)
    count = min([per_class, *(int((classes == c).sum()) for c in present)])
    kept = [drawn[classes[drawn] == c][:count] for c in present]
    return np.sort(alone[np.concatenate(kept)]) if kept else alone


def _same(labels: np.ndarray) -> np.ndarray:
    """Which studies have all labels in common, bool (N, N); an unknown label is like an absent one."""
    _, number = np.unique(np.nan_to_num(labels) == 1, axis=0, return_inverse=True)
    return number.reshape(-1, 1) == number.reshape(1, -1)


def _pools(count: int, size: int, seed: int) -> np.ndarray:
    """Places of the candidates of each query, its own first, int64 (count, size)."""
    size = min(size, count)
    rng = np.random.default_rng(seed)
    others = np.stack([rng.permutation(count - 1)[: size - 1] for _ in range(count)])
    own = np.arange(count)[:, None]
    return np.concatenate([own, others + (others >= own)], axis=1)
