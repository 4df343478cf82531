"""Findings of an image: linear probe, fine-tuning, or a logistic regression on cached features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlp_bench.data.datamodule import BatchKey, EpochBatches, batch_loader
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.metrics.classification import choose_thresholds, classification_metrics, trivial_classification
from vlp_bench.tasks.base import Cell, Outcome, Target, Task
from vlp_bench.types import LabelledBatch


class Classification(Task):
    """AUROC, AUPRC, and F1 and accuracy at thresholds that validation chose."""

    def run(self, cell: Cell) -> Outcome:
        """Adapt, choose, measure.

        Raises:
            UserError: a fraction outside (0, 1], a split without images, nothing measurable.
        """
        target = cell.target
        train, val, test = target.subset(cell.label_fraction, cell.draw), target.rows("val"), target.rows(cell.split)
        target.require_both_classes(test, cell.split)
        target.require_both_classes(target.rows("train"), "train")
        adapt = _probe_cached if cell.adaptation["cached"] else _train
        val_scores, scores, facts = adapt(cell, train, val, test)
        thresholds = choose_thresholds(val_scores, target.targets[val])
        patients = target.patients(test)
        common: dict[str, Any] = {"labels": target.labels, "kind": target.kind, "resamples": cell.resamples}
        return Outcome(
            classification_metrics(scores, target.targets[test], patients, thresholds, **common),
            trivial_classification(target.targets[train], target.targets[test], patients, **common),
            _predictions(cell, test, scores),
            target.labels,
            facts
            | {"train_images": len(train), "thresholds": dict(zip(target.labels, thresholds.tolist(), strict=True))},
        )


def _predictions(cell: Cell, rows: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    target, images = cell.target, cell.target.store.images.iloc[rows]
    table = pd.DataFrame({"item_id": images["image_id"].to_numpy(), "patient_id": images["patient_id"].to_numpy()})
    for i, name in enumerate(target.labels):
        table[f"score_{name}"] = scores[:, i].astype(np.float32)
        table[f"target_{name}"] = target.targets[rows][:, i]
    return table


def masked_loss(logits: Float[Tensor, "B L"], targets: Float[Tensor, "B L"], multiclass: bool) -> Float[Tensor, ""]:
    """Cross-entropy over classes, or binary cross-entropy over the labels that are known (not nan)."""
    if multiclass:
        return F.cross_entropy(logits, targets)
    known = ~torch.isnan(targets)
    terms = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def logistic_regression(
    features: Float[Tensor, "N D"], targets: Float[Tensor, "N L"], penalty: float, multiclass: bool
) -> tuple[Float[Tensor, "D L"], Float[Tensor, " L"]]:
    """Weights and biases that minimise the masked loss plus penalty/2 ||W||^2, to convergence (L-BFGS, float64)."""
    weight = torch.zeros(features.shape[1], targets.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> Tensor:
        solver.zero_grad()
        loss = masked_loss(features @ weight + bias, targets, multiclass) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def _probe_cached(
    cell: Cell, train: np.ndarray, val: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    multiclass = cell.target.kind == "multiclass"
    x = {
        k: torch.from_numpy(cell.features(rows)).double()
        for k, rows in (("train", train), ("val", val), ("test", test))
    }
    mean, std = x["train"].mean(0), x["train"].std(0, correction=0).clamp(min=1e-6)
    x = {k: (v - mean) / std for k, v in x.items()}
    y = torch.from_numpy(cell.target.targets).double()
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in cell.adaptation["penalties"]:
        weight, bias = logistic_regression(x["train"], y[train], penalty, multiclass)
        loss = float(masked_loss(x["val"] @ weight + bias, y[val], multiclass))
        if best is None or loss < best[0]:
            best = (loss, penalty, weight, bias)
    assert best is not None
    _, penalty, weight, bias = best
    scores = [_probabilities(x[k] @ weight + bias, multiclass) for k in ("val", "test")]
    return scores[0], scores[1], {"penalty": penalty}


def _probabilities(logits: Tensor, multiclass: bool) -> np.ndarray:
    return (logits.softmax(-1) if multiclass else logits.sigmoid()).float().numpy()


class LabelledDataset(Dataset[LabelledBatch]):
    """Whole batches of a target's images: random crops in training, the centre otherwise."""

    def __init__(self, target: Target, rows: np.ndarray, image_size: int, seed: int, augment: bool) -> None:
        self.target, self.rows, self.image_size, self.seed, self.augment = target, rows, image_size, seed, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> LabelledBatch:
        rows = self.rows[key.indices]
        span = self.target.store.size - self.image_size
        rng = np.random.default_rng([self.seed, key.epoch, key.step])
        shape = (2, len(rows))
        corner = rng.integers(0, span + 1, shape) if self.augment else np.full(shape, round(span / 2))
        pixels = self.target.store.crops(rows, self.image_size, corner[0], corner[1])
        targets = torch.from_numpy(self.target.targets[rows])
        return LabelledBatch(torch.from_numpy(pixels[:, None]), targets, torch.from_numpy(rows))


class Classifier(LightningModule):
    """A backbone with a linear layer on its pooled features.

    Args:
        backbone: the image encoder.
        labels: number of outputs.
        multiclass: softmax instead of a sigmoid per label.
        adaptation: train_encoder, lr, weight_decay.
    """

    def __init__(self, backbone: VisionBackbone, labels: int, multiclass: bool, adaptation: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone, self.multiclass, self.adaptation = backbone, multiclass, adaptation
        self.head = nn.Linear(backbone.spec.pooled_dim, labels)
        self.backbone.requires_grad_(adaptation["train_encoder"])

    def forward(self, batch: LabelledBatch) -> Float[Tensor, "B L"]:
        """Logits."""
        return self.head(self.backbone(batch.image).pooled)

    def on_train_epoch_start(self) -> None:
        """A frozen encoder stays in eval mode: its batch statistics are frozen too."""
        if not self.adaptation["train_encoder"]:
            self.backbone.eval()

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Masked loss."""
        return masked_loss(self(batch), batch.target, self.multiclass)

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Masked loss, for the choice of the epoch."""
        self.log("val/loss", masked_loss(self(batch), batch.target, self.multiclass), batch_size=len(batch))

    def predict_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Probabilities."""
        logits = self(batch).float()
        return logits.softmax(-1) if self.multiclass else logits.sigmoid()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the linear layer learns ten times as fast as an encoder that is trained."""
        lr, encoder = self.adaptation["lr"], self.adaptation["train_encoder"]
        groups = [{"params": self.head.parameters(), "lr": lr * (10 if encoder else 1)}]
        if encoder:
            groups.append({"params": self.backbone.parameters(), "lr": lr})
        return torch.optim.AdamW(groups, weight_decay=self.adaptation["weight_decay"])


def _train(
    cell: Cell, train: np.ndarray, val: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    options, target = cell.adaptation, cell.target
    multiclass = target.kind == "multiclass"
    model = Classifier(cell.encoders.vision, len(target.labels), multiclass, options)

    def loader(rows: np.ndarray, augment: bool) -> Any:
        data = LabelledDataset(target, rows, cell.image_size, cell.seed, augment)
        size = min(options["batch_size"], len(rows))
        sampler = EpochBatches(len(rows), size, rank=0, world=1, seed=cell.seed, shuffle=augment, drop_last=augment)
        return batch_loader(data, sampler, options["num_workers"])

    best = ModelCheckpoint(cell.out / "checkpoints", "best", monitor="val/loss", enable_version_counter=False)
    stop = EarlyStopping("val/loss", patience=options["patience"])
    trainer = cell.trainer([best, stop], max_epochs=options["epochs"], max_steps=-1)
    trainer.fit(model, loader(train, True), loader(val, False))
    model.load_state_dict(torch.load(best.best_model_path, "cpu", weights_only=True)["state_dict"])
    Path(best.best_model_path).unlink()
    scores: list[Sequence[Any]] = [trainer.predict(model, loader(rows, False)) for rows in (val, test)]
    found = [torch.cat(list(s)).float().cpu().numpy() for s in scores]
    return found[0], found[1], {"epochs": trainer.current_epoch, "best_val_loss": float(best.best_model_score or 0.0)}
