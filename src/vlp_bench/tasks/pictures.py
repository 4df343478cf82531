"""Radiographs with what the model attends to, or found."""

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlp_bench.metrics.grounding import component_boxes, scaled
from vlp_bench.tasks.base import Cell, Outcome, Picture
from vlp_bench.tasks.class_maps import Mapper
from vlp_bench.tasks.scoring import report_tokens

#: Of a radiograph, in pixels; of matplotlib's figures, in dots an inch.
SIDE, DPI = 224, 100
#: BGR
TRUE, FOUND = (90, 200, 250), (250, 130, 60)
KEY = "truth yellow, found blue"
#: Of a map's range: where a box is drawn without a threshold that validation chose.
UPPER_HALF = 0.5


@torch.inference_mode()
def attention(cell: Cell, count: int) -> list[Picture]:
    """`count` test images, each beside its map over the patches, with the boxes of the truth.

    The map is the similarity of each patch with the image's own report where the method aligns patches, the attention
    of the report's words on it where it reads both together, else the attention of [CLS]; encoders with none of these
    give no pictures.
    """
    encoders, store = cell.encoders, cell.target.store
    images = store.images
    use = store.in_split(cell.split) & images["frontal"].to_numpy()
    if encoders.text is not None:
        use = use & store.long_enough(encoders.text.tokenizer, encoders.inputs.form)[images["study"].to_numpy()]
    rows = [row for row in map(int, np.flatnonzero(use)) if store.boxes(row)][: max(count, 0)]
    if not rows:
        return []
    features = encoders.vision(cell.pixels(np.array(rows)), saliency=True)
    maps, what = features.saliency, "attention of [CLS]"
    if encoders.compares:
        assert encoders.text is not None
        texts = encoders.text(report_tokens(cell, images["study"].to_numpy()[rows]))
        local = encoders.local_similarity(features, texts)
        if local is not None:
            reads = "attention of the report's words" if encoders.aligner is None else "similarity with the report"
            maps, what = local, f"{reads}, patch by patch"
    if maps is None:
        return []
    grids = maps.float().unflatten(1, features.grid).numpy()
    group = f"{encoders.name}: {what}"
    return [
        Picture(
            _panel(cell, row, grid), "truth: " + ", ".join(sorted({str(b["label"]) for b in store.boxes(row)})), group
        )
        for row, grid in zip(rows, grids, strict=True)
    ]


def radiograph(cell: Cell, row: int) -> np.ndarray:
    """An image row as the network sees it, enlarged, BGR."""
    return enlarged(cell.pixels(np.array([row]))[0, 0].numpy())


@torch.inference_mode()
def class_activation(cell: Cell, maps: Mapper, outcome: Outcome, count: int) -> list[Picture]:
    """The first test images of each class in turn, with the true boxes and those around the upper half of the map.

    Of a class that has boxes in the split, images with one.
    """
    store, rows = cell.target.store, cell.target.rows(cell.split)
    span, drawn = round((store.size - cell.image_size) / 2), []
    for row, number in _of_each_label(cell, rows, count):
        label = outcome.labels[number]
        features = cell.encoders.vision(cell.pixels(np.array([row])), pyramid=True)
        grid = maps(features, torch.tensor([0]), torch.tensor([number]))[0].float().numpy()
        gray = cell.pixels(np.array([row]))[0, 0].numpy()
        large = cv2.resize(grid, gray.shape, interpolation=cv2.INTER_LINEAR)
        found = component_boxes(scaled(large[None])[0] > UPPER_HALF)
        true = np.array([b["xyxy"] for b in store.boxes(row) if b["label"] == label]).reshape(-1, 4) - span
        score = outcome.predictions[f"score_{label}"].to_numpy()[np.searchsorted(rows, row)]
        image = side_by_side(boxed(gray, true, found), heated(gray, grid))
        drawn.append(Picture(image, f"{label}: {score:.2f}", f"{cell.encoders.name}: class activation; {KEY}"))
    return drawn


def _of_each_label(cell: Cell, rows: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Row and label of `count` positives, the labels in turn."""
    labels, names = cell.target.labels, [{b["label"] for b in cell.target.store.boxes(int(row))} for row in rows]
    boxed = np.array([[label in there for label in labels] for there in names])
    positive = cell.target.targets[rows] == 1
    shown = np.where((positive & boxed).any(0), positive & boxed, positive)
    turn = np.where(shown, shown.cumsum(0), np.inf)
    order = [np.unravel_index(i, turn.shape) for i in turn.argsort(axis=None, kind="stable")[: max(count, 0)]]
    return [(int(rows[i]), int(j)) for i, j in order if shown[i, j]]


def _panel(cell: Cell, row: int, grid: np.ndarray) -> np.ndarray:
    """The image with its true boxes, and the image under its map, side by side, BGR."""
    span = round((cell.target.store.size - cell.image_size) / 2)
    gray = cell.pixels(np.array([row]))[0, 0].numpy()
    true = np.array([b["xyxy"] for b in cell.target.store.boxes(row)]).reshape(-1, 4) - span
    return side_by_side(boxed(gray, true, np.zeros((0, 4))), heated(gray, grid))


def enlarged(gray: np.ndarray) -> np.ndarray:
    """A square grey image (H, W) at the size of all pictures, BGR."""
    return cv2.cvtColor(cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2BGR)


def heated(gray: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A square grey image under a map of any size; the map's range is that of its middle 90 %. BGR."""
    low, high = np.quantile(grid, [0.05, 0.95])
    heat = np.clip((grid - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    heat = cv2.resize(heat, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (0.55 * heat)[..., None]
    return (enlarged(gray) * (1 - weight) + colour * weight).astype(np.uint8)


def show_first(positive: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` items, those with a finding first."""
    return np.argsort(~positive, kind="stable")[: max(count, 0)]


def outlined(gray: np.ndarray, true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A grey image (H, W) with the outlines of masks (L, H, W), true and found; BGR."""
    drawn = enlarged(gray)
    for masks, colour in ((true, TRUE), (found, FOUND)):
        for mask in masks.astype(np.uint8):
            large = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(drawn, outlines, -1, colour, 1)
    return drawn


def boxed(gray: np.ndarray, true: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A square grey image with boxes (N, 4), left, top, right, bottom in its pixels, true and found; BGR."""
    drawn = enlarged(gray)
    for boxes, colour in ((true, TRUE), (found, FOUND)):
        for x0, y0, x1, y1 in (boxes * (SIDE / len(gray))).round().astype(int).tolist():
            cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
    return drawn


def side_by_side(*images: np.ndarray) -> np.ndarray:
    """Images of one height in a row, with a thin gap; BGR."""
    gap = np.full((len(images[0]), 4, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=1)


def truth(cell: Cell, row: int) -> str:
    """The findings of an image row, for a caption."""
    target = cell.target
    return "truth: " + (
        ", ".join(n for n, v in zip(target.labels, target.targets[row], strict=True) if v == 1) or "none"
    )


def rendered(figure: Figure) -> np.ndarray:
    """A matplotlib figure as BGR uint8; no window, and nothing of pyplot's state."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., 2::-1])
