"""Radiographs with what the model attends to, or found."""

import cv2
import numpy as np
import torch

from vlp_bench.data.datamodule import assemble
from vlp_bench.tasks.base import Cell, Picture

SIDE = 224
#: BGR
TRUE, FOUND = (90, 200, 250), (250, 130, 60)
FOUND_AND_TRUE = "truth (yellow) and what was found (blue)"


@torch.inference_mode()
def attention(cell: Cell, count: int) -> list[Picture]:
    """`count` test images, each beside its map over the patches, with the boxes of the truth.

    The map is the similarity of each patch with the image's own report where the method aligns patches, else the
    attention of [CLS]; encoders with neither give no pictures.
    """
    encoders, store = cell.encoders, cell.target.store
    images = store.images
    use = ((images["split"] == cell.split) & images["frontal"]).to_numpy()
    if encoders.text is not None:
        use = use & store.long_enough(encoders.text.tokenizer, encoders.inputs.form)[images["study"].to_numpy()]
    rows = [row for row in map(int, np.flatnonzero(use)) if store.boxes(row)][: max(count, 0)]
    if not rows:
        return []
    features = encoders.vision(cell.pixels(np.array(rows)), saliency=True)
    maps, what = features.saliency, "attention of [CLS]"
    if encoders.aligner is not None and encoders.text is not None:
        pieces, _ = store.pieces(encoders.text.tokenizer, encoders.inputs.form)
        studies = images["study"].to_numpy()[rows]
        texts = encoders.text(assemble(pieces, studies, encoders.text.tokenizer, encoders.inputs.max_tokens))
        local = encoders.aligner.local_similarity(features, texts)
        if local is not None:
            maps, what = local, "similarity of each patch with the study's report"
    if maps is None:
        return []
    grids = maps.float().unflatten(1, features.grid).numpy()
    group = f"{encoders.meta['name']}: {what}"
    return [
        Picture(
            _panel(cell, row, grid), "truth: " + ", ".join(sorted({str(b["label"]) for b in store.boxes(row)})), group
        )
        for row, grid in zip(rows, grids, strict=True)
    ]


def radiograph(cell: Cell, row: int) -> np.ndarray:
    """An image row as the network sees it, enlarged, BGR."""
    gray = cv2.resize(cell.pixels(np.array([row]))[0, 0].numpy(), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)


def _panel(cell: Cell, row: int, grid: np.ndarray) -> np.ndarray:
    """The image with its true boxes, and the image under its map, side by side, BGR."""
    span = round((cell.target.store.size - cell.image_size) / 2)
    plain = radiograph(cell, row)
    low, high = np.quantile(grid, [0.05, 0.95])
    heat = np.clip((grid - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    heat = cv2.resize(heat, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (0.55 * heat)[..., None]
    mixed = (plain * (1 - weight) + colour * weight).astype(np.uint8)
    for box in cell.target.store.boxes(row):
        corners = (np.array(box["xyxy"]) - span) * SIDE / cell.image_size
        a, b = tuple(int(v) for v in corners[:2]), tuple(int(v) for v in corners[2:])
        cv2.rectangle(plain, a, b, TRUE, 1)
    return np.concatenate([plain, mixed], axis=1)


def show_first(positive: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` items, those with a finding first."""
    return np.argsort(~positive, kind="stable")[: max(count, 0)]


def _enlarged(gray: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2BGR)


def outlined(gray: np.ndarray, true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A grey image (H, W) with the outlines of masks (L, H, W), true and found; BGR."""
    drawn = _enlarged(gray)
    for masks, colour in ((true, TRUE), (found, FOUND)):
        for mask in masks.astype(np.uint8):
            large = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(drawn, outlines, -1, colour, 1)
    return drawn


def boxed(gray: np.ndarray, true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A square grey image with boxes (N, 4), left, top, right, bottom in its pixels, true and found; BGR."""
    drawn = _enlarged(gray)
    for boxes, colour in ((true, TRUE), (found, FOUND)):
        for x0, y0, x1, y1 in (boxes * (SIDE / len(gray))).round().astype(int).tolist():
            cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
    return drawn
