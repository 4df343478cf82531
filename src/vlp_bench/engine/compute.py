"""The section `compute`: switches of speed that move numbers by rounding alone."""

import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn

from vlp_bench.config import plain
from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError

#: what is compiled, each as a whole
NETWORKS = (VisionBackbone, TextBackbone, JointEncoder)


def on_cpu(trainer: DictConfig) -> bool:
    """Whether a Trainer of this section computes on the processor."""
    return trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())


def faults(compute: DictConfig, trainer: DictConfig) -> Iterator[str]:
    """What of the switches cannot be had here."""
    for key, value in plain(compute).items():
        if not isinstance(value, bool):
            yield f"compute.{key}={value}: expected true or false."
    if compute.compile is True and (missing := _missing_compiler(on_cpu(trainer))):
        yield f"compute.compile=true needs {missing}. Install it, or give compute.compile=false."
    if trainer.get("sync_batchnorm") and on_cpu(trainer) and trainer.strategy != "auto":
        yield (
            "trainer.sync_batchnorm=true: batch statistics of all processes have no kernel on a processor. Give "
            "trainer.sync_batchnorm=false."
        )


def _missing_compiler(cpu: bool) -> str | None:
    if not cpu:
        return None if find_spec("triton") else "Triton (pip install triton) for a GPU"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"the C++ compiler {compiler} (or another, named by CXX) on a processor"


def apply(compute: DictConfig, modules: Iterable[nn.Module]) -> None:
    """Set what holds for the process, and for the networks inside `modules`, whose keys stay what they are."""
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(compute.sdpa)
    for network in [n for m in modules for n in m.modules()]:
        if isinstance(network, VisionBackbone):
            network.lay_out(compute.channels_last)
        if compute.compile and isinstance(network, NETWORKS):
            network.compile()


def callbacks(compute: DictConfig) -> list[Callback]:
    """What the switches need of a training."""
    return [FusedOptimizers()] if compute.fused else []


class FusedOptimizers(Callback):
    """Lets optimisers take their step in one kernel.

    It is asked for here, not when they are made, so that every task's optimiser is reached, checkpoints go either way,
    and gradients are unscaled before they are clipped.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for it.

        Raises:
            UserError: an optimiser has no such kernel.
        """
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if "fused" not in group:
                    raise UserError(
                        f"compute.fused=true: {type(optimizer).__name__} has no fused kernel. Give "
                        "compute.fused=false, or another optimizer, such as adamw."
                    )
                group["fused"] = True
            state: dict[str, Any]
            for parameter, state in optimizer.state.items():
                if "step" in state:  # a checkpoint of a run without
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)
