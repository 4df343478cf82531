"""Whether training waits for data, and what two processes cost beside one, at the sizes of the tests.

    python benchmarks/throughput.py [--studies 400] [--epochs 4] [--pairs 3] [--out docs/throughput.md]

Data wait: runs of `vlp-bench pretrain` with 0, 2 and 4 loader processes, one after the other in this process, on one
thread. The share is that of the whole time of all steps, with the beginnings of epochs, not a median.

Two processes: a run of two gloo processes with a thread each, beside two runs of the same batch at the same time, which
keep the same processors busy and never talk. Two ratios, medians over pairs of runs that follow each other: of the step
by the clock, and of the processor time of a process and step, in which other work on the machine is not.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median

import torch
from page import put

from vlp_bench.config import compose_verb
from vlp_bench.engine import pretrain
from vlp_bench.engine.progress import bars
from vlp_bench.report.tables import pipe_table

#: with light steps, for which data come late first
METHODS = ("convirt", "lsp")
WORKERS = (0, 2, 4)
SIZES = ["vision=tiny", "trainer=cpu", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"]
#: of each of two processes
BATCH, STEPS = 16, 30


def rows(run: Path) -> list[dict[str, float]]:
    """What `throughput.csv` of a run says, row by row."""
    with (run / "throughput.csv").open(newline="") as file:
        return [{k.rpartition("/")[2]: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def waiting(method: str, workers: int, folder: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Data wait of a run, and its median step in seconds."""
    run = folder / f"{method}-{workers}"
    sizes = [f"data.studies={arguments.studies}", f"trainer.max_epochs={arguments.epochs}"]
    chosen = [f"method={method}", f"data.num_workers={workers}", f"paths.cache={folder / 'cache'}"]
    pretrain.run(compose_verb("pretrain", [*SIZES, *sizes, *chosen]), run)
    found = rows(run)
    total = sum(row["step_s"] for row in found)
    return sum(row["data_wait"] * row["step_s"] for row in found) / total, median(row["step_s"] for row in found)


def step(folder: Path, name: str, runs: int, devices: int) -> tuple[float, float]:
    """Seconds of a step by the clock and of processor time, of so many runs at the same time."""
    command = [sys.executable, "-m", "vlp_bench", "pretrain", *SIZES, "method=convirt", f"data.batch_size={BATCH}"]
    command += [
        "data.studies=400",
        "data.num_workers=0",
        f"paths.cache={folder / 'cache'}",
        f"trainer.devices={devices}",
    ]
    command += [f"trainer.max_steps={STEPS}", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "select=last"]
    command += ["trainer.strategy=ddp"] if devices > 1 else []
    places = [folder / f"{name}-{i}" for i in range(runs)]
    started = [
        subprocess.Popen(
            [*command, f"paths.output_root={place}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for place in places
    ]
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(said.decode()[-2000:])
    found = [next(place.glob("pretrain/*")) for place in places]
    clock = median(row["step_s"] for run in found for row in rows(run))
    work = median(json.loads((run / "run.json").read_text())["training"]["cpu_seconds"] for run in found)
    return clock, work / STEPS


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Both tables."""
    with bars() as display:
        bar = display.add_task("data wait", total=len(METHODS) * len(WORKERS) + 2 * arguments.pairs)
        table = []
        for method in METHODS:
            found = []
            for workers in WORKERS:
                found.append(waiting(method, workers, folder, arguments))
                display.console.print(f"{method}, {workers} workers: data wait {found[-1][0]:.3f}")
                display.advance(bar)
            table.append([f"`{method}`", f"{1000 * found[-1][1]:.0f}", *(f"{100 * wait:.1f} %" for wait, _ in found)])
        wait = pipe_table(["method", "step, ms", *(f"{n} workers" for n in WORKERS)], table)
        ratios = []
        for pair in range(arguments.pairs):
            display.update(bar, description=f"two processes, {pair + 1} of {arguments.pairs}")
            apart = step(folder, f"apart{pair}", 2, 1)
            display.advance(bar)
            joined = step(folder, f"joined{pair}", 1, 2)
            display.advance(bar)
            ratios.append([a / b for a, b in zip(joined, apart, strict=True)])
            display.console.print(f"step of two that talk {joined}, of two that do not {apart} (clock, processor)")
    said = [f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in zip(*ratios, strict=True)]
    return {"wait": wait, "processes": pipe_table(["step by the clock", "processor time"], [said])}


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a page whose tables are to be replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # four workers on two processors are what is asked
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as folder:
        tables = measure(Path(folder), arguments)
    for name, table in tables.items():
        print(table)
        if arguments.out:
            put(arguments.out, table, name)


if __name__ == "__main__":
    main()
