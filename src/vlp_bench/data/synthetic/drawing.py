"""From numbers to pixels: radiographs, boxes and masks."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.anatomy import SIGN, Anatomy, Points, Thorax, thorax
from vlp_bench.data.synthetic.canvas import Canvas, Mask, Plane
from vlp_bench.data.synthetic.pathology import Scene, diaphragm_lift, heart_factor, paint, regions
from vlp_bench.data.synthetic.world import SyntheticImage
from vlp_bench.errors import UserError

_SMALLEST = 256  # thin lines vanish on coarser grids: smaller images are drawn at this size and reduced


def render(images: Iterable[SyntheticImage], size: int = 256) -> NDArray[np.uint8]:
    """Draw radiographs.

    Args:
        images: What to draw; each picture depends on its own numbers only.
        size: Side of the square pictures in pixels.

    Returns:
        Grey values (n, size, size), bright where the body attenuates.

    Raises:
        UserError: If ``size`` is less than 8.
    """
    _check(size)
    pictures = [_reduce(_draw(image, max(size, _SMALLEST)), size) for image in images]
    return np.stack(pictures) if pictures else np.zeros((0, size, size), np.uint8)


def annotate(image: SyntheticImage, size: int) -> tuple[list[dict], dict[str, NDArray[np.bool_]]]:
    """Outline the findings of an image, and its lungs and heart.

    Args:
        image: The image.
        size: Side of the square picture in pixels.

    Returns:
        Boxes ``{"label", "xyxy"}``, one for each side or device, in pixels with exclusive right and lower ends; and
        masks (size, size) by label: each finding that can be seen in this view, ``Lungs`` and ``Heart``.
    """
    _check(size)
    canvas, chest = Canvas(size, _pose(_stream(image))), _chest(image)
    lungs = _lung_fields(canvas, chest)
    masks = {"Lungs": cv2.max(lungs["right"], lungs["left"]) > 127, "Heart": canvas.fill([chest.heart]) > 127}
    boxes = []
    for finding in image.findings:
        whole = np.zeros((size, size), np.bool_)
        for _, region in regions(canvas, chest, lungs, finding):
            inside = region > 127
            box = _bounds(inside)
            if box is not None:
                boxes.append({"label": finding.name, "xyxy": box})
                whole |= inside
        if whole.any():
            masks[finding.name] = whole
    return boxes, masks


def _check(size: int) -> None:
    if size < 8:
        raise UserError(f"synthetic data: size={size}: images need a side of at least 8 pixels")


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Give the tightest box around a mask, or None if it is empty."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (x, y, x + width, y + height) if width and height else None


def _reduce(picture: Mask, size: int) -> Mask:
    return picture if picture.shape[0] == size else cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def _stream(image: SyntheticImage) -> np.random.Generator:
    """Start the image's own stream: the pose comes first, then exposure and noise."""
    return np.random.default_rng(image.seed)


def _pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw how the patient stands: a small turn, scale and shift about the image's centre, as a matrix (2, 3)."""
    angle, scale = np.deg2rad(rng.normal(0.0, 1.8)), rng.uniform(0.94, 1.05)
    shift = rng.normal(0.0, 0.012, 2)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([turn, (0.5 - turn @ [0.5, 0.5] + shift)[:, None]], axis=1)


def _chest(image: SyntheticImage) -> Thorax:
    return thorax(image.anatomy, image.view, heart_factor(image.findings), diaphragm_lift(image.findings))


def _lung_fields(canvas: Canvas, chest: Thorax) -> dict[str, Mask]:
    """Fill each lung where neither heart nor mediastinum covers it (from the side they cover little)."""
    if chest.lateral:
        field = canvas.fill([chest.lungs["right"]])
        return {"right": field, "left": field}
    cover = canvas.fill([chest.heart, chest.mediastinum])
    return {side: cv2.subtract(canvas.fill([outline]), cover) for side, outline in chest.lungs.items()}


def _draw(image: SyntheticImage, size: int) -> Mask:
    """Draw one image at ``size``."""
    rng = _stream(image)
    canvas, chest, a = Canvas(size, _pose(rng)), _chest(image), image.anatomy
    mottle = _texture(rng, size, 24) + 0.6 * _texture(rng, size, 60)
    air = canvas.soften(cv2.max(*(canvas.fill([lung]) for lung in chest.lungs.values())), 0.005)
    scene = Scene(
        canvas=canvas,
        thorax=chest,
        lungs=_lung_fields(canvas, chest),
        air=air,
        dense=np.zeros((size, size), np.float32),
        vessels=_vessels(canvas, chest, a.vessels),
        mottle=mottle,
    )
    tissue, covered = _soft_tissue(scene, a)
    scene.air *= 1.0 - covered
    for finding in image.findings:
        paint(scene, finding)
    total = tissue + scene.dense + _bones(canvas, chest, a)
    total -= (0.70 if chest.lateral else 0.74) * scene.air * (1.0 + 0.06 * mottle)
    total += 0.26 * scene.vessels * scene.air
    return _expose(rng, canvas, total, image.view)


def _soft_tissue(scene: Scene, a: Anatomy) -> tuple[Plane, Plane]:
    """Layer trunk, abdomen, heart, mediastinum, breasts and airway; say also how much of the lungs they cover."""
    canvas, chest = scene.canvas, scene.thorax
    trunk = canvas.fill([chest.body])
    tissue = (0.42 + 0.10 * a.girth) * canvas.soften(trunk, 0.008)
    tissue *= 1.0 + 0.9 * canvas.soften(trunk, 0.06)  # the body is thinner towards its outline
    tissue += 0.16 * canvas.soften(canvas.fill([chest.abdomen]), 0.03) * tissue * (1.0 - scene.air)
    heart = canvas.soften(canvas.fill([chest.heart]), 0.014 if chest.lateral else 0.007)
    vessels = canvas.soften(canvas.fill([chest.mediastinum]), 0.008)
    covered = np.maximum((0.5 if chest.lateral else 0.93) * heart, (0.40 if chest.lateral else 0.88) * vessels)
    tissue += 0.16 * heart + 0.10 * vessels
    tissue -= 0.20 * canvas.soften(canvas.trace(chest.airway, 0.026), 0.006)
    if not chest.lateral:
        y, radius = chest.base["right"] - 0.07, np.array([0.13, 0.12])
        angle = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
        shadows = canvas.fill([np.array([0.5 + s * chest.width * 0.66, y]) + ring for s in SIGN.values()])
        tissue += 0.13 * a.breast * canvas.soften(shadows, 0.014)
    return tissue, covered


def _bones(canvas: Canvas, chest: Thorax, a: Anatomy) -> Plane:
    """Layer spine, ribs, clavicles and scapulae; a rib shows its two edges brighter than its middle."""
    ribs = canvas.blank()
    near, far = (ribs.reshape(-1, *ribs.shape[2:]) for ribs in (chest.ribs, chest.front_ribs))
    if not chest.lateral:
        canvas.trace(far, 0.028, 80, ribs)
        canvas.trace(far, 0.016, 60, ribs)
    canvas.trace(near, 0.026, 150 if not chest.lateral else 80, ribs)
    canvas.trace(near, 0.014, 110 if not chest.lateral else 58, ribs)
    frame = canvas.blank()
    for k, outline in enumerate(chest.bones):
        canvas.fill([outline], (170, 170, 95, 95, 130, 130)[k], frame)
    # Weighted to fit into one byte, so that one blur serves all three.
    both = cv2.addWeighted(ribs, 0.48, frame, 0.40, 0.0)
    return (0.75 * a.density) * canvas.soften(cv2.scaleAdd(_vertebrae(canvas, chest), 0.39, both), 0.004)


def _vertebrae(canvas: Canvas, chest: Thorax) -> Mask:
    """Draw the spine as a column of blocks with paler discs between them."""
    width = 0.062
    column = canvas.trace([chest.spine], width, 130)
    y = np.arange(-0.03, 1.06, 0.062 if not chest.lateral else 0.066)
    x = np.interp(y, chest.spine[:, 1], chest.spine[:, 0])
    block = np.array([(-0.5, -0.36), (0.5, -0.36), (0.46, 0.0), (0.5, 0.36), (-0.5, 0.36), (-0.46, 0.0)]) * width
    canvas.fill(np.stack([x, y], axis=1)[:, None] + block, 215, column)
    if not chest.lateral:
        process = np.array([(0.0, -0.002), (0.0, 0.014)])
        canvas.trace(np.stack([x, y], axis=1)[:, None] + process, 0.01, 255, column)
    return column


def _vessels(canvas: Canvas, chest: Thorax, seed: int) -> Plane:
    """Grow the vessel tree of both lungs from the hila outwards, thinner with each stretch."""
    rng = np.random.default_rng(seed)
    mask = canvas.blank()
    trees = [_tree(rng, chest, side) for side in ("right", "left")]
    stems = np.concatenate([tree[0] for tree in trees])
    twigs = np.concatenate([tree[1] for tree in trees])
    canvas.trace(twigs, 0.004, 95, mask)
    canvas.trace(stems[:, 5:], 0.005, 130, mask)
    canvas.trace(stems[:, 2:6], 0.008, 170, mask)
    canvas.trace(stems[:, :3], 0.012, 210, mask)
    angle = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    ring = np.stack([0.026 * np.cos(angle), 0.045 * np.sin(angle)], axis=1)
    canvas.fill([np.array(root) + ring for root in chest.hila.values()], 190, mask)
    return canvas.soften(mask, 0.004)


def _tree(rng: np.random.Generator, chest: Thorax, side: str) -> tuple[Points, Points]:
    """Grow one lung's stems (16, 10, 2) and the twigs (32, 6, 2) that leave them halfway."""
    n = 16
    facing = rng.choice([-1.0, 1.0], n) if chest.lateral else SIGN[side]
    angle = np.linspace(-1.45, 1.5, n) + rng.normal(0.0, 0.16, n)  # fanned from the apex to the base
    length = (0.20 + 0.12 * np.abs(np.sin(angle))) * rng.uniform(0.5, 1.15, n)
    stems = _sprout(np.broadcast_to(chest.hila[side], (n, 2)), angle, length, facing, 10, rng.normal(0.0, 0.5, n))
    start = np.concatenate([stems[:, 4], stems[:, 6]])
    turn = np.concatenate([angle + rng.uniform(0.3, 0.8, n), angle - rng.uniform(0.3, 0.8, n)])
    facing_twigs = np.concatenate([facing, facing]) if chest.lateral else facing
    return stems, _sprout(start, turn, np.tile(0.45 * length, 2), facing_twigs, 6, rng.normal(0.0, 0.2, 2 * n))


def _sprout(start: Points, angle: Points, length: Points, facing: Points | float, steps: int, bend: Points) -> Points:
    """Run branches (n, steps, 2) from their starts, bending a little on the way."""
    t = np.linspace(0.0, 1.0, steps)
    heading = angle[:, None] + bend[:, None] * t
    reach = length[:, None] * t
    facing = np.asarray(facing)[..., None] if np.ndim(facing) else facing
    return start[:, None] + np.stack([facing * reach * np.cos(heading), reach * np.sin(heading)], axis=2)


def _texture(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Make smooth noise of unit strength with about ``cells`` blobs along each side, the same at every size."""
    coarse = rng.standard_normal((cells, cells), np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _expose(rng: np.random.Generator, canvas: Canvas, total: Plane, view: str) -> Mask:
    """Turn attenuation into grey values: the detector's response, exposure, noise, collimation and the side marker."""
    contrast, bright, gamma = rng.uniform(0.92, 1.08), rng.normal(0.0, 0.025), rng.uniform(0.85, 1.15)
    grain, size = rng.uniform(0.008, 0.022), canvas.size
    # Grain comes from a stream of its own: how many pixels it fills must not shift the numbers drawn after it.
    noise = rng.spawn(1)[0].standard_normal((size, size), np.float32)
    stopped = 1.0 - np.exp(-1.15 * np.maximum(total, 0.0))
    grey = cv2.pow(np.clip(1.16 * contrast * stopped + bright, 0.0, 1.0), gamma)
    picture = cv2.addWeighted(grey, 255.0, noise, 255.0 * grain, 0.0, dtype=cv2.CV_8U)
    _mark(rng, picture, view)
    edge = (rng.random(4) < 0.15) * rng.uniform(0.0, 0.035, 4) * size  # the collimator's black border
    left, upper, right, lower = (int(e) for e in edge)
    picture[:upper], picture[size - lower :], picture[:, :left], picture[:, size - right :] = 0, 0, 0, 0
    return picture


def _mark(rng: np.random.Generator, picture: Mask, view: str) -> None:
    """Put the lead marker ``L`` at the patient's left, or on a lateral view in a corner."""
    size = picture.shape[0]
    x, y = rng.uniform(0.86, 0.92), rng.uniform(0.07, 0.13)
    letter = "L" if rng.random() < 0.8 or view == "LATERAL" else "R"
    if letter == "R":
        x = 0.95 - x
    scale = size / 256.0
    at = (int(x * size), int(y * size))
    cv2.putText(
        picture, letter, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * scale, 235, max(1, round(1.6 * scale)), cv2.LINE_AA
    )
    if view == "AP" and rng.random() < 0.5:
        below = (max(0, at[0] - int(0.06 * size)), at[1] + int(0.05 * size))
        cv2.putText(
            picture, "PORT", below, cv2.FONT_HERSHEY_SIMPLEX, 0.26 * scale, 190, max(1, round(scale)), cv2.LINE_AA
        )
