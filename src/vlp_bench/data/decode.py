"""Image files to grey pixels: JPEG, PNG and whatever else Pillow reads, and DICOM; masks from files, runs, polygons."""

import io
import warnings
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
        size: what the picture is wanted for: a JPEG is decoded at the smallest scale whose sides still cover it, as is
            JPEG 2000 in DICOM.
        window: how more than eight bits become eight: `voi` (the window that the DICOM file names, from black to
            white; without one, eight bits stay as they are and more are as `minmax`), `minmax` (from the least to the
            greatest value of the picture) or `max` (from 0 to the greatest; MGCA, which does so to eight bits, too).
            Of DICOM of several frames the first is read.

    Returns:
        uint8 (H, W), and width and height in the file.

    Raises:
        OSError: the file is missing, truncated or no image.
        ValueError: DICOM without pixels, or in an encoding that no installed decoder reads.
    """
    if _is_dicom(path):
        return _dicom(path, size, window)
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
    suffix = path.suffix.lower()
    if suffix in (".dcm", ".dicom"):
        return True
    if suffix in (".png", ".jpg", ".jpeg"):
        return False
    # some archives name their files by UIDs, of which the last number is no extension
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


def _dicom(path: Path, size: int, window: str) -> tuple[np.ndarray, tuple[int, int]]:
    import pydicom

    try:
        with warnings.catch_warnings():
            # pydicom tells of much that does no harm here; what does raises
            warnings.simplefilter("ignore")
            file = pydicom.dcmread(path, force=True)
            if "PixelData" not in file:
                raise ValueError("DICOM without pixels")
            _complete(file)
            return _frame(file, size, window)
    except OSError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(said if "DICOM" in said else f"DICOM that cannot be decoded ({said[:120]})") from error


def _complete(file: Any) -> None:
    """Set what some archives leave out to what their files have."""
    import pydicom

    usual = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    for tag, value in (usual | {"BitsStored": file.get("BitsAllocated")}).items():
        if file.get(tag) in (None, ""):
            setattr(file, tag, value)
    if not file.file_meta.get("TransferSyntaxUID"):
        implicit, little = file.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit


def _frame(file: Any, size: int, window: str) -> tuple[np.ndarray, tuple[int, int]]:
    """The first frame, uint8 grey, and its width and height in the file."""
    from pydicom.pixels import apply_color_lut, pixel_array
    from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit

    syntax = file.file_meta.TransferSyntaxUID
    plain = not (file.get("ModalityLUTSequence") or _windowed(file))
    plain &= (float(file.get("RescaleSlope") or 1), float(file.get("RescaleIntercept") or 0)) == (1, 0)
    # eight bits that nothing maps stay as they are
    plain &= window == "voi" and file.BitsAllocated == 8 and file.SamplesPerPixel == 1
    # the extremes of a whole picture are not those of a reduced one
    unsigned = window == "voi" and file.SamplesPerPixel == 1 and not file.PixelRepresentation
    if plain and syntax == JPEGBaseline8Bit:
        gray, size_in_file = _jpeg(file, size)
    else:
        reduces = unsigned and syntax in (JPEG2000, JPEG2000Lossless)
        values = _jpeg2000(file, size) if reduces and file.PhotometricInterpretation != "PALETTE COLOR" else None
        size_in_file = (file.Columns, file.Rows)
        if values is None:
            values = pixel_array(file, index=0)
            size_in_file = (values.shape[1], values.shape[0])
        if file.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, file)
        if values.ndim == 3:
            colourless = cv2.cvtColor(np.ascontiguousarray(values), cv2.COLOR_RGB2GRAY)
            return (colourless if colourless.dtype == np.uint8 else _eight_bits(colourless, "minmax")), size_in_file
        gray = values if plain and values.dtype == np.uint8 else _mapped(values, file, window)
    return (255 - gray if file.PhotometricInterpretation == "MONOCHROME1" else gray), size_in_file


def _windowed(file: Any) -> bool:
    """Whether the file says how its values are shown; a window of no width says nothing."""
    center, width = (v[0] if isinstance(v := file.get(f"Window{end}"), Sequence) else v for end in ("Center", "Width"))
    return bool(file.get("VOILUTSequence")) or (center is not None and float(width or 0) >= 1)


def _frame_bytes(file: Any) -> bytes:
    from pydicom.encaps import get_frame

    return bytes(get_frame(file.PixelData, 0, number_of_frames=file.get("NumberOfFrames") or 1))


def _jpeg2000(file: Any, size: int) -> np.ndarray | None:
    """The stored values of a frame at the smallest scale, down to an eighth, whose sides still cover what is wanted.

    None where Pillow cannot read it so: some streams are cut short where only their finest level suffers.
    """
    frame = _frame_bytes(file)
    # the component's size stands in the marker SIZ
    start = frame.find(b"\xff\x4f\xff\x51")
    bits = (frame[start + 42] & 0x7F) + 1 if 0 <= start < len(frame) - 42 else 0
    try:
        with Image.open(io.BytesIO(frame)) as image:
            if image.size != (file.Columns, file.Rows):
                return None
            image.reduce = int(np.clip(np.log2(min(image.size) / size), 0, 3))  # type: ignore[assignment, method-assign]
            values = np.asarray(image)
    except (OSError, ValueError):
        return None
    # Pillow fills sixteen bits
    return values >> (16 - bits) if values.dtype == np.uint16 else values


def _jpeg(file: Any, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A frame of eight bits at the smallest scale of its JPEG whose sides still cover what is wanted."""
    with Image.open(io.BytesIO(_frame_bytes(file))) as image:
        if image.size != (file.Columns, file.Rows):
            raise ValueError(f"a JPEG of {image.size} in a DICOM of {(file.Columns, file.Rows)}")
        image.draft("L", (size, size))
        return np.asarray(image if image.mode == "L" else image.convert("L")), (file.Columns, file.Rows)


def _mapped(values: np.ndarray, file: Any, window: str) -> np.ndarray:
    """Stored values by the file's modality and VOI mappings as eight bits."""
    low, high = values.min(), values.max()
    if values.dtype.kind not in "iu" or int(high) - int(low) >= 2**17:
        return _levels(values.ravel(), file, window).reshape(values.shape)
    # each value is mapped once and looked up; a negative one counts from the end of the table
    levels = np.r_[0 : max(int(high) + 1, 0), min(int(low), 0) : 0].clip(low, high)
    return _levels(levels, file, window)[values]


def _levels(values: np.ndarray, file: Any, window: str) -> np.ndarray:
    """Eight bits of each stored value, uint8 (N,)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if window != "voi" or not _windowed(file):
        return _eight_bits(apply_modality_lut(values, file), "minmax" if window == "voi" else window)
    physical = apply_modality_lut(values, file)
    if file.get("VOILUTSequence"):
        physical = np.rint(physical).astype(np.int64)
    # the ends of the window are black and white, whether or not the picture reaches them
    ends = np.array([-(2**30), 2**30], physical.dtype)
    shown = apply_voi_lut(np.concatenate([physical, ends]), file).astype(np.float64)
    return _eight_bits(shown, "minmax")[:-2]


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
        if not (np.isfinite(points).all() and len(points) > 2):
            raise ValueError("a polygon needs three corners or more, all of them numbers")
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
    if (numbers > width * height).any():
        raise ValueError(f"a run of {numbers.max()} in an image of {width} x {height}")
    skipped, lengths = numbers[::2], numbers[1::2]
    starts = np.cumsum(skipped) + np.cumsum(lengths) - lengths
    if len(starts) and starts[-1] + lengths[-1] > width * height:
        raise ValueError(f"a run ends at pixel {starts[-1] + lengths[-1]} of an image of {width} x {height}")
    edges = np.zeros(width * height + 1, np.int8)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths, -1)
    return (np.cumsum(edges[:-1], dtype=np.int8) > 0).reshape(width, height).T.astype(np.uint8) * 255
