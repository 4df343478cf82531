"""Configuration to objects, in one place."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from vlp_bench.config import check, plain
from vlp_bench.data.datamodule import Inputs
from vlp_bench.encoders.bundle import Encoders, load
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import compute, tracking
from vlp_bench.engine.curves import Curves
from vlp_bench.engine.keeping import WholeCheckpoints
from vlp_bench.errors import UserError
from vlp_bench.methods.base import VLPMethod
from vlp_bench.tasks.base import Task


def verify(cfg: DictConfig) -> None:
    """Refuse a configuration that cannot work before anything is built: targets, keywords, seed, device, switches.

    Raises:
        UserError: with every fault.
    """
    faults = check(cfg)
    if "seed" in cfg and not (isinstance(cfg.seed, int) and cfg.seed >= 0):
        faults.append(f"seed={cfg.seed}: expected a whole number from 0.")
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        faults.append("trainer asks for a GPU and torch finds none. Use trainer=cpu, or trainer=ddp_cpu.")
    faults += compute.faults(cfg.compute, cfg.trainer)
    if faults:
        raise UserError(" ".join(faults))


def seed(value: int) -> None:
    """Seed every generator; before the first weight is drawn."""
    seed_everything(value, workers=True, verbose=False)


def vision(cfg: DictConfig) -> VisionBackbone:
    """The image encoder of the section `vision`."""
    return instantiate(cfg, _convert_="all")


def text(cfg: DictConfig) -> TextBackbone:
    """The text encoder of the section `text`."""
    return instantiate(cfg, _convert_="all")


def method(cfg: DictConfig, train: bool = True) -> VLPMethod:
    """The method with its encoders; without an optimiser when `train` is false."""
    own = {k: v for k, v in cfg.method.items() if k not in ("name", "inputs")}
    optimizer = instantiate(cfg.optimizer, _convert_="all") if train else None
    built: VLPMethod = instantiate(
        own, vision=vision(cfg.vision), text=text(cfg.text), optimizer=optimizer, _convert_="all", _recursive_=False
    )
    return built


def task(cfg: DictConfig) -> Task:
    """The downstream task of the section `task`."""
    made: Task = instantiate({k: v for k, v in cfg.task.items() if k != "name"}, _convert_="all")
    return made


def inputs(cfg: DictConfig) -> Inputs:
    """What the method reads."""
    try:
        return Inputs(**plain(cfg.method.inputs))
    except TypeError as error:
        raise UserError(f"method.inputs: {error}. Known keys: {', '.join(Inputs.__dataclass_fields__)}.") from error


def trainer(cfg: DictConfig, out: Path, callbacks: list[Callback], logger: list[Logger] | bool, **more: Any) -> Trainer:
    """The Trainer of the section `trainer`, writing under `out`."""
    arguments = plain(cfg) | more
    arguments.pop("_target_")
    quiet()
    return Trainer(
        default_root_dir=out,
        callbacks=callbacks,
        logger=logger,
        # the samplers deal to the ranks themselves
        use_distributed_sampler=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[WholeCheckpoints()],
        **arguments,
    )


def one_device(cfg: DictConfig) -> dict[str, Any]:
    """What makes a Trainer of this section one of a single device, the first that it names: no sample is seen twice."""
    devices = list(cfg.devices)[:1] if OmegaConf.is_list(cfg.devices) else 1
    return {"devices": devices, "num_nodes": 1, "strategy": "auto"}


def quiet() -> None:
    """Keep Lightning's advertisements and the warnings about what is meant out of people's consoles."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        # a frozen encoder is in eval mode on purpose
        "Found .* module\\(s\\) in eval mode at the start of training.*",
        # a run that ends before its first validation has no best epoch; the last one is exported then
        ".*could not find the monitored key.*",
        # the number of workers is the user's to set; on two cores none is the fastest
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def loggers(cfg: DictConfig, out: Path, meta: Mapping[str, Any]) -> list[Logger]:
    """CSV always; wandb when asked for, with numbers and configuration only."""
    return [Curves(out / "metrics.csv"), *tracking.wandb(cfg, out, meta)]


def encoders(cfg: DictConfig) -> Encoders:
    """What `backbone=` names: a run or bundle directory, a checkpoint, `random`, or `timm:NAME`.

    Raises:
        UserError: it names nothing, or what it names cannot be read.
    """
    reference = str(cfg.backbone)
    if reference == "random":
        meta = {"method": "random", "name": f"random {cfg.vision.name}", "pretrain_seed": cfg.get("seed")}
        return Encoders({"vision": vision(cfg.vision)}, meta)
    if reference.startswith("timm:"):
        name = reference.removeprefix("timm:")
        size = int(cfg.vision.image_size)
        backbone = VisionBackbone(name, image_size=size, weights=str(cfg.weights))
        kind = "random" if cfg.weights == "none" else "imagenet"
        return Encoders({"vision": backbone}, {"method": kind, "name": f"{kind} {name}"})
    path = Path(reference)
    if path.is_dir():
        return load(path, tuple(cfg.get("trust", ())))
    if path.is_file():
        return from_checkpoint(path)
    raise UserError(
        f"backbone={reference}: no such run, bundle or checkpoint. Give a run directory of pretrain, a bundle, a "
        "checkpoint of vlp-bench, random, or timm:NAME."
    )


def from_checkpoint(path: Path) -> Encoders:
    """The encoders of a checkpoint that a pre-training run of ours wrote.

    Raises:
        UserError: it is no checkpoint, or not one of ours.
    """
    try:
        checkpoint = torch.load(path, "cpu", weights_only=True)
        record = checkpoint["vlp_bench"]
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint of vlp-bench ({str(error).splitlines()[0][:120]}). "
            "For weights of a timm model use backbone=timm:NAME weights=PATH."
        ) from error
    cfg = OmegaConf.create(record["config"])
    built = method(cfg, train=False)
    built.load_state_dict(checkpoint["state_dict"])
    return Encoders(built.parts(), record["meta"])
