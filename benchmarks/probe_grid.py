"""The grid of 1, 10 and 100 % of the labels x 5 subsets: a probe trained by steps beside the one on kept features.

    python benchmarks/probe_grid.py [--studies 1200] [--backbone random] [--out docs/performance.md]

Both evaluate the same encoder on the same synthetic target, with everything that a run does: reading, training, choice
on validation, 1000 resamples, files. The target is drawn and prepared before.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from page import put
from scipy.special import stdtrit

from vlp_bench.config import compose_verb, run_name
from vlp_bench.engine import evaluate
from vlp_bench.report.tables import pipe_table

FRACTIONS, DRAWS = (0.01, 0.1, 1.0), range(5)


def cell(adaptation: str, fraction: float, draw: int, runs: Path, options: list[str]) -> dict:
    """The result of one cell, which is run."""
    overrides = [f"adaptation={adaptation}", f"label_fraction={fraction}", f"draw={draw}", *options]
    cfg = compose_verb("evaluate", [*overrides, f"paths.output_root={runs}", "trainer=cpu", "pictures=0"])
    out = evaluate.run(cfg, runs / run_name(cfg))
    return json.loads((out / "result.json").read_text())


def grid(adaptation: str, runs: Path, options: list[str]) -> tuple[float, dict[float, list[dict]]]:
    """Seconds, and the results by fraction; all labels can be drawn in one way only."""
    start = time.perf_counter()
    found = {
        f: [cell(adaptation, f, d, runs, options)["metrics"]["auroc"] for d in DRAWS if f < 1 or d == 0]
        for f in FRACTIONS
    }
    return time.perf_counter() - start, found


def main() -> None:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1200)
    parser.add_argument("--backbone", default="random")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"backbone={arguments.backbone}",
            f"target.studies={arguments.studies}",
            "vision=resnet18",
            "vision.image_size=64",
        ]
        options.append(f"paths.cache={Path(folder) / 'cache'}")
        # draws and prepares the target
        cell("probe_cached", 1.0, 0, Path(folder) / "warm", [*options, "resamples=0"])
        for kept in (Path(folder) / "cache" / "features").glob("*"):
            kept.unlink()
        seconds, cached = grid("probe_cached", Path(folder) / "cached", options)
        trained_seconds, trained = grid("probe", Path(folder) / "trained", options)
    rows = []
    for fraction in FRACTIONS:
        values = np.array([e["value"] for e in trained[fraction]])
        mean, other = values.mean(), np.mean([e["value"] for e in cached[fraction]])
        # as in the report: of several subsets a t-interval, of one run its bootstrap interval
        low, high = trained[fraction][0]["low"], trained[fraction][0]["high"]
        if len(values) > 1:
            half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5
            low, high = mean - half, mean + half
        rows.append((f"{fraction:.0%}", f"{mean:.3f} ({low:.3f} to {high:.3f})", f"{other:.3f}"))
    table = pipe_table(("labels", "trained by steps (95 % interval)", "on kept features"), rows)
    text = (
        f"The whole grid of {sum(map(len, cached.values()))} cells: {trained_seconds:.0f} s trained by steps, "
        f"{seconds:.1f} s on kept features, {trained_seconds / seconds:.0f} times faster. AUROC, mean over subsets:\n"
    )
    print(f"{text}\n{table}")
    if arguments.out:
        put(arguments.out, f"{text}\n{table}", "probes")


if __name__ == "__main__":
    main()
