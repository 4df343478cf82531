"""Pixels of radiographs as numpy arrays: the square in which they are stored, and the crops that networks see."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where an image of `width` x `height` lies in its stored square: x becomes x * scale + left, y * scale + top.

    The sides are rounded down to whole pixels, so that a box is off by less than one.
    """

    scale: float
    left: int
    top: int
    width: int
    height: int

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the original image in stored pixels."""
        return xyxy * self.scale + np.array([self.left, self.top, self.left, self.top])

    def original_boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in stored pixels back on the original image."""
        return (xyxy - np.array([self.left, self.top, self.left, self.top])) / self.scale

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A binary mask (height, width) of the original image in the stored square, as uint8 0 or 1.

        Raises:
            ValueError: the mask is of another size.
        """
        if mask.shape != (self.height, self.width):
            raise ValueError(f"a mask of {mask.shape} does not belong to an image of {(self.height, self.width)}")
        pixels, _ = resize_and_pad((mask > 0).astype(np.uint8) * 255, size)
        return (pixels > 127).astype(np.uint8)


def resize_and_pad(gray: np.ndarray, size: int) -> tuple[np.ndarray, Geometry]:
    """Resize the longer side to `size` by area and fill the shorter with black on both sides (MGCA supplement A.1).

    Args:
        gray: uint8 (H, W).
        size: side of the square.

    Returns:
        uint8 (size, size), and where the image lies in it.
    """
    height, width = gray.shape
    scale = size / max(height, width)
    h = size if height >= width else max(int(height * scale), 1)
    w = size if width > height else max(int(width * scale), 1)
    small = cv2.resize(gray, (w, h), interpolation=cv2.INTER_AREA)
    top, left = (size - h) // 2, (size - w) // 2
    square = np.zeros((size, size), np.uint8)
    square[top : top + h, left : left + w] = small
    return square, Geometry(scale, left, top, width, height)


def center_crop(images: np.ndarray, size: int) -> np.ndarray:
    """Cut the middle square of `size` out of images (..., H, W); half a pixel falls as in torchvision."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
