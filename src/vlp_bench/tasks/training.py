"""What the tasks that train share: batches of a target, a head on pre-trained parts, the loop with its choice."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import albumentations as A
import numpy as np
import torch
from jaxtyping import Float
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vlp_bench.data.augment import apply, augmentation
from vlp_bench.data.datamodule import BatchKey, EpochBatches, batch_loader
from vlp_bench.errors import UserError
from vlp_bench.optim import multiplier
from vlp_bench.tasks.base import Cell, Target
from vlp_bench.types import LabelledBatch

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class TargetImages(Dataset[LabelledBatch]):
    """Whole batches of a target's images, with masks and boxes that follow them through augmentation.

    What is drawn depends on (seed, epoch, step) and the place in the batch alone.

    Args:
        target: gives pixels and labels.
        rows: image rows, int64.
        image_size: side of the network's input.
        seed: of the draws.
        augment: a name of `data.augment`; None takes the centre, or what `whole` says.
        whole: without augmentation, the whole image made smaller, for tasks that must see its borders. So it is with
            masks or boxes.
        masks: gives uint8 (L, size, size) of an image row in stored pixels; 255 is unknown.
        boxes: gives float (N, 5) of an image row: xyxy in stored pixels, class.
    """

    def __init__(
        self,
        target: Target,
        rows: np.ndarray,
        image_size: int,
        seed: int,
        augment: str | None,
        *,
        whole: bool = False,
        masks: Callable[[int], np.ndarray] | None = None,
        boxes: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.target, self.rows, self.image_size, self.seed = target, rows, image_size, seed
        self.augment, self.masks, self.boxes = augment, masks, boxes
        plain = augment in (None, "crop") and not whole and masks is None and boxes is None
        self.transform: A.Compose | None = None if plain else augmentation(augment or "none", image_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: BatchKey) -> LabelledBatch:
        rows = self.rows[key.indices]
        draws = np.random.default_rng([self.seed, key.epoch, key.step])
        masks: Any = None
        boxes: Any = None
        if self.transform is None:
            image = self._crops(rows, draws)
        else:
            seeds = draws.integers(2**31, size=len(rows))
            changed = [self._change(self.transform, int(r), int(s)) for r, s in zip(rows, seeds, strict=True)]
            images, masks, boxes = zip(*changed, strict=True)
            image = np.stack(images)
        return LabelledBatch(
            image=torch.from_numpy(image[:, None]),
            target=torch.from_numpy(self.target.targets[rows]),
            row=torch.from_numpy(rows),
            mask=torch.from_numpy(np.stack(masks)) if self.masks else None,
            boxes=_padded(boxes) if self.boxes else None,
        )

    def _crops(self, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        span, shape = self.target.store.size - self.image_size, (2, len(rows))
        corner = draws.integers(0, span + 1, shape) if self.augment else np.full(shape, round(span / 2))
        return self.target.store.crops(rows, self.image_size, corner[0], corner[1])

    def _change(
        self, transform: A.Compose, row: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        image = self.target.store.pixels(np.array([row]))[0]
        masks = self.masks(row) if self.masks else None
        return apply(transform, image, masks, self.boxes(row) if self.boxes else None, seed)


def _padded(boxes: tuple[np.ndarray, ...]) -> Float[Tensor, "B N 5"]:
    """Boxes of a batch, filled up with rows of class -1."""
    out = torch.zeros(len(boxes), max(map(len, boxes)), 5)
    out[..., 4] = -1
    for place, found in zip(out, boxes, strict=True):
        place[: len(found)] = torch.from_numpy(found)
    return out


class Adapted(LightningModule, ABC):
    """Pre-trained parts with a new head on top; `linear` says whether the head is one layer on a vector.

    Args:
        parts: the pre-trained modules, by name.
        head: what is drawn anew and always trained.
        adaptation: the section of the configuration, see conf/adaptation/probe.yaml.

    Raises:
        UserError: an adaptation that trains nothing, an unknown optimiser, layers to be trained that there are not.
    """

    linear: ClassVar[bool] = False

    def __init__(self, parts: Mapping[str, nn.Module], head: nn.Module, adaptation: Mapping[str, Any]) -> None:
        super().__init__()
        self.parts, self.head, self.adaptation = nn.ModuleDict(parts), head, adaptation
        if "optimizer" not in adaptation:
            raise UserError(
                f"adaptation={adaptation.get('name')} trains no layers by steps, and this task has some to train: "
                f"choose adaptation={'probe' if self.linear else 'frozen'}, partial or finetune."
            )
        if adaptation["standardise"] and not self.linear:
            raise UserError(
                f"adaptation={adaptation.get('name')} is for one linear layer, and this task trains more than that on "
                "top of the encoder: choose adaptation=frozen, partial or finetune."
            )
        if adaptation["optimizer"] not in OPTIMIZERS:
            raise UserError(f"adaptation.optimizer={adaptation['optimizer']}: expected one of {', '.join(OPTIMIZERS)}.")
        for key, allowed in (("select", ("loss", "score")), ("batch_statistics", ("running", "batch"))):
            if adaptation[key] not in allowed:
                raise UserError(f"adaptation.{key}={adaptation[key]}: expected {' or '.join(allowed)}.")
        for name, part in parts.items():
            _thaw(name, part, adaptation["trained_layers"])

    @abstractmethod
    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """What is minimised, and what chooses the epoch with `adaptation.select=loss`."""

    def predict(self, batch: Any) -> Any:
        """What `predict` collects of a batch: tensors on the device, whose first dimension is the batch's."""
        raise NotImplementedError

    def score(self, predictions: list[Any]) -> float:
        """What chooses the epoch with `adaptation.select=score`, larger is better, from all validation predictions.

        Raises:
            UserError: the task has no such score.
        """
        raise UserError(f"adaptation.select=score: {type(self).__name__} chooses its epoch by loss alone.")

    def on_train_epoch_start(self) -> None:
        """Frozen modules stay in eval mode: their batch statistics are frozen too, unless asked otherwise."""
        self.train()  # the parts of a bundle come in eval mode, and Lightning leaves them as they are
        if self.adaptation["batch_statistics"] == "running":
            for module in self.parts.modules():
                own = list(module.parameters())  # what has none, such as dropout, goes with what it stands in
                if own and not any(p.requires_grad for p in own):
                    module.eval()
        self._predictions: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss."""
        return self.loss(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of the last validation."""
        self._predictions = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss, or the predictions that the score is made of."""
        if self.adaptation["select"] == "loss":
            self.log("val/loss", self.loss(batch), batch_size=len(batch))
        else:
            self._predictions.append(to_cpu(self.predict(batch)))

    def on_validation_epoch_end(self) -> None:
        """The score."""
        if self.adaptation["select"] != "loss":
            self.log("val/score", float(self.score(self._predictions)))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """See `predict`."""
        return self.predict(batch)

    def configure_optimizers(self) -> Any:
        """The head at `lr` times `head_lr_scale`, what is trained below it at `lr`, by step as `schedule` says."""
        options = self.adaptation
        lr, decay = options["lr"], options["weight_decay"]
        below = [p for p in self.parts.parameters() if p.requires_grad]
        groups = [{"params": list(self.head.parameters()), "lr": lr * (options["head_lr_scale"] if below else 1)}]
        groups += [{"params": below, "lr": lr}] * bool(below)
        more = {"momentum": options["momentum"]} if options["optimizer"] == "sgd" else {}
        optimizer = OPTIMIZERS[options["optimizer"]](groups, lr=lr, weight_decay=decay, **more)
        if options["schedule"] == "constant" and not options["warmup"]:
            return optimizer
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        warmup = round(options["warmup"] * total)

        def factor(step: int) -> float:
            if options["schedule"] == "constant":
                return min(1.0, (step + 1) / max(warmup, 1))
            return multiplier(step, total, warmup, 0.0, options["schedule"])

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _thaw(name: str, part: nn.Module, trained_layers: int | str) -> None:
    """Make the last layers of a part trainable, all of it, or nothing; a part without `layers` is trained whole."""
    part.requires_grad_(trained_layers == "all")
    if trained_layers in (0, "all"):
        return
    if not (isinstance(trained_layers, int) and trained_layers > 0):
        raise UserError(f"adaptation.trained_layers={trained_layers}: expected 0, all, or how many of the last.")
    layers: Callable[[], list[nn.Module]] | None = getattr(part, "layers", None)  # type: ignore[assignment]
    if layers is None or not callable(layers):
        part.requires_grad_(True)
        return
    found = layers()
    if trained_layers > len(found):
        raise UserError(f"adaptation.trained_layers={trained_layers}: {name} has {len(found)} layers.")
    for layer in found[-trained_layers:]:
        layer.requires_grad_(True)


def to_cpu(value: Any) -> Any:
    """The same nest of lists, tuples and dicts with its tensors detached, in memory that numpy reads."""
    if isinstance(value, Tensor):
        return value.detach().float().cpu() if value.is_floating_point() else value.detach().cpu()
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    return type(value)(to_cpu(v) for v in value) if isinstance(value, list | tuple) else value


def loader(cell: Cell, data: Dataset, *, train: bool) -> DataLoader:
    """Batches of a data set whose items are whole batches: shuffled and equal in training, all in order otherwise."""
    count = len(data)  # type: ignore[arg-type]
    size = min(cell.adaptation["batch_size"], count)
    sampler = EpochBatches(count, size, rank=0, world=1, seed=cell.seed, shuffle=train, drop_last=train)
    return batch_loader(data, sampler, cell.adaptation["num_workers"])


def fit(cell: Cell, model: Adapted, train: Dataset, val: Dataset) -> dict[str, Any]:
    """Train until validation no longer improves, and leave `model` as it was at its best.

    With several learning rates (`adaptation.lr=[1e-4,1e-3]`) the training begins anew with each of them, and validation
    chooses among them, too.

    Args:
        cell: gives the trainer and the adaptation.
        model: trained in place.
        train: items are whole batches.
        val: the same.

    Returns:
        Facts for the result: how many epochs, the best value of what chose, and the rates that were tried.
    """
    rates = cell.adaptation["lr"]
    if not isinstance(rates, list | tuple):
        return _fit(cell, model, train, val, rates)
    sign = 1 if cell.adaptation["select"] == "loss" else -1
    start, found = _state(model), {}
    for rate in rates:
        model.load_state_dict(start)
        facts = _fit(cell, model, train, val, rate)
        value = facts[f"best_val_{cell.adaptation['select']}"]
        found[rate] = (float("inf") if value is None else sign * value, facts, _state(model))
    chosen = min(found, key=lambda rate: found[rate][0])
    model.load_state_dict(found[chosen][2])
    return found[chosen][1] | {
        "lr": chosen,
        "tried": {str(rate): sign * value for rate, (value, _, _) in found.items()},
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _fit(cell: Cell, model: Adapted, train: Dataset, val: Dataset, lr: float) -> dict[str, Any]:
    options = {**cell.adaptation, "lr": lr}
    model.adaptation = options
    batches = loader(cell, train, train=True)
    monitor, mode = {"loss": ("val/loss", "min"), "score": ("val/score", "max")}[options["select"]]
    best = ModelCheckpoint(cell.out / "checkpoints", "best", monitor=monitor, mode=mode, enable_version_counter=False)
    stop = EarlyStopping(monitor, patience=options["patience"], mode=mode)
    if options["max_steps"]:
        steps = options["max_steps"]
        length = {"max_epochs": None, "max_steps": steps, "val_check_interval": min(steps, len(batches))}
    else:
        # few labels make short epochs: then several of them go between two validations
        longer = max(1, math.ceil(options["min_steps"] / (options["epochs"] * len(batches))))
        length = {"max_epochs": options["epochs"] * longer, "max_steps": -1, "check_val_every_n_epoch": longer}
    trainer = cell.trainer([best, stop], **length)
    trainer.fit(model, batches, loader(cell, val, train=False))
    path = Path(best.best_model_path)
    if path.is_file():
        model.load_state_dict(torch.load(path, "cpu", weights_only=True)["state_dict"])
        path.unlink()
    chosen = best.best_model_score
    return {"epochs": trainer.current_epoch, f"best_val_{options['select']}": None if chosen is None else float(chosen)}


def predict(cell: Cell, model: Adapted, data: Dataset) -> list[Any]:
    """What `model.predict` says of every batch of `data`, in order, on the CPU."""
    trainer = cell.trainer([])
    return [to_cpu(p) for p in trainer.predict(model, loader(cell, data, train=False)) or []]
