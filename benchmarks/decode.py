"""Decoding on one core: files as large as real ones to the stored square, beside a full decode and area resize.

    python benchmarks/decode.py [--images 12] [--repeats 3]

Synthetic radiographs of 2544 x 3056 pixels, in the encodings in which archives have them, read from memory, as the disk
is not what is measured. The full decode is OpenCV's to grey, of DICOM pydicom's with numpy's scaling to eight bits.
`difference` is the mean over pixels of the absolute difference of the two squares, in grey levels.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom

from vlp_bench.data.decode import read_gray
from vlp_bench.data.images import to_square
from vlp_bench.data.synthetic import sample_studies
from vlp_bench.data.synthetic.writing import Job, draw, save_dicom, save_jpeg, save_png

STORED = 256


def naive(path: Path) -> np.ndarray:
    """A full decode to grey, then a resize by area."""
    if path.suffix == ".dcm":
        values = pydicom.dcmread(path).pixel_array.astype(float)
        low, high = values.min(), values.max()
        return to_square(((values - low) / (high - low) * 255).astype(np.uint8), STORED)[0]
    return to_square(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), STORED)[0]


def ours(path: Path) -> np.ndarray:
    """What preparation does."""
    return to_square(read_gray(path, STORED)[0], STORED)[0]


def rate(work: Callable[[Path], np.ndarray], paths: list[Path], repeats: int) -> float:
    """Images a second, the best of several rounds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for path in paths:
            work(path)
        best = min(best, time.perf_counter() - start)
    return len(paths) / best


def twelve(pixels: np.ndarray) -> np.ndarray:
    """Eight bits as twelve."""
    return pixels.astype(np.uint16) * 16


def files(folder: Path, images: int) -> dict[str, list[Path]]:
    """The same pictures in several encodings."""
    job = Job(folder, 256, True, 95)
    drawn = [draw(job, image).picture for s in sample_studies(images, 0) for image in s.images][:images]
    made: dict[str, list[Path]] = {}
    for n, picture in enumerate(drawn):
        for name, suffix, write in (
            ("JPEG", "jpg", lambda path, pixels: save_jpeg(path, pixels, 94)),
            ("PNG, 8 bit", "png", save_png),
            ("PNG, 16 bit", "16.png", lambda path, pixels: save_png(path, pixels.astype(np.uint16) * 257)),
            ("DICOM, JPEG of 8 bit", "jpeg.dcm", lambda path, pixels: save_dicom(path, pixels, encoding="jpeg")),
            (
                "DICOM, 12 bit",
                "raw.dcm",
                lambda path, pixels: save_dicom(path, twelve(pixels), BitsStored=12, HighBit=11),
            ),
            (
                "DICOM, JPEG 2000 of 12 bit",
                "j2k.dcm",
                lambda path, pixels: save_dicom(path, twelve(pixels), encoding="jpeg2000", BitsStored=12, HighBit=11),
            ),
        ):
            path = folder / f"{n}.{suffix}"
            write(path, picture)
            made.setdefault(name, []).append(path)
    return made


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        print("| encoding | MB | images/s | beside the full decode | difference |\n| --- | --- | --- | --- | --- |")
        for name, paths in files(Path(folder), given.images).items():
            size = np.mean([p.stat().st_size for p in paths]) / 1e6
            fast = rate(ours, paths, given.repeats)
            slow = rate(naive, paths, given.repeats)
            apart = np.mean([np.abs(ours(p).astype(int) - naive(p)).mean() for p in paths])
            print(f"| {name} | {size:.2f} | {fast:.0f} | {fast / slow:.2f} | {apart:.2f} |")


if __name__ == "__main__":
    main()
