"""Image files to grey pixels: JPEG, PNG and whatever else Pillow reads, and DICOM; masks from files, runs, polygons."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

#: How more than eight bits become eight.
WINDOWS = ("voi", "minmax", "max")
Image.MAX_IMAGE_PIXELS = 2 * 10**8  # detectors of 14,000 x 14,000 exist; above twice this Pillow refuses


def read_gray(path: Path, size: int, window: str = "voi") -> tuple[np.ndarray, tuple[int, int]]:
    """Grey pixels of a file.

    Args:
        path: any image file, or DICOM.
        size: what the picture is wanted for: a JPEG is decoded at the smallest scale whose sides still cover it.
        window: how more than eight bits become eight: `voi` (the window that the DICOM file names, else as `minmax`),
            `minmax` (from the least to the greatest value of the picture) or `max` (from 0 to the greatest; MGCA).

    Returns:
        uint8 (H, W), and width and height in the file.

    Raises:
        OSError: the file is missing, truncated or no image.
        ValueError: DICOM without pixels, or in an encoding that no installed decoder reads.
    """
    if _is_dicom(path):
        gray = _dicom(path, window)
        return gray, (gray.shape[1], gray.shape[0])
    with Image.open(path) as image:
        size_in_file = image.size
        if image.format == "JPEG":
            image.draft("L", (size, size))
        return _gray(image, window), size_in_file


def reason(error: Exception) -> str:
    """What to tell about a file that could not be decoded; nothing of its contents."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)[:160] or type(error).__name__


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _gray(image: Image.Image, window: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        return _eight_bits(np.asarray(image), "minmax" if window == "voi" else window)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA").convert("RGB")
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def _eight_bits(values: np.ndarray, window: str) -> np.ndarray:
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = (0.0 if window == "max" else float(values.min())), float(values.max())
    scale = 255 / ((high - low) or 1.0)
    if values.dtype in (np.uint8, np.uint16):
        # a grey level of each value, looked up: a third of the time of computing with every pixel
        table = (np.arange(np.iinfo(values.dtype).max + 1) - low) * scale
        return np.clip(table, 0, 255).round().astype(np.uint8)[values]
    return np.clip((values.astype(np.float32) - low) * scale, 0, 255).round().astype(np.uint8)


def _dicom(path: Path, window: str) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    file = pydicom.dcmread(path, force=True)
    if "PixelData" not in file:
        raise ValueError("DICOM without pixels")
    # tags that some archives leave out, with the value that those files have
    for tag, usual in (
        ("SamplesPerPixel", 1),
        ("PhotometricInterpretation", "MONOCHROME2"),
        ("PixelRepresentation", 0),
    ):
        if tag not in file:
            setattr(file, tag, usual)
    if not getattr(file.file_meta, "TransferSyntaxUID", None):
        file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    try:
        values = file.pixel_array
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"DICOM that cannot be decoded ({str(error).splitlines()[0][:120]})") from error
    if file.SamplesPerPixel > 1:
        return cv2.cvtColor(values if values.ndim == 3 else values[0], cv2.COLOR_RGB2GRAY)
    values = apply_modality_lut(values if values.ndim == 2 else values[0], file)
    if window == "voi" and (file.get("WindowCenter") or file.get("VOILUTSequence")):
        values = apply_voi_lut(values, file)
    gray = _eight_bits(values, "minmax" if window == "voi" else window)
    return 255 - gray if file.PhotometricInterpretation == "MONOCHROME1" else gray


def read_mask(root: Path, mask: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask of an `ImageRef`, uint8 (height, width), 0 or 255.

    Args:
        root: of the source.
        mask: its `path`, `rle` or `polygon`.
        size: width and height of the image.

    Raises:
        OSError, ValueError: it has none of the three, cannot be read, or is of another size than the image.
    """
    if "path" in mask:
        paths = [mask["path"]] if isinstance(mask["path"], str) else mask["path"]
        return np.max([_mask_file(root / path, size) for path in paths], axis=0)
    if "polygon" in mask:
        points = np.array(mask["polygon"], np.float64).reshape(-1, 2)
        drawn = np.zeros((size[1], size[0]), np.uint8)
        return cv2.fillPoly(drawn, [points.round().astype(np.int32)], 255)
    if "rle" not in mask:
        raise ValueError("a mask needs path, rle or polygon")
    return run_lengths(mask["rle"], size)


def _mask_file(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as image:
        if image.size != size:
            raise ValueError(f"a mask of {image.size} pixels for an image of {size}")
        values = np.asarray(image.convert("L") if image.mode in ("LA", "RGB", "RGBA", "CMYK") else image)
    # drawn in 1, 255 or 65535, as the file's author liked
    return (values > values.max() / 2).astype(np.uint8) * 255


def run_lengths(text: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The mask of SIIM-ACR's runs, uint8 (height, width), 0 or 255.

    Pairs of a start, counted from the end of the run before, and a length, down the columns from the left.

    Raises:
        ValueError: an odd number of numbers, a negative one, or a run that ends beyond the image.
    """
    numbers = np.array(text.split() if isinstance(text, str) else text, np.int64)
    if len(numbers) % 2 or (numbers < 0).any():
        raise ValueError("runs are pairs of a start and a length, none negative")
    width, height = size
    skipped, lengths = numbers[::2], numbers[1::2]
    starts = np.cumsum(skipped) + np.cumsum(lengths) - lengths
    if len(starts) and starts[-1] + lengths[-1] > width * height:
        raise ValueError(f"a run ends at pixel {starts[-1] + lengths[-1]} of an image of {width} x {height}")
    edges = np.zeros(width * height + 1, np.int8)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths, -1)
    return (np.cumsum(edges[:-1], dtype=np.int8) > 0).reshape(width, height).T.astype(np.uint8) * 255
