"""Speed of reading on one core: prepared data through the DataModule, beside decoding the files on the way.

    python benchmarks/data_path.py [--studies 100] [--seconds 5] [--keep DIR]

Writes synthetic studies whose JPEGs are as large as real ones (2544 x 3056, 1 to 2 MB), prepares them, and reads
batches of 64 at 224 from 256 pixels, with random crops, in both ways. The naive way is a map-style data set that opens
the full JPEG, resizes it, cuts the report and tokenises it in `__getitem__`.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from vlp_bench.data.datamodule import Inputs, MimicCxrDataModule
from vlp_bench.data.images import to_square
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.reports import clean_alphanumeric, last_section, sections, select_text
from vlp_bench.data.sources import mimic_cxr
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import Source
from vlp_bench.data.synthetic import write_raw
from vlp_bench.data.tokenization import Tokenizer

STORED, SIZE, BATCH, MAX_TOKENS = 256, 224, 64, 112


class Naive(Dataset):
    """What a first version of such a data set looks like: everything is done anew for each sample."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self.root, self.tokenizer = source.root, tokenizer
        self.samples = [(i.path, s.report_path) for s in source.studies for i in s.images if s.split == "train"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image_path, report_path = self.samples[index]
        with Image.open(self.root / image_path) as image:
            square, _ = to_square(np.asarray(image.convert("L")), STORED)
        top, left = torch.randint(0, STORED - SIZE + 1, (2,)).tolist()
        found = sections((self.root / report_path).read_text("utf-8"))
        report = {name: last_section(found, name) for name in ("findings", "impression")}
        text = clean_alphanumeric(select_text(report, "impression_findings"))
        ids = self.tokenizer.encode([text]).ids[: MAX_TOKENS - 2].astype(np.int64)
        ids = np.concatenate([[self.tokenizer.cls], ids, [self.tokenizer.sep]])
        return torch.from_numpy(square[top : top + SIZE, left : left + SIZE].copy()), torch.from_numpy(ids)


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the images and pad the texts."""
    images, texts = zip(*samples, strict=True)
    return torch.stack(images), pad_sequence(texts, batch_first=True)


def for_ever(loader: DataLoader) -> Iterator[int]:
    """Sizes of the batches, epoch after epoch."""
    epoch = 0
    while True:
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield len(batch[0]) if isinstance(batch, tuple) else len(batch)
        epoch += 1


def speed(loader: DataLoader, seconds: float, least: int = 1) -> float:
    """Images a second, after one batch of warming up."""
    batches = for_ever(loader)
    next(batches)
    images, done, start = 0, 0, time.perf_counter()
    while done < least or time.perf_counter() - start < seconds:
        images += next(batches)
        done += 1
    return images / (time.perf_counter() - start)


def forget(folder: Path) -> None:
    """Ask the kernel to drop the files from memory."""
    os.sync()
    for path in folder.rglob("*.arrow"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, studies: int, seconds: float) -> None:
    """Write, prepare, read, print."""
    cores = len(os.sched_getaffinity(0))
    raw, prepared = folder / "raw", folder / "prepared"
    if not raw.is_dir():
        took = timed(lambda: write_raw("mimic_cxr", raw, studies=studies, seed=0, full_size=True, workers=cores))
        print(f"{studies} studies of 2544 x 3056 pixels drawn in {took:.0f} s on {cores} cores")
    # from here on one core, whatever the libraries would like
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = mimic_cxr.read(raw)
    took = timed(lambda: prepare(source, prepared, Plan(STORED), private=False))
    store, tokenizer = PreparedData(prepared), Tokenizer.load("synthetic")
    images = store.manifest["counts"]["images"]
    if took > 0.5:  # otherwise it was there already
        print(f"prepared once: {images} images in {took:.1f} s, {images / took:.0f} a second on one core")
    store.pieces(tokenizer, Inputs().form)

    def module(**inputs: object) -> DataLoader:
        chosen = Inputs(frontal_only=False, min_tokens=0, max_tokens=MAX_TOKENS, **inputs)
        return MimicCxrDataModule(store, tokenizer, chosen, image_size=SIZE, batch_size=BATCH).train_dataloader()

    cold = module()
    store.pixels(np.zeros(0, np.int64))  # the files are open, but nothing of the pixels is read
    forget(prepared)
    count = len(cold) * BATCH
    rows = [("prepared: first pass, from disk", count / timed(lambda: list(islice(cold, len(cold)))))]
    naive = DataLoader(Naive(source, tokenizer), BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    rows.insert(0, ("naive: decode, resize, tokenise", speed(naive, seconds)))
    rows.append(("prepared: random crops", speed(module(), seconds)))
    rows.append(("  and flips, sentences shuffled", speed(module(flip=0.5, shuffle_sentences=True), seconds)))
    print(f"\n{'one core, batches of 64 at 224 px':34}{'images/s':>10}{'ratio':>9}")
    for name, value in rows:
        print(f"{name:34}{value:10.0f}{value / rows[0][1]:8.0f}x")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="at least 60, for a whole batch of training images")
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement")
    parser.add_argument("--keep", type=Path, help="where the files stay, to use them again")
    arguments = parser.parse_args()
    logging.getLogger("vlp_bench").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if arguments.keep:
        measure(arguments.keep, arguments.studies, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.studies, arguments.seconds)


if __name__ == "__main__":
    main()
