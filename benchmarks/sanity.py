"""Read the cells of `plan=sanity`: does pre-training help, do aligned encoders retrieve, does a decoder know language?

    vlp-bench benchmark plan=sanity && python benchmarks/sanity.py [--out docs/sanity.md]

Exits with 1 where a method's gain over the random encoder of the same seed has zero in its t-interval, where a method
that aligns images with reports finds the own report among five less than `FAR` times as often as chance, or where a
decoder's perplexity is not below that of a bigram model.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from page import put
from scipy import stats

from vlp_bench.config import plain
from vlp_bench.data.datamodule import EpochBatches, MimicCxrDataModule
from vlp_bench.encoders.bundle import stored_size
from vlp_bench.engine import build
from vlp_bench.engine.data import ensure
from vlp_bench.report.tables import pipe_table
from vlp_bench.types import StudyBatch

#: how many times chance is far above it
FAR = 4


class Gain(NamedTuple):
    """Differences over seeds: their mean with a 95 % t-interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "Gain":
        """Of at least two differences."""
        half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
        mean = differences.mean()
        return cls(float(mean), float(mean - half), float(mean + half))

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def records(runs: Path, pattern: str) -> list[dict[str, Any]]:
    """The JSON files that match."""
    return [json.loads(path.read_text()) for path in sorted(runs.glob(pattern))]


def bigram_perplexity(train: list[np.ndarray], val: list[np.ndarray], test: list[np.ndarray], size: int) -> float:
    """Of the words after the first of each test report; unigrams are mixed in with the share that val likes best.

    Args:
        train: ids of each report, int64.
        val: the same; chooses the mixture.
        test: the same; is judged.
        size: of the vocabulary.
    """
    pairs = np.zeros((size, size))
    for ids in train:
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    single = pairs.sum(0) + 1
    single /= single.sum()
    after = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)

    def nll(texts: list[np.ndarray], share: float) -> float:
        given = np.concatenate([t[:-1] for t in texts])
        word = np.concatenate([t[1:] for t in texts])
        return float(-np.log(share * single[word] + (1 - share) * after[given, word]).mean())

    best = min(np.linspace(0.01, 0.99, 50), key=lambda share: nll(val, share))
    return float(np.exp(nll(test, best)))


def perplexities(run: Path) -> tuple[float, float]:
    """Perplexity of a run's decoder on the test reports of its data, and that of a bigram model of the same words."""
    torch.set_num_threads(1)
    cfg = OmegaConf.load(run / "config.yaml")
    method = build.method(cfg, train=False)  # type: ignore[arg-type]
    method.load_state_dict(torch.load(run / "checkpoints" / "best.ckpt", "cpu", weights_only=True)["state_dict"])
    assert method.text is not None
    data = MimicCxrDataModule(
        ensure(plain(cfg.data), Path(cfg.paths.cache), stored_size(cfg.vision.image_size)),
        method.text.tokenizer,
        build.inputs(cfg),  # type: ignore[arg-type]
        image_size=cfg.vision.image_size,
        batch_size=32,
    )

    def batches(split: str) -> Iterator[StudyBatch]:
        samples = data.dataset(split, augment=False)
        order = EpochBatches(len(samples), 32, rank=0, world=1, seed=0, shuffle=False, drop_last=False)
        yield from map(samples.__getitem__, order)

    def texts(split: str) -> list[np.ndarray]:
        return [ids[mask].numpy() for b in batches(split) for ids, mask in zip(b.text.ids, b.text.mask, strict=True)]

    total, words = 0.0, 0
    with torch.inference_mode():
        for batch in batches("test"):
            count = int(batch.text.mask[:, 1:].sum())
            total += float(method.eval().losses(batch)["report"]) * count
            words += count
    return float(np.exp(total / words)), bigram_perplexity(
        texts("train"), texts("val"), texts("test"), len(method.text.tokenizer)
    )


def writes_words(bundle: Path) -> bool:
    """Whether it has a decoder of words."""
    facts = bundle / "decoder.json"
    return facts.exists() and json.loads(facts.read_text())["class"].endswith(":ReportDecoder")


class Cells:
    """The runs of the plan: what was pre-trained, and what was measured of it."""

    def __init__(self, runs: Path) -> None:
        self.trained = records(runs, "pretrain/*/run.json")
        self.results = records(runs, "evaluate/*/result.json")
        self.bundles: dict[str, list[Path]] = {}
        for path in sorted(runs.glob("pretrain/*/bundle/bundle.json")):
            self.bundles.setdefault(json.loads(path.read_text())["method"], []).append(path.parent)

    def values(self, task: str, method: str, metric: str, part: str = "metrics") -> dict[int, float]:
        """The metric of each seed of a method."""
        chosen = [r for r in self.results if r["task"] == task and r["method"] == method]
        return {r["pretrain_seed"]: r[part][metric]["value"] for r in chosen}

    def row(self, method: str, random: dict[int, float]) -> tuple[tuple[str, ...], list[str]]:
        """The line of a method in the table, and what it does not hold."""
        mine = self.values("classification", method, "auroc")
        seeds = sorted(mine.keys() & random.keys())
        gain = Gain.of(np.array([mine[s] - random[s] for s in seeds]))
        faults = [f"{method}: the gain {gain} does not exclude zero"] * (gain.low <= 0)
        faults += [f"{method}: {len(seeds)} seeds, expected 3"] * (len(seeds) != 3)
        hits, chance = (self.values("retrieval", method, "i2t/R@5", part) for part in ("metrics", "trivial"))
        times = {s: hits[s] / chance[s] for s in sorted(hits)}
        bundles = self.bundles.get(method, [])
        if all((b / "aligner.json").exists() for b in bundles):
            faults += [f"{method}: finds {t:.1f} times as often as chance" for t in times.values() if t < FAR]
        written = [perplexities(b.parent) for b in bundles if writes_words(b)]
        faults += [f"{method}: perplexity {p:.2f}, bigram {b:.2f}" for p, b in written if p >= b]
        line = (
            f"`{method}`",
            f"{np.mean([mine[s] for s in seeds]):.3f}",
            str(gain),
            " / ".join(f"{hits[s]:.2f}" for s in times) or "-",
            f"{min(times.values()):.1f}" if times else "-",
            " / ".join(f"{p:.2f} ({b:.2f})" for p, b in written) or "-",
            f"{max(r['training']['cpu_seconds'] for r in self.trained if r['method'] == method):.0f}",
        )
        return line, faults


def main() -> None:
    """Print the table, as Markdown; exit with 1 where a method does not hold what it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark/sanity"))
    parser.add_argument("--out", type=Path, help="put the table into this page, in the place of the one it has")
    options = parser.parse_args()
    cells = Cells(options.runs)
    random = cells.values("classification", "random", "auroc")
    found = [cells.row(method, random) for method in sorted({r["method"] for r in cells.trained})]
    head = ("method", "AUROC", "gain over random", "R@5 by seed", "times chance", "perplexity (bigram)", "CPU s")
    about = f"Random encoders: {np.mean(list(random.values())):.3f} over {len(random)} seeds.\n"
    text = f"{pipe_table(head, [line for line, _ in found])}\n{about}"
    print(text)
    if options.out:
        put(options.out, text)
    faults = [fault for _, of_method in found for fault in of_method]
    for fault in faults:
        print("fault:", fault)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
