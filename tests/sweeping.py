"""Jobs of a sweep that take no time, and a launcher of them to be killed: no test."""

import sys
from pathlib import Path

from vlp_bench.engine.sweep import Job, Ledger, Machine, Runner

#: A job: says in `begun` that it has been begun and on which GPUs, then does what it is told, then leaves its product.
SCRIPT = 'mkdir -p "$0"; echo "$CUDA_VISIBLE_DEVICES" >> "$0/begun"; {then}; echo 1 > "$0/product"'


def job(folder, name, then="true", gpus=0, number=0):
    directory = folder / "runs" / name
    command = ("/bin/sh", "-c", SCRIPT.format(then=then), str(directory))
    return Job(name, number, (f"name={name}",), directory, command, "product", gpus)


def begun(folder, name):
    path = folder / "runs" / name / "begun"
    return path.read_text().splitlines() if path.exists() else []


def states(folder):
    return {r["name"]: r["state"] for r in Ledger(folder / "sweep").records()}


def run(folder, jobs, machine=None, **more):
    return Runner(Ledger(folder / "sweep"), machine or Machine(), **more).run(jobs)


if __name__ == "__main__":
    here, what = Path(sys.argv[1]), sys.argv[2]
    run(here, [job(here, name, what) for name in "abcdef"], Machine(jobs=2))
