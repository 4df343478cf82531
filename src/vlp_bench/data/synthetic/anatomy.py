"""The parametric thorax: outlines of organs and bones, frontal and lateral, in unit coordinates.

Points are ``(x, y)`` with (0, 0) the upper left and (1, 1) the lower right corner of the image. The patient faces the
viewer in frontal views, so the patient's right is on the left of the image; lateral views face left.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
SIGN = {"right": -1.0, "left": 1.0}  # where a side lies from the midline of a frontal image


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What makes one patient's body differ from another's; lengths are fractions of the image side.

    Attributes:
        width: Half width of the rib cage.
        top: Height of the lung apices.
        base: Height of the right costophrenic angle.
        tilt: How much lower the left hemidiaphragm lies than the right one.
        dome: How high the hemidiaphragms bulge.
        heart: Heart size; 1 is average.
        girth: Soft tissue from 0 (slim) to 1.
        breast: Strength of the breast shadows.
        curve: Sideways bend of the spine.
        slope: How steeply the ribs fall.
        phase: Height of the first rib.
        density: How much the bones attenuate; 1 is average.
        vessels: Seed of the vessel tree.
    """

    width: float
    top: float
    base: float
    tilt: float
    dome: float
    heart: float
    girth: float
    breast: float
    curve: float
    slope: float
    phase: float
    density: float
    vessels: int


@dataclass(frozen=True, slots=True)
class Thorax:
    """The outlines of one view, as arrays (n, 2) of unit coordinates, and what findings need to find their place.

    ``lungs`` holds ``right`` and ``left``; in the lateral view both are the same outline. ``ribs`` and ``front_ribs``
    are centre lines (sides, ribs, points, 2). ``hila`` are the roots of the lungs.
    """

    lateral: bool
    body: Points
    lungs: dict[str, Points]
    heart: Points
    mediastinum: Points
    airway: list[Points]
    abdomen: Points
    spine: Points
    ribs: Points
    front_ribs: Points
    bones: list[Points]
    hila: dict[str, tuple[float, float]]
    top: float
    base: dict[str, float]
    width: float


def sample_anatomy(rng: np.random.Generator, sex: str) -> Anatomy:
    """Draw a patient's body."""
    u = rng.random(12).tolist()  # Python floats: NumPy ones would turn float32 pictures into float64
    return Anatomy(
        width=0.335 + 0.045 * u[0],
        top=0.10 + 0.05 * u[1],
        base=0.80 + 0.07 * u[2],
        tilt=0.005 + 0.025 * u[3],
        dome=0.055 + 0.035 * u[4],
        heart=0.90 + 0.18 * u[5],
        girth=u[6],
        breast=(0.25 + 0.75 * u[7]) if sex == "F" else 0.1 * u[7],
        curve=0.03 * (u[8] - 0.5),
        slope=0.08 + 0.06 * u[9],
        phase=0.02 * (u[10] - 0.5),
        density=0.75 + 0.5 * u[11],
        vessels=int(rng.integers(2**31)),
    )


def smooth(points: Points, steps: int = 6) -> Points:
    """Round a closed polygon: a Catmull-Rom curve (n * steps, 2) through its corners (n, 2)."""
    n = len(points)
    around = points[(np.arange(n)[:, None] + np.arange(-1, 3)) % n]
    return (_basis(steps) @ around).reshape(-1, 2)


@cache
def _basis(steps: int) -> Points:
    """Give the Catmull-Rom weights (steps, 4) of a corner's four neighbours."""
    t = np.linspace(0.0, 1.0, steps, endpoint=False)
    return 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1)


def thorax(anatomy: Anatomy, view: str, heart: float = 1.0, lift: dict[str, float] | None = None) -> Thorax:
    """Lay out a patient's chest for one view.

    Args:
        anatomy: The patient.
        view: ``PA``, ``AP`` or ``LATERAL``.
        heart: Factor on the heart's size (above 1: cardiomegaly).
        lift: How far each hemidiaphragm is drawn up by lost volume.

    Returns:
        The outlines in unit coordinates.
    """
    lift = lift or {}
    if view == "LATERAL":
        return _lateral(anatomy, heart, max(lift.values(), default=0.0))
    return _frontal(anatomy, view == "AP", heart, lift)


def _frontal(a: Anatomy, supine: bool, heart: float, lift: dict[str, float]) -> Thorax:
    # In bed the patient breathes in less, and the heart lies farther from the detector and looks larger.
    base = a.base - (0.035 if supine else 0.0)
    bases = {"right": base - lift.get("right", 0.0), "left": base + a.tilt - lift.get("left", 0.0)}
    size = a.heart * heart * (1.07 if supine else 1.0)
    ribs, front_ribs = _frontal_ribs(a, base)
    y = np.linspace(-0.05, 1.05, 23)
    spine = np.stack([0.5 + a.curve * np.sin(np.pi * y), y], axis=1)
    return Thorax(
        lateral=False,
        body=_frontal_body(a),
        lungs={side: _frontal_lung(a, side, bases[side]) for side in ("right", "left")},
        heart=_frontal_heart(base, size),
        mediastinum=_mediastinum(a, base),
        airway=_airway(a),
        abdomen=np.array([(0.0, base - 0.02), (1.0, base - 0.02), (1.0, 1.1), (0.0, 1.1)]),
        spine=spine,
        ribs=ribs,
        front_ribs=front_ribs,
        bones=_shoulders(a, supine),
        hila={side: (0.5 + SIGN[side] * 0.095, a.top + 0.30 + 0.012 * SIGN[side] * -1) for side in SIGN},
        top=a.top,
        base=bases,
        width=a.width,
    )


def _frontal_lung(a: Anatomy, side: str, base: float) -> Points:
    """Outline one lung from the midline outwards; the part behind heart and mediastinum is covered later."""
    w, top, height = a.width, a.top, base - a.top
    out = np.array([0.30, 0.44, 0.64, 0.81, 0.92, 0.985, 1.0, 1.0, 0.985, 0.86, 0.56, 0.34, 0.14])
    down = np.array([0.0, 0.015, 0.10, 0.26, 0.46, 0.68, 0.88, 0.97, 1.0, 0.95, 0.0, 0.0, 0.0])
    y = top + down * height
    y[10:] = base - a.dome * np.array([1.0, 0.95, 0.4])
    medial = np.array([(0.13, base - 0.35 * height), (0.13, base - 0.62 * height), (0.16, top + 0.08 * height)])
    x = np.concatenate([out, medial[:, 0]]) * w
    return smooth(np.stack([0.5 + SIGN[side] * x, np.concatenate([y, medial[:, 1]])], axis=1))


def _frontal_heart(base: float, size: float) -> Points:
    """Outline the heart; it grows mostly to the patient's left."""
    corners = np.array(
        [
            *((-0.055, -0.33), (-0.095, -0.22), (-0.105, -0.12), (-0.07, -0.04)),  # right border, downwards
            *((0.03, -0.01), (0.13, -0.01), (0.195, -0.045)),  # along the diaphragm to the apex
            *((0.19, -0.11), (0.135, -0.20), (0.085, -0.28), (0.05, -0.35)),  # left border, upwards
        ]
    )
    scale = np.array([size, 0.55 + 0.45 * size])
    return smooth(np.array([0.5, base]) + corners * scale)


def _mediastinum(a: Anatomy, base: float) -> Points:
    """Outline the great vessels: the cava on the right, the aortic knob on the left."""
    t = a.top
    right = [(0.45, -0.05), (0.447, t + 0.02), (0.448, t + 0.12), (0.442, t + 0.24), (0.435, t + 0.34), (0.44, base)]
    left = [(0.56, base), (0.575, t + 0.36), (0.572, t + 0.26), (0.588, t + 0.19), (0.57, t + 0.12), (0.553, t)]
    return smooth(np.array([*right, *left, (0.55, -0.05)]))


def _airway(a: Anatomy) -> list[Points]:
    """Give the trachea and the main bronchi as centre lines."""
    carina = (0.497, a.top + 0.235)
    trachea = np.array([(0.5, -0.05), (0.499, a.top), carina])
    return [trachea, np.array([carina, (0.44, a.top + 0.30)]), np.array([carina, (0.56, a.top + 0.315)])]


def _frontal_body(a: Anatomy) -> Points:
    """Outline neck, shoulders, arms and trunk."""
    flank = 0.5 - a.width - 0.06 - 0.06 * a.girth
    half = [(0.41, -0.1), (0.405, 0.02), (0.30, 0.065), (0.12, 0.10), (0.0, 0.17), (-0.08, 0.30), (-0.06, 0.5)]
    half += [(flank * 0.6, 0.58), (flank, 0.72), (flank - 0.02 * a.girth, 1.1)]
    right = np.array(half)
    left = right[::-1] * np.array([-1.0, 1.0]) + np.array([1.0, 0.0])
    return smooth(np.concatenate([right, left]))


def _frontal_ribs(a: Anatomy, base: float) -> tuple[Points, Points]:
    """Give centre lines (2, ribs, points, 2) of the posterior and the anterior half of each rib."""
    n, points = 10, 14
    start = a.top + a.phase - 0.015 + np.arange(n) * (base - 0.06 - a.top) / (n - 0.6)
    depth = np.clip((start + a.slope - a.top) / (base - a.top), 0.0, 1.0)
    wall = a.width * np.interp(depth, [0.0, 0.1, 0.26, 0.46, 0.7, 1.0], [0.42, 0.66, 0.84, 0.95, 1.01, 1.03])
    t = np.linspace(0.0, 1.0, points)
    x = 0.03 + (wall[:, None] - 0.03) * np.sin(0.5 * np.pi * t)
    y = start[:, None] - 0.012 * np.sin(np.pi * t) + a.slope * (1.0 - np.cos(0.5 * np.pi * t))
    x_front = wall[:, None] * (0.38 + 0.62 * np.cos(0.5 * np.pi * t))
    y_front = start[:, None] + a.slope + (0.07 + a.slope * 0.6) * np.sin(0.5 * np.pi * t)
    both = [
        np.stack([np.stack([0.5 + s * px, py], axis=2) for s in (-1, 1)]) for px, py in ((x, y), (x_front, y_front))
    ]
    return both[0], both[1][:, :7]


def _shoulders(a: Anatomy, supine: bool) -> list[Points]:
    """Outline clavicles, scapulae and upper arms; in bed the scapulae overlie the lungs."""
    rise = -0.02 if supine else 0.012
    inner, low = (0.045 if supine else 0.0), a.top
    clavicle = [(0.035, low + 0.065), (0.12, low + 0.035 + rise), (0.22, low + 0.012 + rise), (0.34, low - 0.025)]
    clavicle += [(0.34, low - 0.003), (0.22, low + 0.034 + rise), (0.12, low + 0.058 + rise), (0.035, low + 0.093)]
    edge = a.width - inner
    scapula = [
        (edge - 0.02, low + 0.03),
        (edge + 0.10, low - 0.01),
        (edge + 0.07, low + 0.12),
        (edge + 0.0, low + 0.36),
    ]
    scapula += [(edge - 0.05, low + 0.22)]
    arm = [(edge + 0.10, low - 0.01), (edge + 0.16, low + 0.02), (edge + 0.2, low + 0.4), (edge + 0.14, low + 0.4)]
    outlines = []
    for shape in (clavicle, scapula, arm):
        for sign in (-1.0, 1.0):
            outlines.append(smooth(np.array(shape) * np.array([sign, 1.0]) + np.array([0.5, 0.0])))
    return outlines


def _lateral(a: Anatomy, heart: float, lift: float) -> Thorax:
    top, base = a.top + 0.01, a.base + 0.03
    depth = 0.72 + 1.2 * (a.width - 0.335)  # barrel chests are deep as well as wide
    y = np.linspace(-0.05, 1.1, 21)
    spine = np.stack([0.5 + depth * (0.30 + 0.10 * np.sin(np.pi * (0.1 + 0.8 * y))), y], axis=1)
    lung = _lateral_lung(a, top, base, depth, lift)
    size = a.heart * heart
    angle = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
    heart_xy = np.stack([0.155 * size * np.cos(angle), 0.135 * (0.5 + 0.5 * size) * np.sin(angle)], axis=1)
    turn = np.array([[0.86, -0.5], [0.5, 0.86]])
    ribs, front_ribs = _lateral_ribs(a, top, base, depth)
    sternum = np.array([(0.30, 0.20), (0.325, 0.20), (0.20, 0.60), (0.175, 0.60)])
    sternum[:, 0] = 0.5 + (sternum[:, 0] - 0.5) * depth / 0.72
    return Thorax(
        lateral=True,
        body=_lateral_body(a, depth),
        lungs={"right": lung, "left": lung},
        heart=np.array([0.5 - 0.15 * depth, base - a.dome - 0.185]) + heart_xy @ turn,
        mediastinum=smooth(
            np.array([(0.42, 0.0), (0.56, 0.0), (0.55, top + 0.2), (0.52, 0.5), (0.42, 0.5), (0.40, 0.3)])
        ),
        airway=[np.array([(0.51, -0.05), (0.52, top + 0.05), (0.545, top + 0.25)])],
        abdomen=np.array([(0.0, base - a.dome), (1.0, base - 0.02), (1.0, 1.1), (0.0, 1.1)]),
        spine=spine,
        ribs=ribs,
        front_ribs=front_ribs,
        bones=[smooth(sternum)],
        hila={"right": (0.50, top + 0.30), "left": (0.53, top + 0.28)},
        top=top,
        base={"right": base, "left": base},
        width=0.5 * depth,
    )


def _lateral_lung(a: Anatomy, top: float, base: float, depth: float, lift: float) -> Points:
    """Outline both lungs seen from the side: retrosternal space, deep posterior sulcus, domed diaphragm."""
    dome = base - a.dome * 1.5 - lift
    front = [(-0.05, top), (-0.20, top + 0.12), (-0.34, top + 0.32), (-0.42, base - 0.28), (-0.44, base - 0.10)]
    floor = [
        (-0.36, dome - 0.005),
        (-0.15, dome - 0.02),
        (0.10, dome),
        (0.28, base - 0.05 - lift),
        (0.385, base + 0.025),
    ]
    back = [(0.41, base - 0.04), (0.44, base - 0.22), (0.43, base - 0.42), (0.34, top + 0.13), (0.14, top + 0.0)]
    return smooth(np.array(front + floor + back) * np.array([depth, 1.0]) + np.array([0.5, 0.0]))


def _lateral_body(a: Anatomy, depth: float) -> Points:
    """Outline the trunk from the side, arms raised."""
    fat = 0.02 + 0.05 * a.girth
    front = [(0.30, -0.1), (0.29, 0.06), (0.22, 0.2), (0.14 - 0.5 * fat, 0.40), (0.09 - fat, 0.62), (0.07 - fat, 1.1)]
    back = [(0.93 + fat, 1.1), (0.94 + fat, 0.7), (0.96 + fat, 0.45), (0.88 + fat, 0.22), (0.76, 0.08), (0.74, -0.1)]
    scale = np.array([depth / 0.72, 1.0])
    return smooth((np.array(front + back) - np.array([0.5, 0.0])) * scale + np.array([0.5, 0.0]))


def _lateral_ribs(a: Anatomy, top: float, base: float, depth: float) -> tuple[Points, Points]:
    """Give centre lines of the ribs of both sides, seen from the side: falling forwards from the spine."""
    n, points = 10, 14
    start = top + a.phase + np.arange(n) * (base - top) / (n - 0.5)
    t = np.linspace(0.0, 1.0, points)
    x = 0.5 + depth * (0.47 - np.outer(np.linspace(0.5, 0.95, n), t))
    y = start[:, None] - 0.03 * np.sin(np.pi * t) + (a.slope + 0.12) * t**1.3
    near = np.stack([x, y], axis=2)
    far = near + np.array([0.02, 0.018])  # the far side is magnified less and lies a little off
    return np.stack([near, far]), np.stack([near, far])[:, :0]
