"""What the tasks with words share: images with a text each, in whole batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlp_bench.data.datamodule import BatchKey, assemble
from vlp_bench.data.tokenization import Pieces, Tokenizer
from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.errors import UserError
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


def joint_vector(vision: nn.Module, text: nn.Module, joint: Any, batch: WordsBatch, kind: str) -> Float[Tensor, "B D"]:
    """What a joint encoder says of images and their whole texts in one vector each; see pair_vector for the kinds."""
    tokens = vision(batch.image).tokens
    count = tokens.shape[1]
    places = torch.arange(count, device=tokens.device).expand(len(batch), -1)
    words, real = batch.text.ids[:, 1:], batch.text.mask[:, 1:]
    hidden = joint(text, tokens, places, words, real, "bi" if joint.crosses else joint.attention)
    return pair_vector(joint, hidden, count, kind)


def pair_vector(
    joint: JointEncoder, hidden: Float[Tensor, "B S D"], image_tokens: int, kind: str
) -> Float[Tensor, "B D"]:
    """One vector of the hidden states of image and text.

    Args:
        joint: the joint encoder.
        hidden: its last hidden states.
        image_tokens: how many there are of the image.
        kind: `pooled` [CLS], plain `cls`, or the `product` of [CLS] and the image's [SEP].

    Raises:
        UserError: `pooled` of an encoder that has no pooler.
    """
    if kind == "product":
        return hidden[:, 0] * hidden[:, image_tokens + 1]
    if kind == "cls":
        return hidden[:, 0]
    if joint.pooler is None:
        raise UserError("task.vector=pooled: this joint encoder has no pooler (noncross). Take cls or product.")
    return joint.pooler(hidden[:, 0]).tanh()


def batches(cell: Cell, data: WordsDataset, device: str) -> Iterator[WordsBatch]:
    """All items in order, on the device."""
    for step, places in enumerate(cell.parts(np.arange(len(data)))):
        yield data[BatchKey(0, step, places)].to(device)
