"""What every pre-training method is: encoders in, named loss terms out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from vlp_bench.distributed import by_itself
from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.optim import multiplier, parameter_groups
from vlp_bench.types import StudyBatch


class VLPMethod(LightningModule, ABC):
    """Base of all methods. A method writes `losses`, and `aligner` if images and texts can be compared.

    Args:
        vision: the image encoder.
        text: the text encoder, or None for a method of images alone.
        optimizer: makes an optimiser of parameter groups; None where the method is not trained.
        warmup: share of all steps over which the learning rate rises.
        final_lr: where it ends, as a share of its peak.
        weight_decay: of matrices (of everything with `decay_all`).
        schedule: `cosine` or `linear`: how the learning rate falls.
        loss_weights: factor of each term that `losses` returns; the names must agree.
        variant: `paper`, or `official` for a method that says in `official` which class does what the authors' code
            does.
        across_processes: whether samples of all processes are compared and averaged over, or those of each process by
            themselves; None leaves it to the variant.
    """

    #: "module:Class" that replaces this class when variant=official
    official: ClassVar[str | None] = None
    #: whether samples of all processes are compared, where the configuration does not say
    across_processes: bool = True
    #: set by the engine: what a checkpoint must know to be rebuilt
    record: Mapping[str, Any] | None = None

    def __new__(cls, *_: Any, variant: str = "paper", **__: Any) -> "VLPMethod":
        """The class for the variant."""
        if variant not in ("paper", "official"):
            raise UserError(f"method.variant={variant}: expected paper or official.")
        if variant == "official" and cls.official is None:
            raise UserError(f"method.variant=official: {cls.__name__} has only the paper's variant.")
        if variant == "official" and "official" in cls.__dict__:
            module, name = str(cls.official).split(":")
            cls = getattr(import_module(module), name)
        return super().__new__(cls)

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone | None,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        loss_weights: Mapping[str, float],
        warmup: float = 0.1,
        final_lr: float = 0.0,
        weight_decay: float = 0.05,
        decay_all: bool = False,
        schedule: str = "cosine",
        variant: str = "paper",
        across_processes: bool | None = None,
    ) -> None:
        super().__init__()
        if across_processes is not None:
            self.across_processes = across_processes
        self.vision, self.text = vision, text
        self.optimizer, self.warmup, self.final_lr = optimizer, warmup, final_lr
        self.weight_decay, self.decay_all, self.schedule = weight_decay, decay_all, schedule
        self.loss_weights = dict(loss_weights)
        self.variant = variant

    @abstractmethod
    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """Unweighted scalar terms of one batch, over the samples of all processes."""

    def terms(self, batch: StudyBatch) -> dict[str, Tensor]:
        """`losses`, over the samples of all processes or of this one alone, as `across_processes` says."""
        with by_itself(not self.across_processes):
            return self.losses(batch)

    def weights(self, progress: float) -> Mapping[str, float]:
        """Factor of each term when `progress` (0 to 1) of the steps are done; constant unless overridden."""
        return self.loss_weights

    def aligner(self) -> Aligner | None:
        """How images and texts compare after pre-training; None when they do not."""
        return None

    def parts(self) -> dict[str, nn.Module]:
        """What a bundle keeps, by name."""
        named = {"vision": self.vision, "text": self.text, "aligner": self.aligner()}
        return {name: part for name, part in named.items() if part is not None}

    def training_step(self, batch: StudyBatch, batch_idx: int) -> Tensor:
        """Weighted sum of the terms."""
        return self._step(batch, "train")

    def validation_step(self, batch: StudyBatch, batch_idx: int) -> Tensor:
        """The same on validation studies."""
        return self._step(batch, "val")

    def _step(self, batch: StudyBatch, stage: str) -> Tensor:
        terms = self.terms(batch)
        weights = self.weights(self.progress)
        if terms.keys() != weights.keys():
            raise UserError(
                f"{type(self).__name__} returns the loss terms {sorted(terms)} but method.loss_weights names "
                f"{sorted(weights)}; they must agree."
            )
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        logged = {f"{stage}/loss": total.detach(), **{f"{stage}/loss/{k}": v.detach() for k, v in terms.items()}}
        if stage == "train":
            group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
            # a tensor on the CPU: for a number, Lightning would make one on the GPU and wait for it
            logged["lr"] = torch.tensor(group["lr"] / group.get("lr_scale", 1.0))
        self.log_dict(
            logged, batch_size=len(batch), sync_dist=stage == "val", on_step=stage == "train", on_epoch=stage == "val"
        )
        return total

    def note(self, batch_size: int, **values: Tensor) -> None:
        """Log what is worth watching and is no loss term, as `stage/name`; without a trainer nothing happens."""
        if self._trainer is not None:
            stage = "train" if self.training else "val"
            logged = {f"{stage}/{name}": value.detach() for name, value in values.items()}
            self.log_dict(logged, batch_size=batch_size, sync_dist=not self.training)

    @property
    def progress(self) -> float:
        """Share of the optimiser steps that are done."""
        total = self._trainer.estimated_stepping_batches if self._trainer else 0
        return min(self.global_step / total, 1.0) if total else 0.0

    def parameter_groups(self) -> list[dict]:
        """What the optimiser is made of; `lr_scale` in a group is a factor on its learning rate."""
        return parameter_groups([self], self.weight_decay, self.decay_all)

    def lr_factor(self, step: int, total: int) -> float:
        """Factor on the learning rate at an optimiser step: warm-up, then `schedule`, unless overridden."""
        return multiplier(step, total, round(self.warmup * total), self.final_lr, self.schedule)

    def configure_optimizers(self) -> Any:
        """The optimiser over the parameter groups, with `lr_factor` by step."""
        if self.optimizer is None:
            raise UserError("This method was built without an optimizer and cannot be trained.")
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.lr_factor(min(step, total - 1), total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plain record that says how to rebuild this method."""
        if self.record is not None:
            checkpoint["vlp_bench"] = dict(self.record)
