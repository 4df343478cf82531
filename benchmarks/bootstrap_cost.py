"""What intervals and comparisons cost on a test set as large as that of NIH ChestX-ray14.

    python benchmarks/bootstrap_cost.py [--images 22000] [--patients 8000] [--labels 14] [--out docs/performance.md]

Made-up scores and targets; patients have one image or more; prevalences from 1 to 45 %. The best of three repetitions.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from page import put

from vlp_bench.metrics import auroc_statistic, classification_metrics, delong, paired_bootstrap
from vlp_bench.metrics.bootstrap import Patients
from vlp_bench.report.tables import pipe_table


def best_of(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest repetition."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(images: int, patients: int, labels: int, resamples: int) -> list[tuple[str, str]]:
    """Time each way on the same made-up predictions of two backbones."""
    rng = np.random.default_rng(0)
    who = np.concatenate([np.arange(patients), rng.integers(0, patients, images - patients)])
    targets = (rng.random((images, labels)) < np.linspace(0.01, 0.45, labels)).astype(float)
    a, b = ((targets + 1.2 * rng.normal(size=targets.shape)).astype(np.float32) for _ in range(2))
    groups = Patients.of(who)
    names = [f"label {i}" for i in range(labels)]
    limits = np.zeros(labels)

    def difference() -> object:
        runs = [[auroc_statistic(scores, targets, groups)] for scores in (a, b)]
        return paired_bootstrap(runs, groups.count, resamples=resamples, width=images)

    ways: dict[str, Callable[[], object]] = {
        "intervals of AUROC, AUPRC, F1 and accuracy, macro and per label": lambda: classification_metrics(
            a, targets, who, limits, labels=names, kind="multilabel", resamples=resamples
        ),
        "paired bootstrap of the macro AUROC of two backbones": difference,
        "DeLong of the same, clustered by patient": lambda: delong([[a], [b]], targets, who),
    }
    return [(name, f"{best_of(work):.2f}") for name, work in ways.items()]


def main() -> None:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=22_000)
    parser.add_argument("--patients", type=int, default=8_000)
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--out", type=Path, help="put the table into this page, in the place of the one it has")
    options = parser.parse_args()
    rows = measure(options.images, options.patients, options.labels, options.resamples)
    table = pipe_table(("what", "seconds"), rows)
    print(table, end="")
    if options.out:
        put(options.out, table, "bootstrap")


if __name__ == "__main__":
    main()
