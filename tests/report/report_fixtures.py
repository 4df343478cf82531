"""Writes run folders as the other rooms would, with made-up numbers that depend on the arguments alone."""

import csv
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from vlp_bench.metrics import classification_metrics

LABELS = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
BACKBONES = {
    "random resnet18": ("random", "", 0.58, 0.02),
    "timm:tf_efficientnet_lite0": ("timm", "", 0.66, 0.07),
    "mgca resnet18": ("mgca", "full", 0.71, 0.08),
}
FRACTIONS = (0.01, 0.1, 1.0)


def entry(value, half=0.02, n=800):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def provenance(name, **changes):
    pretrained = name.startswith("mgca")
    return {
        "commit": "3f9c2ab41d7e5c60aa41",
        "dirty": False,
        "command": f"vlp-bench evaluate backbone='{name}'",
        "config_hash": "c0ffee",
        "config": {"optimizer": {"lr": 1e-3, "name": "adamw"}, "backbone": name},
        "data_fingerprint": "da7a" * 10 if pretrained else None,
        "target_fingerprint": "7a26e7" * 6,
        "versions": {"python": "3.11.9", "torch": "2.6.0"},
        "device": "NVIDIA H100",
        "started": "2025-03-04T10:11:12+00:00",
        "wall_seconds": 75.4,
        "bundle_hash": "b0d1e5" * 6 if pretrained else None,
        "pretrain": {"steps": 2000, "wall_seconds": 2100.0} if pretrained else None,
    } | changes


def classification(name, fraction, *, seed=0, value=None, half=0.02, labels=LABELS, **changes):
    method, variant, base, gain = BACKBONES.get(name, (name, "", 0.6, 0.05))
    auroc = base + gain * (np.log10(fraction) + 2) if value is None else value
    metrics = {
        "auroc": entry(auroc, half),
        "auprc": entry(auroc - 0.3),
        "f1": entry(auroc - 0.25),
        "accuracy": entry(min(auroc + 0.1, 0.95), 0.01),
    }
    trivial = {
        "auroc": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 800},
        "auprc": entry(0.21),
        "f1": entry(0.33),
        "accuracy": entry(0.81, 0.01),
    }
    for i, label in enumerate(labels):
        metrics[f"auroc/{label}"] = entry(auroc + (i - 2) * 0.031, 0.04, 790 - i)
        trivial[f"auroc/{label}"] = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 790 - i}
    return {
        "schema": 1,
        "method": method,
        "variant": variant,
        "backbone": name,
        "pretrain_seed": 0,
        "task": "classification",
        "target": "openi",
        "split": "test",
        "protocol": "official",
        "label_fraction": fraction,
        "draw": 0,
        "adaptation": "linear_probe",
        "seed": seed,
        "metrics": metrics,
        "trivial": trivial,
        "provenance": provenance(name),
        "primary": "auroc",
        "labels": list(labels),
    } | changes


def retrieval(name, value, **changes):
    metrics = {}
    trivial = {}
    for direction in ("i2t", "t2i"):
        for metric, factor in (("R@1", 0.3), ("R@5", 1.0), ("R@10", 1.6), ("mrr", 0.7)):
            metrics[f"{direction}/{metric}"] = entry(value * factor, 0.015, 600)
            trivial[f"{direction}/{metric}"] = entry(0.008 * factor, 0.0, 600)
        metrics[f"{direction}/median_rank"] = {"value": 20 / value, "low": 18 / value, "high": 23 / value, "n": 600}
        trivial[f"{direction}/median_rank"] = {"value": 300.0, "low": 300.0, "high": 300.0, "n": 600}
    result = classification(name, 1.0)
    result |= {"task": "retrieval", "adaptation": "zero_shot", "label_fraction": None, "labels": []}
    return result | {"metrics": metrics, "trivial": trivial, "primary": "i2t/R@5"} | changes


def write_result(folder: Path, result: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_predictions(folder: Path, labels=LABELS, n=120):
    rng = np.random.default_rng(0)
    columns = {"item_id": [f"i{i}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)]}
    for k, label in enumerate(labels):
        columns[f"score_{label}"] = np.linspace(0, 1, n)
        columns[f"target_{label}"] = (np.arange(n) % (k + 3) == 0).astype(float)
    columns[f"target_{labels[0]}"][rng.integers(0, n, 5)] = np.nan
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet")


def write_scored(
    folder: Path, name, quality, *, items=200, chosen=None, noise=0, labels=("x", "y"), chances=False, **changes
):
    """A run whose predictions and result belong together; `quality` sets how well its scores follow the targets.

    Runs share the items and their difficulty; `noise` seeds what is a run's own, `chosen` keeps some items only,
    `chances` turns the scores into probabilities.
    """
    shared = np.random.default_rng(7)
    targets = (shared.random((items, len(labels))) < 0.4).astype(float)
    difficulty = shared.normal(size=targets.shape)
    own = np.random.default_rng(noise).normal(size=targets.shape)
    scores = quality * targets + difficulty + 0.3 * own
    targets[::17, 0] = np.nan
    patients = np.array([f"p{i // 2}" for i in range(items)])
    rows = np.arange(items) if chosen is None else np.asarray(chosen)
    table = pd.DataFrame({"item_id": [f"i{i}" for i in rows], "patient_id": patients[rows]}).assign(
        view=np.where(rows % 2, "AP", "PA"), sex=np.array(["F", "M"])[rows // 2 % 2], age=rows // 2 % 85 + 0.0
    )
    if chances:
        scores = 1 / (1 + np.exp(1 - scores))
    for k, label in enumerate(labels):
        table[f"score_{label}"], table[f"target_{label}"] = scores[rows, k].astype(np.float32), targets[rows, k]
    metrics = classification_metrics(
        table[[f"score_{label}" for label in labels]].to_numpy(),
        targets[rows],
        patients[rows],
        [0.5] * len(labels),
        labels=labels,
        kind="multilabel",
        resamples=100,
    )
    result = classification(name, changes.pop("fraction", 0.01), labels=list(labels), **changes)
    result["facts"] = result.get("facts", {}) | {"probabilities": chances}
    write_result(folder, result | {"metrics": metrics})
    table.to_parquet(folder / "predictions.parquet", index=False)
    return table


def png(size=96, centre=(0.5, 0.5)) -> bytes:
    """A grey blob that could pass for a radiograph from a distance."""
    y, x = np.mgrid[0:size, 0:size] / size
    lungs = sum(np.exp(-(((x - cx) / 0.13) ** 2 + ((y - 0.5) / 0.27) ** 2)) for cx in (0.3, 0.7))
    spot = np.exp(-(((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.008))
    grey = np.clip(190 * (1 - 0.8 * lungs) + 20 * np.cos(40 * y), 0, 255)
    rgb = np.stack([grey + 90 * spot, grey * (1 - 0.4 * spot), grey * (1 - 0.7 * spot)], axis=-1).clip(0, 255)
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in rgb)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_pretraining(folder: Path, steps=2000):
    folder.mkdir(parents=True)
    training = {"steps": steps, "wall_seconds": 2100}
    info = {"verb": "pretrain", "name": "mgca resnet18", "method": "mgca", "variant": "full", "pretrain_seed": 0}
    info |= {"training": training}
    (folder / "run.json").write_text(json.dumps(info))
    rng = np.random.default_rng(0)
    terms = {"instance": 3.2, "token": 2.4, "prototype": 1.9}
    names = ["epoch", "step", "lr"]
    names += [f"{s}/loss{t}" for s in ("train", "val") for t in ("", *(f"/{n}" for n in terms))]
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for step in range(0, steps, 5):
            for split in ("train", "val") if step % 200 == 195 or step % 200 == 0 else ("train",):
                row = {"epoch": step // 200, "step": step, "lr": 1e-4}
                row |= {
                    f"{split}/loss/{n}": v * (0.35 + 0.65 * np.exp(-step / 500))
                    + rng.normal() * 0.08 * (split == "train")
                    for n, v in terms.items()
                }
                row[f"{split}/loss"] = sum(row[f"{split}/loss/{n}"] for n in terms)
                writer.writerow(row)
    write_pictures(folder)


def write_pictures(folder: Path):
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    listed = []
    for i, (word, centre) in enumerate((("effusion", (0.28, 0.72)), ("cardiomegaly", (0.5, 0.62)))):
        (pictures / f"p{i}.png").write_bytes(png(centre=centre))
        caption = f"Where the model looks for the word “{word}” in the report."
        listed.append({"file": f"p{i}.png", "caption": caption, "group": "Attention, mgca resnet18"})
    (pictures / "index.json").write_text(json.dumps(listed))


def robustness(clean, losses):
    """What an evaluation says of worse images: what is lost at severity 1, by corruption; twice that at 2."""
    found = {
        name: {
            str(severity): {"value": entry(clean - severity * loss), "drop": entry(severity * loss, 0.005)}
            for severity in (1, 2)
        }
        for name, loss in losses.items()
    }
    return {"metric": "auroc", "clean": entry(clean), "corruptions": found}


def write_ranked(folder: Path, name, value, column, values, **changes):
    """A retrieval or grounding whose predictions hold one column of numbers."""
    write_result(folder, retrieval(name, value, **changes))
    table = pd.DataFrame({"item_id": [f"i{i}" for i in range(len(values))], "patient_id": "p", column: values})
    table.to_parquet(folder / "predictions.parquet", index=False)


def write_everything(root: Path) -> Path:
    """A run of every kind, under two protocols, with predictions and worse images."""
    write_runs(root)
    rng = np.random.default_rng(0)
    for k, (name, quality) in enumerate(
        {"mgca resnet18": 1.5, "convirt resnet18": 1.4, "random resnet18": 0.4}.items()
    ):
        for fraction in (0.1, 1.0):
            facts = {"robustness": robustness(0.7 - k / 20, {"blur": 0.02, "noise": 0.05 + k / 100})}
            write_scored(
                root / "scored" / f"{k}-{fraction}", name, quality + fraction / 3, noise=k, chances=True, items=400,
                protocol="honest", target="synthetic", fraction=fraction, facts=facts,
            )  # fmt: skip
        ranks = np.ceil(rng.random(200) ** (2 + quality) * 600)
        write_ranked(root / "ranked" / str(k), name, quality / 5, "rank_i2t", ranks, target="synthetic")
        ious = rng.random(90) ** (3 - quality)
        write_ranked(root / "boxes" / str(k), name, quality / 5, "mean_box_iou", ious, task="grounding")
    return root


def write_runs(root: Path) -> Path:
    """Three backbones at three fractions, three retrievals, one pre-training: thirteen folders."""
    for name in BACKBONES:
        slug = name.replace(" ", "-").replace(":", "-")
        for fraction in FRACTIONS:
            folder = write_result(root / "eval" / f"{slug}-{fraction}", classification(name, fraction))
            if fraction == 1.0:
                write_predictions(folder)
    for name, value in (("random resnet18", 0.009), ("mgca resnet18", 0.31), ("convirt resnet18", 0.28)):
        write_result(root / "retrieval" / name.replace(" ", "-"), retrieval(name, value))
    write_pretraining(root / "pretrain" / "mgca")
    return root
