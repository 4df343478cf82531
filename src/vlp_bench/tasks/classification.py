"""Findings of an image: linear probe, fine-tuning, or a logistic regression on cached features."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.metrics.classification import (
    averaged_scores,
    choose_thresholds,
    classification_metrics,
    macro_auroc,
    trivial_classification,
)
from vlp_bench.tasks.base import Cell, Outcome, Picture, Task
from vlp_bench.tasks.class_maps import LinearProbe, class_maps
from vlp_bench.tasks.pictures import attention, class_activation
from vlp_bench.tasks.training import Adapted, TargetImages, fit, predict
from vlp_bench.tasks.words import WordsDataset, joint_vector
from vlp_bench.types import LabelledBatch, WordsBatch


class Classification(Task):
    """AUROC, AUPRC, and F1 and accuracy at thresholds that validation chose.

    Args:
        primary: the metric that a table shows.
        positive_weight: weigh the positives of each label by its negatives over its positives, where a layer is
            trained by steps.
        thresholds: `validation`, or the number that a paper took for all labels.
        reads: `image`, or `both`: a joint encoder also reads the report, from which the labels may have come (MedViLL).

    Raises:
        UserError: an unknown option.
    """

    rescores = True

    def __init__(
        self,
        primary: str,
        positive_weight: bool = False,
        thresholds: str | float = "validation",
        reads: str = "image",
    ) -> None:
        super().__init__(primary)
        if reads not in ("image", "both"):
            raise UserError(f"task.reads={reads}: expected image or both.")
        if thresholds != "validation" and not isinstance(thresholds, int | float):
            raise UserError(f"task.thresholds={thresholds}: expected validation, or a number.")
        self.positive_weight, self.thresholds, self.reads = positive_weight, thresholds, reads
        self.probe: LinearProbe | None = None
        self.score: Callable[[Cell], np.ndarray] | None = None

    def run(self, cell: Cell) -> Outcome:
        """Adapt, choose, measure.

        Raises:
            UserError: a fraction outside (0, 1], a split without images, nothing measurable.
        """
        target = cell.target
        train, val, test = cell.train_rows(), target.rows("val"), target.rows(cell.split)
        target.require_both_classes(test, cell.split)
        target.require_both_classes(target.rows("train"), "train")
        if self.reads == "both":
            _require_joint(cell)
        if cell.adaptation["cached"]:
            val_scores, scores, self.probe, facts = _probe_cached(cell, train, val, test)
            self.score = partial(_probed, self.probe)
        else:
            val_scores, scores, self.probe, facts = _train(cell, train, val, test, self)
        if isinstance(self.thresholds, str):
            thresholds = choose_thresholds(val_scores, target.targets[val])
        else:
            thresholds = np.full(len(target.labels), float(self.thresholds))
            counts = target.targets[test].sum(0)
            if ((counts > 0) & (counts < len(test))).all():  # all are known, and each has both classes
                facts["averages"] = averaged_scores(scores, target.targets[test], float(self.thresholds))
        patients = target.patients(test)
        common: dict[str, Any] = {"labels": target.labels, "kind": target.kind, "resamples": cell.resamples}
        return Outcome(
            classification_metrics(scores, target.targets[test], patients, thresholds, **common),
            trivial_classification(target.targets[train], target.targets[test], patients, **common),
            predictions_table(cell, test, scores),
            target.labels,
            facts
            | {
                "train_images": len(train),
                "thresholds": dict(zip(target.labels, thresholds.tolist(), strict=True)),
                "probabilities": True,
            },
        )

    def rescored(self, cell: Cell) -> np.ndarray:
        """By the layer that `run` fitted, float32 (N, L)."""
        assert self.score is not None, "run comes first"
        return self.score(cell)

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> list[Picture]:
        """Class activation maps of a CNN, whose pooled feature is the mean of its cells; what a ViT attends to."""
        if cell.encoders.vision.is_vit or self.probe is None:
            return attention(cell, count)
        return class_activation(cell, class_maps(cell.encoders.vision, self.probe), outcome, count)


def predictions_table(cell: Cell, rows: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Scores and targets of images, a row each."""
    target, table = cell.target, cell.items(rows)
    for i, name in enumerate(target.labels):
        table[f"score_{name}"] = scores[:, i].astype(np.float32)
        table[f"target_{name}"] = target.targets[rows][:, i]
    return table


def masked_loss(
    logits: Float[Tensor, "B L"],
    targets: Float[Tensor, "B L"],
    multiclass: bool,
    positive_weight: Float[Tensor, " L"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy over classes, or binary cross-entropy over the labels that are known (not nan)."""
    if multiclass:
        return F.cross_entropy(logits, targets)
    known = ~torch.isnan(targets)
    terms = F.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(targets), reduction="none", pos_weight=positive_weight
    )
    return (terms * known).sum() / known.sum().clamp(min=1)


def positive_weight(targets: Float[Tensor, "N L"]) -> Float[Tensor, " L"]:
    """Negatives over positives of each label; 1 for a label without positives."""
    positives, known = torch.nansum(targets, 0), (~torch.isnan(targets)).sum(0)
    return torch.where(positives > 0, (known - positives) / positives.clamp(min=1), torch.ones_like(positives))


def logistic_regression(
    features: Float[Tensor, "N D"],
    targets: Float[Tensor, "N L"],
    penalty: float,
    multiclass: bool,
    start: tuple[Float[Tensor, "D L"], Float[Tensor, " L"]] | None = None,
) -> tuple[Float[Tensor, "D L"], Float[Tensor, " L"]]:
    """Weights and biases that minimise the masked loss plus penalty/2 ||W||^2, to convergence (L-BFGS, float64).

    The loss is convex: `start`, such as the solution under another penalty, only saves iterations.
    """
    if start is None:
        width, labels = features.shape[1], targets.shape[1]
        start = torch.zeros(width, labels, dtype=torch.float64), torch.zeros(labels, dtype=torch.float64)
    weight, bias = (value.clone().requires_grad_(True) for value in start)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> Tensor:
        solver.zero_grad()
        loss = masked_loss(features @ weight + bias, targets, multiclass) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def linear_probe(cell: Cell, features: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> LinearProbe:
    """Fit on standardised features; the penalty is that of `adaptation.penalties` with the lowest validation loss.

    Args:
        cell: gives targets and penalties.
        features: (N, D) of the rows of `train` and of `val`.
        rows: image rows of the same.
    """
    multiclass = cell.target.kind == "multiclass"
    x = {k: torch.from_numpy(features[k]).double() for k in ("train", "val")}
    y = {k: torch.from_numpy(cell.target.targets[rows[k]]).double() for k in ("train", "val")}
    mean, std = _spread(x["train"])
    x = {k: (v - mean) / std for k, v in x.items()}
    # the weights lie in the span of the training features, which few labels make small
    basis = torch.linalg.qr(x["train"].T).Q if len(x["train"]) < x["train"].shape[1] else None
    if basis is not None:
        x = {k: v @ basis for k, v in x.items()}
    best: tuple[float, float, Tensor, Tensor] | None = None
    solution = None
    for penalty in sorted(cell.adaptation["penalties"], reverse=True):
        solution = weight, bias = logistic_regression(x["train"], y["train"], penalty, multiclass, solution)
        loss = float(masked_loss(x["val"] @ weight + bias, y["val"], multiclass))
        if best is None or loss < best[0]:
            best = (loss, penalty, weight, bias)
    assert best is not None
    _, penalty, weight, bias = best
    weight = (weight if basis is None else basis @ weight) / std[:, None]
    return LinearProbe(weight, bias - mean @ weight, penalty)


def _probe_cached(
    cell: Cell, train: np.ndarray, val: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, LinearProbe, dict[str, Any]]:
    rows = {"train": train, "val": val, "test": test}
    features = {k: cell.features(r) for k, r in rows.items()}
    probe = linear_probe(cell, features, rows)
    multiclass = cell.target.kind == "multiclass"
    logits = [probe(torch.from_numpy(features[k]).double()) for k in ("val", "test")]
    scores = [_probabilities(found, multiclass).float().numpy() for found in logits]
    return scores[0], scores[1], probe, {"penalty": probe.penalty}


def _probed(probe: LinearProbe, cell: Cell) -> np.ndarray:
    pooled = torch.cat([f.pooled for f in cell.encode(cell.target.rows(cell.split))])
    return _probabilities(probe(pooled.double()), cell.target.kind == "multiclass").float().numpy()


def _spread(features: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of each feature."""
    return features.mean(0), features.std(0, correction=0).clamp(min=1e-6)


def _probabilities(logits: Tensor, multiclass: bool) -> Tensor:
    return logits.softmax(-1) if multiclass else logits.sigmoid()


class Classifier(Adapted):
    """A backbone with a linear layer on its pooled features.

    Args:
        parts: the pre-trained modules that are read.
        width: of their vector.
        labels: number of outputs.
        multiclass: softmax instead of a sigmoid per label.
        adaptation: see Adapted.
        positive_weight: (L,) factor on the positives of each label; None is 1.
        mean: (D,), taken from the vector before the linear layer.
        std: (D,), by which it is divided.
    """

    linear = True
    positive_weight: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        width: int,
        labels: int,
        multiclass: bool,
        adaptation: Mapping[str, Any],
        positive_weight: Tensor | None = None,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
    ) -> None:
        super().__init__(parts, nn.Linear(width, labels), adaptation)
        self.multiclass = multiclass
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("std", torch.as_tensor(std))
        self.register_buffer("positive_weight", positive_weight, persistent=False)

    def vector(self, batch: Any) -> Float[Tensor, "B D"]:
        """What the linear layer sees."""
        return self.parts["vision"](batch.image).pooled

    def forward(self, batch: LabelledBatch) -> Float[Tensor, "B L"]:
        """Logits."""
        return self.head((self.vector(batch) - self.mean) / self.std)

    def targets(self, batch: Any) -> Float[Tensor, "B L"]:
        """Labels of a batch, nan where unknown."""
        return batch.target

    def probe(self) -> LinearProbe:
        """The head as a function of pooled features as they are."""
        head = {name: value.detach().double().cpu() for name, value in self.head.named_parameters()}
        weight = head["weight"] / self.std.double().cpu()
        shift = self.mean.double().cpu().expand(weight.shape[1])
        return LinearProbe(weight.T, head["bias"] - weight @ shift)

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """Masked loss."""
        return masked_loss(self(batch), self.targets(batch), self.multiclass, self.positive_weight)

    def predict(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Probabilities, and the targets."""
        return _probabilities(self(batch).float(), self.multiclass), self.targets(batch)

    def score(self, predictions: list[tuple[Tensor, Tensor]]) -> float:
        """Macro AUROC."""
        scores, targets = (torch.cat(part).numpy() for part in zip(*predictions, strict=True))
        return macro_auroc(scores, targets)


class JointClassifier(Classifier):
    """A joint encoder of image and report with a linear layer on its pooled [CLS]."""

    def vector(self, batch: WordsBatch) -> Float[Tensor, "B D"]:
        """The pooled [CLS] over image and report."""
        return joint_vector(self.parts["vision"], self.parts["text"], self.parts["joint"], batch, "pooled")

    def targets(self, batch: WordsBatch) -> Float[Tensor, "B L"]:
        """Labels, which travel as answers."""
        return batch.answers


def _require_joint(cell: Cell) -> None:
    if cell.encoders.joint is None or cell.encoders.joint.pooler is None:
        raise NotApplicable(
            f"task.reads=both needs a joint encoder of image and text with a pooled vector, and "
            f"{cell.encoders.name} has none. Use task.reads=image."
        )
    if cell.adaptation["cached"] or cell.adaptation["standardise"]:
        raise UserError("task.reads=both is trained by steps: use adaptation=finetune, or standardise=false.")


def _train(
    cell: Cell, train: np.ndarray, val: np.ndarray, test: np.ndarray, task: Classification
) -> tuple[np.ndarray, np.ndarray, LinearProbe | None, dict[str, Any]]:
    target, options, encoders = cell.target, cell.adaptation, cell.encoders
    weight = positive_weight(torch.from_numpy(target.targets[train])) if task.positive_weight else None
    scale = _spread(torch.from_numpy(cell.features(train))) if options["standardise"] else ()
    form = (len(target.labels), target.kind == "multiclass", options, weight, *scale)
    if task.reads == "both":
        assert encoders.text is not None
        parts = {name: encoders.parts[name] for name in ("vision", "text", "joint")}
        model: Classifier = JointClassifier(parts, encoders.text.width, *form)
    else:
        model = Classifier({"vision": encoders.vision}, encoders.vision.spec.pooled_dim, *form)

    def data(rows: np.ndarray, augment: str | None, cell: Cell = cell) -> Dataset:
        images = TargetImages(cell.target, rows, cell.image_size, cell.seed, augment)
        return images if task.reads == "image" else _with_reports(cell, images)

    def score(rows: np.ndarray, cell: Cell = cell) -> np.ndarray:
        return torch.cat([p for p, _ in predict(cell, model, data(rows, None, cell))]).numpy()

    facts = fit(cell, model, data(train, options["augment"]), data(val, None))
    found = [score(rows) for rows in (val, test)]
    task.score = lambda other: score(test, other)
    # of image and report together there is no map of the image
    probe = model.probe() if task.reads == "image" else None
    return found[0], found[1], probe, facts


def _with_reports(cell: Cell, images: TargetImages) -> WordsDataset:
    text, store, inputs = cell.encoders.text, cell.target.store, cell.encoders.inputs
    assert text is not None
    pieces, _ = store.pieces(text.tokenizer, inputs.form)
    studies = store.images["study"].to_numpy()[images.rows]
    labels = cell.target.targets[images.rows]
    return WordsDataset(images, pieces, studies, text.tokenizer, inputs.max_tokens, labels)
