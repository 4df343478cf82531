"""The smaller verbs: report, export, embed."""

from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from vlp_bench.config import plain
from vlp_bench.errors import UserError
from vlp_bench.files import whole


def report(cfg: DictConfig) -> None:
    """`vlp-bench report runs=DIR out=DIR [to=wandb]`.

    Raises:
        UserError: there is nothing to report, or nowhere to put it.
    """
    from vlp_bench.report import build_report
    from vlp_bench.report.dashboard import publish

    asked = {"title": cfg.title, "statistics": cfg.statistics, "resamples": int(cfg.resamples)}
    if cfg.to == "page":
        build_report(Path(cfg.runs), Path(cfg.out), **asked)
        print(Path(cfg.out) / "index.html")
    elif cfg.to == "wandb":
        for name, url in publish(Path(cfg.runs), Path(cfg.out), **plain(cfg.wandb), **asked).items():
            print(f"{name}: {url}")
    else:
        raise UserError(f"to={cfg.to}: expected page or wandb.")


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
