"""How fast a run is, and what it waits for: images and words a second, data wait, memory, FLOPs beside the peak."""

import resource
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vlp_bench.distributed import gather
from vlp_bench.engine.curves import Curves

#: Dense peaks in FLOP/s by a part of the device's name: (float32, TF32, 16 bit), from NVIDIA's data sheets, where
#: figures with sparsity are halved. Lightning's table does not know an H200 by the name that its driver gives.
PEAKS = {
    "H200": (67e12, 494e12, 989e12),
    "H100 PCIe": (51e12, 378e12, 756e12),
    "H100 NVL": (60e12, 417e12, 835e12),
    "H100": (67e12, 494e12, 989e12),
    "A100": (19.5e12, 156e12, 312e12),
    "A40": (37.4e12, 74.8e12, 149.7e12),
    "L40S": (91.6e12, 183e12, 362e12),
    "L4": (30.3e12, 60e12, 121e12),
    "V100": (15.7e12, 15.7e12, 125e12),
    "T4": (8.1e12, 8.1e12, 65e12),
}
#: side of the product by which a processor's peak is measured
SIDE = 768


class Clock(Protocol):
    """Takes marks while work is being done, and says later how far they are apart."""

    def mark(self) -> Any:
        """Now."""

    def settle(self) -> None:
        """Wait until the last mark is reached."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two marks."""


class HostClock:
    """For processors, whose work is done when a call returns."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def settle(self) -> None:
        """Nothing to wait for."""

    def seconds(self, begin: float, end: float) -> float:
        """Seconds between two marks."""
        return end - begin


class CudaClock:
    """For GPUs: marks travel along with the work, so that nothing waits for them but `settle`.

    A GPU that is still busy while the host fetches a batch reaches both marks of the fetch at once: only what it
    really idles counts.
    """

    def mark(self) -> torch.cuda.Event:
        """Behind what was asked for so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.current_stream().synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Seconds between two marks."""
        return begin.elapsed_time(end) / 1000


class Flops(TorchDispatchMode):
    """Counts the FLOPs of what is computed inside, backward passes too, by torch's formulas.

    They are those of products, convolutions and attention, two for a multiplication with its addition.

    Not `FlopCounterMode`, whose hooks on modules fail at a layer that is called without gradient inside one with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


class _Overheard:
    """A profiler that also tells somebody when the training loop begins and ends to ask for a batch."""

    def __init__(self, profiler: Any, told: "Throughput") -> None:
        self.profiler, self.told = profiler, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.profiler, name)

    def start(self, action: str) -> None:
        """Pass on, and listen."""
        self.profiler.start(action)
        if action.endswith("train_dataloader_next"):
            self.told.fetching = self.told.clock.mark()

    def stop(self, action: str) -> None:
        """Pass on, and listen."""
        if action.endswith("train_dataloader_next"):
            self.told.fetched = self.told.clock.mark()
        self.profiler.stop(action)


class Throughput(Callback):
    """Writes `throughput.csv`, a row every `log_every_n_steps` optimiser steps, and sends it to other loggers.

    A step lasts from where the loop asks for a batch to its end, without logging, checkpoints and validation. The first
    batch of a process is left out: there, the FLOPs of a step, forward and backward, are counted. Nothing waits for a
    GPU but the end of a window. The columns:

        throughput/images_per_s   images of all processes
        throughput/tokens_per_s   word pieces of all processes that are no padding
        throughput/data_wait      share of the time in which the slowest process had no batch, 0 to 1
        throughput/memory_gb      peak so far of the fullest process, 10^9 bytes: allocated on its GPU, or resident
        throughput/mfu            FLOPs of the first batch / time of a step / peak of the device (see `peak`), 0 to 1
        throughput/step_s         seconds of a batch

    They are not in `metrics.csv`, which is the same on every machine.

    Args:
        out: the run's directory.
        clock: instead of that of the device.
    """

    def __init__(self, out: Path, clock: Clock | None = None) -> None:
        self.curves = Curves(out / "throughput.csv")
        self.chosen = clock
        self.clock: Clock = clock or HostClock()
        self.before = {"wall_seconds": 0.0, "cpu_seconds": 0.0}
        self.begun = (0.0, 0.0)
        self.fetching: Any = None
        self.fetched: Any = None
        self.marks: list[tuple[Any, Any, Any]] = []
        self.images: Any = 0
        self.tokens: Any = 0
        self.flops, self.peak = 0, 0.0
        self.counter = Flops()
        #: what is to be undone after the first batch, and in the end
        self.counting, self.listening = ExitStack(), ExitStack()
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """The time so far."""
        return dict(self.spent())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the time of the interrupted run."""
        self.before = dict(state_dict)

    def spent(self) -> dict[str, float]:
        """Seconds of training by the clock and of the main process, in all parts of the run that were kept."""
        now = (time.monotonic(), time.process_time())
        return {k: self.before[k] + now[i] - self.begun[i] for i, k in enumerate(self.before)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to count the time."""
        self.begun = (time.monotonic(), time.process_time())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, and keep the rows up to here of an interrupted run."""
        device = trainer.strategy.root_device
        if self.chosen is None and device.type == "cuda":
            self.clock = CudaClock()
            torch.cuda.reset_peak_memory_stats(device)
        self.step = trainer.global_step
        self.curves.keep_until(self.step)
        profiler = trainer.profiler  # type: ignore[attr-defined]
        self.listening.callback(setattr, trainer, "profiler", profiler)
        trainer.profiler = _Overheard(profiler, self)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the FLOPs of the first batch."""
        if not self.flops:
            self.peak = peak(trainer.strategy.root_device, _precision(trainer))
            self.counting.enter_context(self.counter)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch, and write a row if one is due."""
        if not self.flops:
            self.counting.close()
            self.flops = max(self.counter.total, 1)
            self.step = trainer.global_step
            return
        self.marks.append((self.fetching, self.fetched, self.clock.mark()))
        self.images = self.images + _images(batch)
        if (text := getattr(batch, "text", None)) is not None:
            self.tokens = self.tokens + text.mask.sum()
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            if self.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self.write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        if self.marks:
            self.write(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        self.counting.close()
        self.listening.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same; Lightning tears nothing down then."""
        self.teardown(trainer, pl_module, "fit")

    def write(self, trainer: Trainer) -> None:
        """End a window: the one place where a GPU is waited for and the processes talk."""
        self.clock.settle()
        spans = [(self.clock.seconds(a, c), self.clock.seconds(a, b)) for a, b, c in self.marks]
        busy, wait = (sum(times) for times in zip(*spans, strict=True))
        device = trainer.strategy.root_device
        own = [busy, wait, float(self.images), float(self.tokens), memory(device), len(self.marks)]
        row = _row(gather(torch.tensor([own], device=device)).cpu(), self.flops, self.peak)
        self.marks, self.images, self.tokens = [], 0, 0
        # Lightning, too, numbers a step from 0
        step = trainer.global_step - 1
        self.curves.log_metrics({"epoch": trainer.current_epoch, **row}, step)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if not isinstance(logger, Curves):
                    logger.log_metrics(row, step)

    def summary(self) -> dict[str, float]:
        """The median of each column over all rows, of every part of the run; of memory the largest."""
        found: dict[str, float] = {}
        for column in dict.fromkeys(k for row in self.curves.rows for k in row if k.startswith("throughput/")):
            values = [float(row[column]) for row in self.curves.rows if row.get(column) not in (None, "")]
            if values:
                found[column.partition("/")[2]] = max(values) if column.endswith("memory_gb") else median(values)
        return {k: float(f"{v:.4g}") for k, v in found.items()}


def _row(everybody: torch.Tensor, flops: int, peak: float) -> dict[str, float]:
    """One row of all processes, from (seconds, of which waiting, images, tokens, memory, batches) of each."""
    seconds, wait, images, tokens, memory, batches = everybody.unbind(1)
    # the processes go in step: what one of them lacks, all wait for
    time = max(float(seconds.max()), 1e-9)
    row = {
        "images_per_s": float(images.sum()) / time,
        "tokens_per_s": float(tokens.sum()) / time,
        "data_wait": float((wait / seconds.clamp(min=1e-9)).max()),
        "memory_gb": float(memory.max()),
        "step_s": time / float(batches[0]),
    }
    if peak:
        row["mfu"] = flops * float(batches[0]) / time / peak
    if not row["tokens_per_s"]:
        del row["tokens_per_s"]
    return {f"throughput/{k}": v for k, v in row.items()}


def _images(batch: Any) -> Any:
    """How many images a batch has; of studies with several views, those that are there. May be on the device."""
    present = getattr(batch, "view_mask", None)
    return len(batch.image) if present is None else present.sum()


def _precision(trainer: Trainer) -> torch.dtype:
    precision = str(trainer.precision)
    return torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32


def memory(device: torch.device) -> float:
    """Peak of this process so far, in 10^9 bytes: what torch allocated on its GPU, or what it holds in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device can do: from `PEAKS`, or of a processor what a large product reaches; 0 if unknown."""
    if device.type == "cpu":
        return _measured_peak(dtype, torch.get_num_threads())
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    plain, tf32, half = next((v for k, v in PEAKS.items() if k in name), (0.0, 0.0, 0.0))
    if dtype != torch.float32:
        return half
    return plain if torch.get_float32_matmul_precision() == "highest" else tf32


@cache
def _measured_peak(dtype: torch.dtype, threads: int) -> float:
    x = torch.ones(SIDE, SIDE, dtype=dtype)
    took = []
    for _ in range(10):
        begin = time.perf_counter()
        x @ x
        took.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(took)
