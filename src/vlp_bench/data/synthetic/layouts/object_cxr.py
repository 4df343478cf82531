"""Object-CXR: devices as rectangles, ellipses and polygons, in three csv files of which one names paths."""

from pathlib import Path

import cv2
import numpy as np

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Drawn, Job, Rows, draw, save_jpeg

OBJECT = "Support Devices"
_PARTS = {"train": "train", "validate": "dev", "test": "test"}


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    part, drawn = _PARTS[study.split], draw(job, image)
    path = Path(part) / f"{study.study_id[1:]}.jpg"
    save_jpeg(job.root / path, drawn.picture, job.quality)
    if part == "test":
        return {part: [{"image_path": str(path), "annotation": annotation(drawn, image.seed)}]}
    return {part: [{"image_name": path.name, "annotation": annotation(drawn, image.seed)}]}


def annotation(drawn: Drawn, seed: int) -> str:
    """Shapes of the objects: the kinds of the first ones differ from picture to picture."""
    kind, shapes = seed % 3, []
    if kind == 2 and OBJECT in drawn.masks:
        outlines, _ = cv2.findContours(drawn.masks[OBJECT].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outlines = [outline for outline in outlines if len(outline) > 2]
        shapes = [f"2 {' '.join(map(str, outline.ravel().tolist()))}" for outline in outlines]
    if not shapes:
        boxes = [box["xywh"] for box in drawn.boxes if box["label"] == OBJECT]
        shapes = [f"{(kind + n) % 2} {x} {y} {x + w} {y + h}" for n, (x, y, w, h) in enumerate(boxes)]
    return ";".join(shapes)


def write_tables(root: Path, tables: Rows) -> None:
    for part in _PARTS.values():
        name = "image_path" if part == "test" else "image_name"
        lines = [f"{row[name]},{row['annotation']}" for row in tables.get(part, [])]
        (root / part).mkdir(exist_ok=True)
        (root / f"{part}.csv").write_text("\n".join([f"{name},annotation", *lines, ""]))
