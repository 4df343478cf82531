"""`vlp-bench pretrain` in a process of its own that is killed on the way. Imported by name there: no test."""

import os
import signal
import time
from pathlib import Path


def pretrain(folder: str, arguments: list[str]) -> None:
    """The command, in `folder`, quietly; the process exits with its code."""
    import torch

    from vlp_bench.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    quiet = os.open("out.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os._exit(main(["pretrain", *arguments]))


def start(context, folder: Path, arguments: list[str]):
    """Start it."""
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=pretrain, args=(str(folder), arguments))
    process.start()
    return process


def kill_at(process, folder: Path, step: int, number: signal.Signals, wait: float) -> int:
    """Send the signal so many seconds after the step is logged; the exit code."""
    while process.is_alive() and _logged(folder) < step:
        time.sleep(0.005)
    time.sleep(wait)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(120)
    return process.exitcode


def _logged(folder: Path) -> int:
    """Rows of the curve but its head."""
    return max((len(p.read_bytes().splitlines()) - 1 for p in folder.glob("runs/pretrain/*/metrics.csv")), default=0)
