"""What a plan will do: its cells, what is done, which data is not there, and about how many hours are left."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from rich.table import Table

from vlp_bench.config import plain
from vlp_bench.data.catalogue import names
from vlp_bench.data.remote import is_remote
from vlp_bench.data.store import PreparedData
from vlp_bench.encoders import bundle
from vlp_bench.encoders.chunks import cache_gradients
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine import build, evaluate, pretrain
from vlp_bench.engine.data import ensure
from vlp_bench.engine.keeping import SeededSteps
from vlp_bench.engine.progress import duration
from vlp_bench.errors import UserError

#: Steps that are timed, after those that warm up; and the most images of a batch that is timed.
STEPS, WARM, BATCH = 3, 1, 16
RECORDED, MEASURED, UNKNOWN = "finished ones", "measured now", "not known"


@dataclass
class Kind:
    """Jobs that cost alike: `left` are the configurations of those to be run."""

    name: str
    seconds: list[float] = field(default_factory=list)
    left: list[DictConfig] = field(default_factory=list)
    missing: int = 0
    hours: float | None = None
    source: str = ""

    @property
    def jobs(self) -> int:
        """All of them."""
        return len(self.seconds) + len(self.left) + self.missing


@dataclass(frozen=True)
class Outlook:
    """What is planned, by kind, and which data is not there."""

    kinds: tuple[Kind, ...]
    absent: Mapping[str, int]

    def table(self, title: str) -> Table:
        """For the console."""
        shown = Table("", "jobs", "done", "without data", "time left", "projected from", title=title)
        for kind in self.kinds:
            hours = "" if not kind.left else "?" if kind.hours is None else duration(3600 * kind.hours)
            counts = (str(kind.jobs), str(len(kind.seconds)), str(kind.missing or ""))
            shown.add_row(kind.name, *counts, hours, kind.source if kind.left else "")
        return shown

    def sentences(self) -> list[str]:
        """The sum, and what is missing."""
        done, jobs = sum(len(k.seconds) for k in self.kinds), sum(k.jobs for k in self.kinds)
        left = [k for k in self.kinds if k.left]
        known = sum(k.hours for k in left if k.hours is not None)
        unsure = sum(len(k.left) for k in left if k.hours is None)
        said = f"{jobs} jobs, {done} done, {sum(len(k.left) for k in left)} to run"
        if left:
            said += f": about {known:.2g} hours on this machine" + (
                f", without {unsure} whose cost is not known" if unsure else ""
            )
        lines = [f"{said}."]
        if any(k.source == MEASURED for k in left):
            lines.append(
                f"Measured: {STEPS} steps of each pre-training, and of each encoder for the cells; heads of "
                "segmentation and detection are not in it, early stops neither."
            )
        return lines + [f"Not there: {what} ({count} jobs will be left out)." for what, count in self.absent.items()]


def outlook(jobs: Iterable[tuple[str, DictConfig, Path]], measure: bool) -> Outlook:
    """Look at every job of a plan.

    Args:
        jobs: what a job is called with others of its kind, its configuration, its directory.
        measure: time a few steps where no finished job of the kind says what one costs.
    """
    kinds: dict[str, Kind] = {}
    absent: dict[str, int] = {}
    without: set[str] = set()
    networks: dict[str, DictConfig] = {}
    for name, cfg, out in jobs:
        if cfg.verb == "pretrain":
            networks[str(out)] = cfg.vision
        kind = kinds.setdefault(name, Kind(name))
        reason = missing_data(cfg)
        if (spent := _spent(cfg, out)) is not None:
            kind.seconds.append(spent)
        elif reason or str(cfg.get("backbone")) in without:
            kind.missing += 1
            without.add(str(out))
            reason = reason or "the pre-training data of a backbone"
            absent[reason] = absent.get(reason, 0) + 1
        else:
            kind.left.append(cfg)
    for kind in kinds.values():
        _project(kind, measure, networks)
    return Outlook(tuple(kinds.values()), absent)


def missing_data(cfg: DictConfig) -> str:
    """Which data a job would not find; nothing if it is there, or is made on the way."""
    group = "data" if cfg.verb == "pretrain" else "target"
    section = plain(cfg[group])
    name, place = section["name"], section.get("dir")
    if section.get("layout") or (place and is_remote(str(place))):
        return ""
    if place:
        there = (Path(place) / "manifest.json").is_file()
        known = section["reader"]["_target_"].split(".")[-2]
        hint = f": vlp-bench doctor data={known} says where it is to be had" if known in names() else ""
        return "" if there else f"{name}, prepared in {place}{hint}"
    if section.get("raw_dir"):
        return "" if Path(section["raw_dir"]).is_dir() else f"{name}, raw in {section['raw_dir']}"
    return f"{name}: {group}.dir is not given"


def _spent(cfg: DictConfig, out: Path) -> float | None:
    """Seconds that a finished job took; None of one that is not finished."""
    if cfg.verb == "pretrain":
        record = pretrain.finished(out)
        return None if record is None else float(record["training"].get("wall_seconds") or 0)
    result = evaluate.finished(out)
    return None if result is None else float(result["provenance"].get("wall_seconds") or 0)


def _project(kind: Kind, measure: bool, networks: Mapping[str, DictConfig]) -> None:
    known = [s for s in kind.seconds if s > 0]
    if not kind.left:
        return
    if known:
        kind.hours, kind.source = sum(known) / len(known) * len(kind.left) / 3600, RECORDED
        return
    kind.source = UNKNOWN
    if not measure:
        return
    try:
        if kind.left[0].verb == "pretrain":  # they differ in their seed alone
            kind.hours = _pretraining(kind.left[0]) * len(kind.left) / 3600
        else:
            kind.hours = sum(_cell(cfg, networks.get(str(cfg.backbone), cfg.vision)) for cfg in kind.left) / 3600
        kind.source = MEASURED
    except UserError as error:  # weights that cannot be had, say: the job itself will tell
        kind.source = f"{UNKNOWN} ({str(error)[:80]})"


class _Clock(Callback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def _pretraining(cfg: DictConfig) -> float:
    """Seconds of a pre-training run, from a few of its steps on one device; early stops are not foreseen."""
    build.verify(cfg)
    build.seed(cfg.seed)
    data = ensure(plain(cfg.data), Path(cfg.paths.cache), bundle.stored_size(cfg.vision.image_size))
    module = build.method(cfg)
    cache_gradients(module, cfg.gradient_cache)
    clock = _Clock()
    few: dict[str, Any] = {
        "max_steps": WARM + STEPS,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
    }
    few |= build.one_device(cfg.trainer) | {"accumulate_grad_batches": 1}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.trainer(
            cfg.trainer, Path(folder), [SeededSteps(cfg.seed), clock], False, enable_checkpointing=False, **few
        )
        trainer.fit(module, datamodule=pretrain.data_module(cfg, data, module))
        return _steps(cfg.trainer, trainer) * (clock.ends[-1] - clock.ends[WARM - 1]) / max(len(clock.ends) - WARM, 1)


def _steps(cfg: DictConfig, trainer: Trainer) -> float:
    """Batches that each process will see, where `trainer` counted those of an epoch on one."""
    count = cfg.devices if isinstance(cfg.devices, int) and cfg.devices > 0 else 1
    epoch = trainer.num_training_batches / (count * cfg.num_nodes)
    wanted = [cfg.max_steps * cfg.accumulate_grad_batches] if cfg.max_steps and cfg.max_steps > 0 else []
    wanted += [cfg.max_epochs * epoch] if cfg.max_epochs and cfg.max_epochs > 0 else []
    return float(min(wanted, default=epoch))


def _cell(cfg: DictConfig, network: DictConfig) -> float:
    """Seconds of a cell: images that pass the encoder, in training and without, times what one costs."""
    adaptation = plain(cfg.adaptation)
    section = plain(cfg.target)
    if section.get("dir") and not is_remote(str(section["dir"])):
        store = PreparedData(Path(section["dir"]), split=section["split"])
        train, val, test = (int(store.in_split(split).sum()) for split in ("train", "val", cfg.split))
    else:  # not prepared yet, so its size is that which is asked for
        whole = int(section.get("studies") or 0)
        train, val, test = round(0.6 * whole), round(0.15 * whole), round(0.25 * whole)
    timm = str(cfg.backbone).partition("timm:")[2]
    name, size = timm or str(network.name), int(network.image_size)
    forward, step = _image_seconds(name, size, bool(adaptation.get("trained_layers")), str(cfg.trainer.accelerator))
    if "epochs" not in adaptation or adaptation.get("cached"):
        return (train + val + test) * forward if adaptation.get("cached") else test * forward
    labelled = max(cfg.label_fraction * train, 1)
    batch = min(adaptation["batch_size"], labelled)
    seen = max(adaptation["epochs"] * labelled, (adaptation.get("min_steps") or 0) * batch)
    if adaptation.get("max_steps"):
        seen = adaptation["max_steps"] * batch
    rates = len(adaptation["lr"]) if isinstance(adaptation.get("lr"), Sequence) else 1
    return rates * (seen * step + adaptation["epochs"] * val * forward) + test * forward


@cache
def _image_seconds(name: str, size: int, trained: bool, accelerator: str) -> tuple[float, float]:
    """Seconds an image, forward alone and in a step of training."""
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    encoder = VisionBackbone(name, image_size=size, weights="none").to(device)
    pixels = torch.zeros(BATCH, 1, size, size, dtype=torch.uint8, device=device)

    def timed(train: bool) -> float:
        encoder.train(train)
        for i in range(WARM + STEPS):
            if i == WARM:
                start = _now(device)
            with torch.set_grad_enabled(train):
                pooled = encoder(pixels).pooled
            if train:
                pooled.sum().backward()
        return (_now(device) - start) / STEPS / BATCH

    forward = timed(False)
    return forward, timed(True) if trained else forward


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
