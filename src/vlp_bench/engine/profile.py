"""`doctor profile=true`: what a training step costs on this machine, what bounds it, and how long a recipe takes."""

import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vlp_bench.config import compose_verb, plain
from vlp_bench.data.datamodule import EpochBatches
from vlp_bench.data.store import PreparedData
from vlp_bench.encoders.bundle import stored_size
from vlp_bench.encoders.chunks import cache_gradients
from vlp_bench.engine import build, pretrain
from vlp_bench.engine.data import ensure
from vlp_bench.engine.progress import bars, duration
from vlp_bench.engine.throughput import Clock, CudaClock, HostClock, Throughput
from vlp_bench.errors import UserError
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import StudyBatch, Tokens

#: above this share of the step, data bounds a run
WAIT = 0.05
#: Studies of the official training split of MIMIC-CXR: Chen et al., EMNLP 2020 (R2Gen), table 1; with its 1,808 and
#: 3,269 of validation and test they make the 227,835 that PhysioNet counts.
MIMIC_CXR = 222_758
#: worker processes that are tried, beside the number asked for
WORKERS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Profile:
    """Seconds a batch of each part.

    Args:
        whole: the training step with the data path, as pre-training runs it.
        wait: share of `whole` in which there was no batch.
        held: the training step with one batch that is in memory.
        parts: encoders alone, forward and backward, by name; forward alone for one that is frozen.
        data: the data path alone, by number of worker processes.
        workers: how many were asked for.
        more: other figures of the whole step, as `Throughput.summary` has them.
    """

    whole: float
    wait: float
    held: float
    parts: dict[str, float]
    data: dict[int, float]
    workers: int
    more: dict[str, float] = field(default_factory=dict)

    def verdict(self) -> str:
        """What bounds the run, and what to do about it, in a sentence."""
        if self.wait > WAIT:
            # what the main process fetches itself is not hidden behind the model
            enough = [n for n, s in self.data.items() if s < self.held * (1 if n else WAIT) and n != self.workers]
            if enough:
                remedy = f"set data.num_workers={min(enough)}, which keeps up with the model (now {self.workers})"
            else:
                remedy = "no other number of workers that was tried keeps up: more processors, or a faster disk"
            return f"Data bound the run, {self.wait:.0%} of whose time is spent waiting for them: {remedy}."
        shares = {name: seconds / self.held for name, seconds in self.parts.items()}
        name = max(shares, key=lambda n: shares[n])
        if shares[name] < 0.5:
            return (
                f"The model bounds the run, data wait is {self.wait:.1%}: heads, losses and optimiser more than its "
                f"encoders ({', '.join(f'{n} {share:.0%}' for n, share in shares.items())})."
            )
        return (
            f"The {name} bounds the run ({shares[name]:.0%} of a step), data wait is {self.wait:.1%}: more workers "
            "would not help; 16 bit (trainer=gpu_bf16), a smaller network or more devices would."
        )


def profile(cfg: DictConfig) -> Profile:
    """Measure, and print what was found.

    Raises:
        UserError: the configuration or the data cannot be used.
    """
    build.verify(cfg)
    if not (isinstance(cfg.profile_steps, int) and cfg.profile_steps > 0):
        raise UserError(f"profile_steps={cfg.profile_steps}: expected how many steps are measured, from 1.")
    for logger in ("vlp_bench", "pytorch_lightning"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    build.seed(cfg.seed)
    store, absent = _data(cfg)
    module = build.method(cfg)
    cache_gradients(module, cfg.gradient_cache)
    data = pretrain.data_module(cfg, store, module)
    tried = sorted({cfg.data.num_workers, *(n for n in WORKERS if n <= len(os.sched_getaffinity(0)))})
    kinds = 3 + (module.text is not None) + len(tried)
    with bars() as display, tempfile.TemporaryDirectory() as folder:
        found = _measure(cfg, module, data, tried, Path(folder), _Announced(display, kinds))
    sampler: EpochBatches = data.train_dataloader().sampler  # type: ignore[assignment]
    print(_title(cfg))
    # a file has no width of its own
    Console(width=None if sys.stdout.isatty() else 120).print(_table(cfg, found, module))
    for line in (
        _figures(found),
        *absent,
        found.verdict(),
        *_projections(cfg, found, None if absent else sampler.size),
    ):
        print(line)
    return found


class _Announced:
    """A bar with a step for each kind of measurement."""

    def __init__(self, display: Progress, kinds: int) -> None:
        self.display, self.bar = display, display.add_task("profile", total=kinds)

    def __call__(self, what: str, work: Callable[[], Any]) -> Any:
        """Say what is being measured, and measure."""
        self.display.update(self.bar, description=what)
        found = work()
        self.display.advance(self.bar)
        return found


def _data(cfg: DictConfig) -> tuple[PreparedData, list[str]]:
    """The prepared data, or synthetic ones in their place, which is then said."""
    data, size, said = plain(cfg.data), stored_size(cfg.vision.image_size), []
    if not (data["dir"] or data["raw_dir"] or data.get("layout")):
        synthetic = plain(compose_verb("pretrain", ["data=synthetic"]).data)
        # some steps between two ends of an epoch, where workers begin anew
        studies = max(128, int(data["batch_size"]) * 8)
        said = [
            f"data={data['name']} has no data.dir here: measured on {studies} synthetic studies, whose reports are "
            "shorter than real ones."
        ]
        data = synthetic | {"studies": studies, "batch_size": data["batch_size"]}
    return ensure(data, Path(cfg.paths.cache), size), said


def _measure(
    cfg: DictConfig, module: VLPMethod, data: Any, tried: list[int], folder: Path, announced: _Announced
) -> Profile:
    steps = cfg.profile_steps
    whole, _ = announced("training step", lambda: _fit(cfg, module, steps, folder, datamodule=data))
    batch = next(iter(data.train_dataloader()))
    # every batch is this one, so that nothing is fetched
    same = DataLoader(_Held(batch, steps + 2), batch_size=None)
    held, trainer = announced(
        "batch in memory", lambda: _fit(cfg, module, steps, folder, train_dataloaders=same, val_dataloaders=same)
    )
    images = batch.image[batch.view_mask]
    parts = {"image encoder": announced("image encoder", lambda: _encoder(trainer, module.vision, images, steps))}
    if (text := module.text) is not None:
        parts["text encoder"] = announced("text encoder", lambda: _encoder(trainer, text, batch.text, steps))
    alone = {}
    for workers in tried:
        data.num_workers = workers
        alone[workers] = announced(f"data, {workers} workers", lambda: _fetch(data.train_dataloader(), steps))
    return Profile(whole["step_s"], whole["data_wait"], held["step_s"], parts, alone, int(cfg.data.num_workers), whole)


class _Held(Dataset[StudyBatch]):
    """One batch, again and again."""

    def __init__(self, batch: StudyBatch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> StudyBatch:
        if index >= self.times:
            raise IndexError(index)
        return self.batch


def _fit(cfg: DictConfig, module: VLPMethod, steps: int, folder: Path, **data: Any) -> tuple[dict[str, float], Trainer]:
    """Train for so many steps and one to warm up, on one device; what was measured, and the Trainer."""
    meter = Throughput(folder)
    changed = {
        "max_steps": steps + 1,
        "max_epochs": -1,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "devices": list(cfg.trainer.devices)[:1] if OmegaConf.is_list(cfg.trainer.devices) else 1,
        "num_nodes": 1,
        "strategy": "auto",
    }
    trainer = build.trainer(cfg.trainer, folder, [meter], False, **changed)
    trainer.fit(module, **data)
    return meter.summary(), trainer


def _encoder(trainer: Trainer, encoder: nn.Module, given: Tensor | Tokens, steps: int) -> float:
    """Seconds that an encoder takes for its part of a batch, forward and backward."""
    device = trainer.strategy.root_device
    clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
    encoder.to(device).train()
    given = given.to(device)
    marks = []
    for _ in range(steps + 1):
        begin = clock.mark()
        with trainer.precision_plugin.forward_context():
            found = encoder(given)
            wanted = found.pooled.float().sum() + found.tokens.float().sum()
        if wanted.requires_grad:
            wanted.backward()
            encoder.zero_grad()
        marks.append((begin, clock.mark()))
    clock.settle()
    return statistics.median(clock.seconds(*mark) for mark in marks[1:])


def _fetch(loader: DataLoader, steps: int) -> float:
    """Seconds a batch of a loader that nobody is slower than, when it runs."""
    # what workers have prepared while they were started is not their speed
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    batches = islice(_for_ever(loader), ahead + 1 + max(steps, 2 * ahead))
    for _ in range(ahead + 1):
        next(batches)
    begin = time.perf_counter()
    number = sum(1 for _ in batches)
    return (time.perf_counter() - begin) / number


def _for_ever(loader: DataLoader) -> Iterator[StudyBatch]:
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def _table(cfg: DictConfig, found: Profile, module: VLPMethod) -> Table:
    """All that was measured."""
    batch = int(cfg.data.batch_size)
    table = Table("part", "s a batch", "samples/s", "of the step")
    rows = {"training step": found.whole, "  with its batch in memory": found.held}
    rows |= {f"  {name} alone{_frozen(module, name)}": seconds for name, seconds in found.parts.items()}
    rows |= {f"data alone, {n} workers": seconds for n, seconds in found.data.items()}
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.4g}", f"{batch / seconds:,.1f}", f"{seconds / found.whole:.0%}")
    return table


def _figures(found: Profile) -> str:
    """What is measured of the step as a whole."""
    more = found.more
    tokens = f", {more['tokens_per_s']:,.0f} word pieces" if "tokens_per_s" in more else ""
    mfu = f", {more['mfu']:.0%} of the device's peak" if "mfu" in more else ""
    return f"{more['images_per_s']:,.1f} images{tokens} a second{mfu}; {more['memory_gb']:.1f} GB at most"


def _frozen(module: VLPMethod, name: str) -> str:
    encoder = module.text if name.startswith("text") else module.vision
    return "" if encoder is None or any(p.requires_grad for p in encoder.parameters()) else " (frozen: forward)"


def _title(cfg: DictConfig) -> str:
    return (
        f"{cfg.method.name}, {cfg.vision.name} at {cfg.vision.image_size} px, text {cfg.text.name}, batch of "
        f"{cfg.data.batch_size}, {cfg.trainer.precision}, on one {_device(cfg)}"
    )


def _device(cfg: DictConfig) -> str:
    if cfg.trainer.accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"processor ({torch.get_num_threads()} threads)"


def _devices(cfg: DictConfig) -> int:
    """How many the configuration trains on."""
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        number = len(devices)
    else:
        number = int(devices) if str(devices).lstrip("-").isdigit() else 1
    if number < 0:
        number = max(torch.cuda.device_count(), 1)
    return number * int(cfg.trainer.num_nodes)


def _projections(cfg: DictConfig, found: Profile, samples: int | None) -> Iterator[str]:
    """How long the whole takes on the data at hand, and where these are synthetic, on MIMIC-CXR."""
    if samples is not None:
        yield _projection(cfg, found, cfg.data.name, samples, "samples")
    if samples is None or cfg.data.get("layout"):
        yield _projection(cfg, found, "MIMIC-CXR", MIMIC_CXR, "studies, one sample each")


def _projection(cfg: DictConfig, found: Profile, name: str, number: int, unit: str) -> str:
    devices = _devices(cfg)
    batch = int(cfg.data.batch_size) * devices
    epochs, limit = int(cfg.trainer.max_epochs or -1), int(cfg.trainer.max_steps)
    if epochs > 0:
        long, batches = f"{epochs} epoch{'s' * (epochs > 1)}", number // batch * epochs
    else:
        long, batches = f"{limit:,} steps", limit * int(cfg.trainer.accumulate_grad_batches)
    if batches < 0:
        return f"{name}: neither trainer.max_epochs nor trainer.max_steps sets an end."
    here = "on this machine" if devices == 1 else f"on {devices} such devices, if they cost each other nothing"
    return (
        f"{name} ({number:,} training {unit}), {long} of batch {batch}: {duration(batches * found.whole)} {here} "
        f"({batches:,} batches of {found.whole:.3g} s; validation and checkpoints not counted)."
    )
