"""What the tasks with words share: images with a text each, in whole batches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from vlp_bench.data.datamodule import BatchKey, assemble
from vlp_bench.data.tokenization import Pieces, Tokenizer
from vlp_bench.tasks.base import Cell
from vlp_bench.tasks.training import TargetImages
from vlp_bench.types import WordsBatch


class WordsDataset(Dataset[WordsBatch]):
    """Whole batches of images with texts.

    Args:
        images: one image an item.
        pieces: the texts.
        texts: which text belongs to each item, (N,).
        tokenizer: of the pieces.
        max_tokens: longest text, [CLS] and [SEP] included.
        answers: float32 (N, A) score of each answer; None has none.
    """

    def __init__(
        self,
        images: TargetImages,
        pieces: Pieces,
        texts: np.ndarray,
        tokenizer: Tokenizer,
        max_tokens: int,
        answers: np.ndarray | None = None,
    ) -> None:
        self.images, self.pieces, self.texts = images, pieces, texts
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.answers = np.zeros((len(texts), 0), np.float32) if answers is None else answers

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, key: BatchKey) -> WordsBatch:
        text = assemble(self.pieces, self.texts[key.indices], self.tokenizer, self.max_tokens)
        return WordsBatch(self.images[key].image, text, torch.from_numpy(self.answers[key.indices]))


def batches(cell: Cell, data: WordsDataset, device: str) -> Iterator[WordsBatch]:
    """All items in order, on the device."""
    size = int(cell.adaptation.get("batch_size", 128))
    for step, start in enumerate(range(0, len(data), size)):
        yield data[BatchKey(0, step, np.arange(start, min(start + size, len(data))))].to(device)
