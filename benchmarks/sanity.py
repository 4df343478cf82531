"""Read the cells of `plan=sanity` and say whether pre-training helped: differences over seeds with a t-interval."""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats


def by_seed(runs: Path, task: str, method: str, metric: str) -> dict[int, float]:
    """The metric of every seed of a method."""
    found = {}
    for path in runs.glob("evaluate/*/result.json"):
        result = json.loads(path.read_text())
        if result["task"] == task and result["method"] == method:
            found[result["pretrain_seed"]] = result["metrics"][metric]["value"]
    return found


def main() -> None:
    """Print the comparison; exit with 1 where the interval of the difference holds zero."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/sanity"))
    runs = parser.parse_args().runs
    random = by_seed(runs, "classification", "random", "auroc")
    records = [json.loads(p.read_text()) for p in runs.glob("pretrain/*/run.json")]
    passed = True
    for method in sorted({r["method"] for r in records}):
        seconds = [r["training"]["cpu_seconds"] for r in records if r["method"] == method]
        mine = by_seed(runs, "classification", method, "auroc")
        seeds = sorted(mine.keys() & random.keys())
        gain = np.array([mine[s] - random[s] for s in seeds])
        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        passed &= bool(gain.mean() - half > 0)
        print(
            f"{method}: linear-probe AUROC {np.mean([mine[s] for s in seeds]):.3f}, random "
            f"{np.mean([random[s] for s in seeds]):.3f}; gain {gain.mean():+.3f} "
            f"[{gain.mean() - half:+.3f}, {gain.mean() + half:+.3f}] over {len(seeds)} seeds; "
            f"pre-training took {max(seconds):.0f} CPU seconds at most"
        )
        for path in runs.glob("evaluate/*/result.json"):
            result = json.loads(path.read_text())
            if result["task"] == "retrieval" and result["method"] == method:
                hit, chance = (result[k][result["primary"]]["value"] for k in ("metrics", "trivial"))
                seed, name = result["pretrain_seed"], result["primary"]
                print(f"  seed {seed}: {name} {hit:.3f}, chance {chance:.3f} ({hit / chance:.1f}x)")
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
