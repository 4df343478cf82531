"""Images as on worse days: blurred, noisy, flat, bright, compressed, tilted, covered. For test images alone."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import albumentations as A
import cv2
import numpy as np

from vlp_bench.data.store import PreparedData
from vlp_bench.errors import UserError

SEVERITIES = (1, 2, 3)


def _tilted(degrees: float) -> Any:
    """To the left or to the right, as the seed has it."""
    sides = [A.Rotate((a, a), border_mode=cv2.BORDER_CONSTANT, p=1) for a in (-degrees, degrees)]
    return A.OneOf(sides, p=1)


def _levels(contrast: float, brightness: float) -> Any:
    return A.RandomBrightnessContrast((brightness, brightness), (contrast, contrast), brightness_by_max=True, p=1)


def _covered(share: float) -> Any:
    """Two black squares, each of that share of the side."""
    return A.CoarseDropout((2, 2), (share, share), (share, share), p=1)


#: What makes an image worse at each of SEVERITIES, from the side of the stored image in pixels.
CORRUPTIONS: dict[str, Callable[[int], tuple[Any, Any, Any]]] = {
    # sigma as a share of the side: a severity means the same at every size
    "blur": lambda side: _each(lambda s: A.GaussianBlur(0, (s * side, s * side), p=1), 0.004, 0.008, 0.016),
    "noise": lambda _: _each(lambda s: A.GaussNoise(std_range=(s, s), p=1), 0.04, 0.08, 0.16),
    "contrast": lambda _: _each(lambda c: _levels(-c, 0.0), 0.3, 0.5, 0.7),
    "brightness": lambda _: _each(lambda b: _levels(0.0, b), 0.1, 0.2, 0.3),
    "jpeg": lambda _: _each(lambda q: A.ImageCompression("jpeg", (q, q), p=1), 30, 15, 7),
    "rotation": lambda _: _each(_tilted, 5, 10, 20),
    "occlusion": lambda _: _each(_covered, 0.15, 0.25, 0.35),
}


def _each(make: Callable[[Any], Any], *strengths: float) -> tuple[Any, Any, Any]:
    mild, medium, strong = map(make, strengths)
    return mild, medium, strong


def chosen(names: str | list[str]) -> list[str]:
    """The corruptions that `robustness=` asks for: some names, or `all`.

    Raises:
        UserError: an unknown one.
    """
    asked = list(CORRUPTIONS) if names == "all" else [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in asked if name not in CORRUPTIONS]:
        raise UserError(
            f"robustness={', '.join(map(str, unknown))}: expected all, or some of {', '.join(CORRUPTIONS)}."
        )
    return asked


class Corrupted(PreparedData):
    """Prepared data whose pixels are worse; all else is as it was.

    What is drawn for an image depends on its name, the corruption and the severity alone.

    Args:
        store: the data as they are.
        corruption: one of CORRUPTIONS.
        severity: one of SEVERITIES.
    """

    def __init__(self, store: PreparedData, corruption: str, severity: int) -> None:
        self.__dict__.update(store.__dict__)
        self.corruption, self.severity = corruption, severity

    def __getstate__(self) -> dict[str, Any]:
        """As the data it shows, with what makes them worse."""
        return super().__getstate__() | {"corruption": self.corruption, "severity": self.severity}

    @property
    def fingerprint(self) -> str:
        """Another one than that of the data: nothing kept for those may be taken for these."""
        return f"{super().fingerprint}-{self.corruption}{self.severity}"

    @cached_property
    def _transform(self) -> A.Compose:
        return A.Compose([CORRUPTIONS[self.corruption](self.size)[self.severity - 1]])

    def crops(self, rows: np.ndarray, size: int, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """As of the data, from images that are made worse as a whole."""
        corner = np.zeros(len(rows), np.int64)
        whole = super().crops(rows, self.size, corner, corner)
        names = self.images["image_id"].to_numpy()[rows]
        out = np.empty((len(rows), size, size), np.uint8)
        for n, (image, name, top, left) in enumerate(zip(whole, names, tops.tolist(), lefts.tolist(), strict=True)):
            self._transform.set_random_seed(_seed(f"{self.corruption}/{self.severity}/{name}"))
            worse = self._transform(image=image[..., None])["image"].reshape(self.size, self.size)
            out[n] = worse[top : top + size, left : left + size]
        return out


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") // 2
