"""What findings look like: where each lies in the chest (``regions``) and how it changes the picture (``paint``)."""

from dataclasses import dataclass

import cv2
import numpy as np

from vlp_bench.data.synthetic.anatomy import SIGN, Points, Thorax, smooth
from vlp_bench.data.synthetic.canvas import Canvas, Mask, Plane
from vlp_bench.data.synthetic.world import Finding, device_side

Regions = list[tuple[str, Mask]]  # the patient's side (or empty) and where the finding lies, 0 to 255

_HEART = (1.0, 1.19, 1.38, 1.58)  # factor on the heart's size, by severity
_LIFT = (0.0, 0.015, 0.035, 0.06)  # how far atelectasis draws up the diaphragm
_DEPTH = {"upper": 0.24, "mid": 0.50, "lower": 0.76}  # zone centres between apex and base


@dataclass(slots=True)
class Scene:
    """The picture while it is being drawn; planes are float32 (size, size).

    Attributes:
        canvas: Where it is drawn.
        thorax: The outlines.
        lungs: The lung fields by side, without what the heart and the great vessels cover, 0 to 255.
        air: How much of the beam's path is aerated lung, 0 to 1.
        dense: What attenuates beyond the normal chest.
        vessels: The weight of the vessel tree; a pneumothorax has none.
        mottle: Smooth texture around 0 that keeps densities from looking flat.
    """

    canvas: Canvas
    thorax: Thorax
    lungs: dict[str, Mask]
    air: Plane
    dense: Plane
    vessels: Plane
    mottle: Plane


def heart_factor(findings: tuple[Finding, ...]) -> float:
    """Give the factor on the heart's size: above 1 with cardiomegaly."""
    return next((_HEART[f.severity] + 0.06 * (f.jitter[0] - 0.5) for f in findings if f.name == "Cardiomegaly"), 1.0)


def diaphragm_lift(findings: tuple[Finding, ...]) -> dict[str, float]:
    """Give how far each hemidiaphragm is drawn up, which atelectasis does."""
    return {side: _LIFT[f.severity] for f in findings if f.name == "Atelectasis" for side in sides_of(f)}


def sides_of(finding: Finding) -> tuple[str, ...]:
    """List the sides a finding is on."""
    return ("right", "left") if finding.side == "bilateral" else (finding.side,) if finding.side else ()


def regions(canvas: Canvas, thorax: Thorax, lungs: dict[str, Mask], finding: Finding) -> Regions:
    """Say where a finding lies.

    Args:
        canvas: Gives resolution and pose.
        thorax: The outlines of the view.
        lungs: Lung fields by side, 0 to 255.
        finding: The finding.

    Returns:
        One mask (size, size) for each side or device, 0 to 255 with soft edges; some may be empty.
    """
    if finding.name == "Cardiomegaly":
        return [("", canvas.fill([thorax.heart]))]
    if finding.name == "Support Devices":
        return [("", _draw_device(canvas, thorax, device, finding.jitter)) for device in finding.devices]
    if finding.name == "Fracture":
        return [(side, canvas.trace(_breaks(thorax, finding, side), 0.05)) for side in sides_of(finding)]
    found: Regions = []
    for side in sides_of(finding):
        found.append((side, cv2.min(_IN_LUNG[finding.name](canvas, thorax, finding, side), lungs[side])))
    return found


def _effusion(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    """Fluid at the base; its upper edge climbs the chest wall (the meniscus)."""
    height = (0.0, 0.035, 0.12, 0.28)[finding.severity] * (0.85 + 0.3 * finding.jitter[0])
    t = np.linspace(0.0, 1.0, 12)
    base, floor = thorax.base[side], thorax.base[side] + 0.1
    if thorax.lateral:
        x, y = 0.5 + thorax.width * (2.0 * t - 1.0), base - height * (0.25 + 1.1 * t**3)
    else:
        x, y = 0.5 + SIGN[side] * (thorax.width + 0.03) * t, base - height * (0.6 + 0.8 * t**3)
    surface = np.stack([x, y], axis=1)
    return canvas.fill([np.concatenate([surface, [(x[-1], floor), (x[0], floor)]])])


def _collapsed(thorax: Thorax, finding: Finding, side: str) -> Points:
    """Outline what is left of a lung that a pneumothorax pushes towards the hilum and the base."""
    kept = (1.0, 0.94, 0.80, 0.54)[finding.severity] + 0.05 * (finding.jitter[0] - 0.5)
    anchor = np.array([0.5 if thorax.lateral else 0.5 + SIGN[side] * 0.09, thorax.base[side] + 0.01])
    return anchor + (thorax.lungs[side] - anchor) * np.array([0.25 + 0.75 * kept if kept > 0.6 else kept, kept])


def _pneumothorax(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    return cv2.subtract(canvas.fill([thorax.lungs[side]]), canvas.fill([_collapsed(thorax, finding, side)]))


def _centre(thorax: Thorax, finding: Finding, side: str) -> tuple[float, float]:
    """Place a focal finding in its zone, away from heart and spine."""
    a, b = finding.jitter[0] - 0.5, finding.jitter[1] - 0.5
    down = _DEPTH[finding.zone or "lower"] + 0.12 * b
    y = thorax.top + down * (thorax.base[side] - thorax.top)
    if thorax.lateral:
        return 0.5 + thorax.width * ({"upper": 0.05, "mid": -0.3, "lower": 0.35}[finding.zone or "lower"] + 0.3 * a), y
    out = {"upper": 0.52, "mid": 0.64, "lower": 0.70}[finding.zone or "lower"]
    return 0.5 + SIGN[side] * thorax.width * (out + 0.16 * a), y


def _blob(centre: tuple[float, float], radius: float, phases: tuple[float, ...], rough: float) -> Points:
    """Outline an irregular patch: a circle whose radius wavers by the share ``rough``."""
    angle = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
    waves = sum(np.cos(k * angle + 2.0 * np.pi * phase) / k for k, phase in enumerate(phases, start=2))
    r = radius * (1.0 + rough * waves)
    return np.stack([centre[0] + r * np.cos(angle), centre[1] + 1.1 * r * np.sin(angle)], axis=1)


def _consolidation(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    radius = (0.0, 0.045, 0.08, 0.125)[finding.severity]
    return canvas.fill([_blob(_centre(thorax, finding, side), radius, finding.jitter[2:6], 0.25)])


def _opacity(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    """Scatter small patches around the centre and melt them together."""
    radius = (0.0, 0.05, 0.065, 0.08)[finding.severity]
    x, y = _centre(thorax, finding, side)
    spread = 1.3 * radius
    patches = []
    for k in range(2 + finding.severity):
        angle = 2.0 * np.pi * (finding.jitter[2] + 0.38 * k)
        at = (x + spread * np.cos(angle) * 0.8, y + spread * np.sin(angle))
        patches.append(_blob(at, radius * (0.7 + 0.5 * finding.jitter[3 + k % 5]), finding.jitter[4:8], 0.35))
    return canvas.blur(canvas.fill(patches), 0.018)


def _lesion(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    return canvas.fill([_blob(_centre(thorax, finding, side), lesion_radius(finding), finding.jitter[2:6], 0.06)])


def lesion_radius(finding: Finding) -> float:
    """Give a nodule's radius as a fraction of the image side."""
    return (0.0, 0.020, 0.034, 0.052)[finding.severity] * (0.9 + 0.25 * finding.jitter[6])


def _edema(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    """Haze around the hilum, like one wing of a bat."""
    x, y = thorax.hila[side]
    out = 0.0 if thorax.lateral else SIGN[side] * 0.07
    reach = (0.0, 0.10, 0.125, 0.15)[finding.severity]
    angle = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
    wing = np.stack([x + out + reach * np.cos(angle), y + 0.06 + 1.6 * reach * np.sin(angle)], axis=1)
    return canvas.blur(canvas.fill([wing]), 0.04)


def _atelectasis(canvas: Canvas, thorax: Thorax, finding: Finding, side: str) -> Mask:
    """Plates of airless lung above the drawn-up diaphragm."""
    mask = canvas.blank()
    t = np.linspace(0.0, 1.0, 8)
    for k in range(finding.severity):
        length = thorax.width * (0.45 + 0.3 * finding.jitter[k])
        fall = 0.06 * (finding.jitter[k + 2] - 0.5)
        y = thorax.base[side] - 0.125 - 0.045 * k + fall * t - 0.02 * np.sin(np.pi * t)
        if thorax.lateral:
            x = 0.5 + thorax.width * 0.25 + length * (t - 0.5)
        else:
            x = 0.5 + SIGN[side] * (thorax.width * (0.36 + 0.15 * finding.jitter[k + 1]) + length * t * 0.9)
        canvas.trace([np.stack([x, y], axis=1)], 0.010 + 0.004 * finding.severity, onto=mask)
    return mask


_IN_LUNG = {
    "Pleural Effusion": _effusion,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Lung Opacity": _opacity,
    "Lung Lesion": _lesion,
    "Edema": _edema,
    "Atelectasis": _atelectasis,
}


def _breaks(thorax: Thorax, finding: Finding, side: str) -> list[Points]:
    """Give the short stretches (4, 2) of neighbouring ribs that are broken, by severity one to three of them."""
    ribs = thorax.ribs[0 if side == "right" else 1]
    at = 4 + int(4 * finding.jitter[1])
    return [ribs[rib, at : at + 4] for rib in broken_ribs(finding)]


def broken_ribs(finding: Finding) -> range:
    """Number the broken ribs from 0, the first rib."""
    first = 3 + int(3 * finding.jitter[0])
    return range(first, first + finding.severity)


def _device_paths(thorax: Thorax, device: str, j: tuple[float, ...]) -> list[Points]:
    """Give the course of a device as paths; a pacemaker's first path outlines its can."""
    top, base, w = thorax.top, thorax.base["right"], thorax.width
    if thorax.lateral:
        return _lateral_device_paths(top, base, device, j)
    side = SIGN.get(device_side(device, j), 0.0)
    if device == "endotracheal tube":
        return [np.array([(0.505, -0.05), (0.498, top), (0.497, top + 0.13 + 0.05 * j[0])])]
    if device == "enteric tube":
        bends = [
            (0.51, -0.05),
            (0.505, top),
            (0.515, top + 0.3),
            (0.52, base - 0.15),
            (0.55, base),
            (0.62, base + 0.07),
        ]
        return [_curve(bends)]
    if device == "central venous catheter":
        entry = [(0.5 + side * 0.28, top + 0.03), (0.5 + side * 0.16, top + 0.035), (0.5 + side * 0.06, top + 0.06)]
        return [_curve([*entry, (0.45, top + 0.13), (0.447, top + 0.26 + 0.05 * j[1])])]
    if device == "chest tube":
        wall, low = 0.5 + side * (w + 0.05), base - 0.15 - 0.1 * j[2]
        return [_curve([(wall, low + 0.05), (0.5 + side * w * 0.8, low - 0.02), (0.5 + side * w * 0.5, top + 0.12)])]
    x, y = 0.5 + 0.68 * w, top + 0.10
    angle = np.linspace(0.0, 2.0 * np.pi, 20)
    can = np.stack([x + 0.052 * np.cos(angle), y + 0.042 * np.sin(angle)], axis=1)
    vein = [(x - 0.03, y - 0.02), (0.6, top + 0.045), (0.5, top + 0.09), (0.45, top + 0.2)]
    tips = ([(0.44, base - 0.2), (0.48, base - 0.13)], [(0.45, base - 0.12), (0.53, base - 0.05), (0.60, base - 0.05)])
    return [can, *(_curve(vein + tip) for tip in tips)]


def _lateral_device_paths(top: float, base: float, device: str, j: tuple[float, ...]) -> list[Points]:
    if device == "endotracheal tube":
        return [np.array([(0.50, -0.05), (0.52, top + 0.05), (0.535, top + 0.16 + 0.05 * j[0])])]
    if device == "enteric tube":
        return [_curve([(0.53, -0.05), (0.56, top + 0.1), (0.60, 0.5), (0.56, base - 0.08), (0.45, base + 0.04)])]
    if device == "central venous catheter":
        return [_curve([(0.40, top), (0.44, top + 0.08), (0.46, top + 0.2), (0.455, top + 0.28 + 0.05 * j[1])])]
    if device == "chest tube":
        return [_curve([(0.5, base - 0.05), (0.60, base - 0.2), (0.66, top + 0.25), (0.60, top + 0.1)])]
    can = np.array(
        [(0.24, top + 0.10), (0.265, top + 0.10), (0.25, top + 0.19), (0.225, top + 0.19), (0.24, top + 0.10)]
    )
    return [can, _curve([(0.26, top + 0.1), (0.42, top + 0.1), (0.45, 0.45), (0.36, base - 0.2), (0.30, base - 0.16)])]


def _curve(bends: list[tuple[float, float]]) -> Points:
    """Run a smooth path through its bends."""
    forth_and_back = np.array(bends + bends[-2:0:-1])  # a closed curve that turns round at both ends
    return smooth(forth_and_back)[: 6 * (len(bends) - 1) + 1]


def _draw_device(canvas: Canvas, thorax: Thorax, device: str, jitter: tuple[float, ...]) -> Mask:
    paths = _device_paths(thorax, device, jitter)
    width = {"chest tube": 0.011, "endotracheal tube": 0.011}.get(device, 0.007)
    mask = canvas.trace(paths, width)
    return canvas.fill(paths[:1], onto=mask) if device == "pacemaker" else mask


def paint(scene: Scene, finding: Finding) -> None:
    """Draw one finding into the scene; the heart's size and the diaphragm are part of the outlines already."""
    if finding.name in _PAINTERS:
        found = regions(scene.canvas, scene.thorax, scene.lungs, finding)
        mask = found[0][1]
        for _, other in found[1:]:
            mask = cv2.max(mask, other)
        _PAINTERS[finding.name](scene, finding, mask)


def _shade(scene: Scene, mask: Mask, sigma: float, airless: float, dense: float, texture: float = 0.0) -> Plane:
    """Replace air by tissue where the mask is: the one thing most findings do."""
    soft = scene.canvas.soften(mask, sigma)
    if texture:
        soft *= np.clip(1.0 + texture * scene.mottle, 0.0, 1.6)
    scene.air *= 1.0 - np.minimum(airless * soft, 1.0)
    scene.dense += dense * soft
    return soft


def _paint_effusion(scene: Scene, finding: Finding, mask: Mask) -> None:
    # Unlike its mask, the fluid is drawn past the lung's outline: no rim of air may shine through along the wall.
    pools = [_effusion(scene.canvas, scene.thorax, finding, side) for side in sides_of(finding)]
    soft = scene.canvas.soften(cv2.max(pools[0], pools[-1]), 0.010)
    scene.dense += 0.14 * soft * scene.air
    scene.air *= 1.0 - 0.97 * soft
    scene.vessels *= 1.0 - soft


def _paint_pneumothorax(scene: Scene, finding: Finding, mask: Mask) -> None:
    soft = scene.canvas.soften(mask, 0.003)
    scene.vessels *= 1.0 - soft
    scene.air *= 1.0 + 0.22 * soft
    for side in sides_of(finding):
        edge = _collapsed(scene.thorax, finding, side)
        line = cv2.min(scene.canvas.trace([np.concatenate([edge, edge[:1]])], 0.006), scene.lungs[side])
        scene.dense += 0.16 * scene.canvas.soften(line, 0.002)
        if finding.severity == 3:  # a lung that has lost half its volume is visibly denser
            rest = cv2.min(scene.canvas.fill([edge]), scene.lungs[side])
            scene.air *= 1.0 - 0.35 * scene.canvas.soften(rest, 0.008)


def _paint_consolidation(scene: Scene, finding: Finding, mask: Mask) -> None:
    soft = _shade(scene, mask, 0.012, (0.0, 0.45, 0.70, 0.88)[finding.severity], 0.10, 0.18)
    if not scene.thorax.lateral:
        bronchi = scene.canvas.blank()
        for side in sides_of(finding):
            end, root = np.array(_centre(scene.thorax, finding, side)), np.array(scene.thorax.hila[side])
            ends = end + 0.07 * np.array([(0.9, -0.9), (0.9, 0.5), (-0.2, 1.0)]) * np.array([SIGN[side], 1.0])
            scene.canvas.trace([np.stack([root, 0.4 * root + 0.6 * end, tip]) for tip in ends], 0.008, onto=bronchi)
        scene.air += 0.22 * soft * scene.canvas.soften(bronchi, 0.003)


def _paint_opacity(scene: Scene, finding: Finding, mask: Mask) -> None:
    _shade(scene, mask, 0.012, (0.0, 0.26, 0.42, 0.56)[finding.severity], 0.03, 0.4)


def _paint_lesion(scene: Scene, finding: Finding, mask: Mask) -> None:
    _shade(scene, mask, 0.004, (0.0, 0.55, 0.68, 0.8)[finding.severity], 0.10)


def _paint_edema(scene: Scene, finding: Finding, mask: Mask) -> None:
    soft = _shade(scene, mask, 0.015, (0.0, 0.10, 0.26, 0.50)[finding.severity], 0.04, 0.5)
    scene.vessels *= 1.0 + (0.1 + 0.45 * finding.severity) * soft


def _paint_atelectasis(scene: Scene, finding: Finding, mask: Mask) -> None:
    _shade(scene, mask, 0.005, (0.0, 0.34, 0.50, 0.60)[finding.severity], 0.07)


def _paint_devices(scene: Scene, finding: Finding, mask: Mask) -> None:
    scene.dense += 0.75 * scene.canvas.soften(mask, 0.0015)


def _paint_fracture(scene: Scene, finding: Finding, mask: Mask) -> None:
    """Cut the rib and surround the gap with bright callus and a fragment that stands off."""
    pieces = [piece for side in sides_of(finding) for piece in _breaks(scene.thorax, finding, side)]
    callus = scene.canvas.trace([piece[1:3] for piece in pieces], 0.040)
    scene.dense += (0.0, 0.20, 0.28, 0.34)[finding.severity] * scene.canvas.soften(callus, 0.007)
    if scene.thorax.lateral:  # rib upon rib hides the gap
        return
    step = np.array([0.0, 0.014])
    ends = [piece[:2] - step for piece in pieces] + [piece[2:] + step for piece in pieces]
    scene.dense += 0.22 * scene.canvas.soften(scene.canvas.trace(ends, 0.008), 0.002)
    gaps = [np.stack([piece[1:3].mean(0) - 1.3 * step, piece[1:3].mean(0) + 1.3 * step]) for piece in pieces]
    scene.dense -= 0.45 * scene.canvas.soften(scene.canvas.trace(gaps, 0.006), 0.002)


_PAINTERS = {
    "Pleural Effusion": _paint_effusion,
    "Pneumothorax": _paint_pneumothorax,
    "Consolidation": _paint_consolidation,
    "Lung Opacity": _paint_opacity,
    "Lung Lesion": _paint_lesion,
    "Edema": _paint_edema,
    "Atelectasis": _paint_atelectasis,
    "Support Devices": _paint_devices,
    "Fracture": _paint_fracture,
}
