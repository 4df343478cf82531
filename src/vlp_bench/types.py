"""What travels between the rooms, typed.

Letters in the shapes: B batch, V views, C channels, H W pixels, T tokens, P patches (row-major over the grid),
D width, L labels.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

# Not typing.Self, which checkers that decorate single methods cannot resolve.
_M = TypeVar("_M", bound="_Movable")


#: Elements up to which a tensor goes from process to process by its values.
SMALL = 1 << 14


def _by_value(x: Any) -> Any:
    small = isinstance(x, Tensor) and x.is_cpu and x.numel() <= SMALL
    # numpy knows neither gradients nor bfloat16
    return x.numpy() if small and not x.requires_grad and x.dtype != torch.bfloat16 else x


def _rebuilt(kind: Any, fields: dict[str, Any]) -> Any:
    return kind(**{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()})


class _Movable:
    """`.to` and `.pin_memory` for frozen dataclasses of tensors; Lightning moves what has them."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        """Small tensors as arrays: torch would have two processes meet for each, which takes longer than the copy."""
        fields = {f.name: _by_value(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return _rebuilt, (type(self), fields)

    def _map(self: _M, fn: Any) -> _M:
        moved = {
            f.name: fn(v) if isinstance(v := getattr(self, f.name), Tensor | _Movable) else v
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]

    def to(self: _M, device: torch.device | str, non_blocking: bool = False) -> _M:
        """Copy with every tensor on `device`."""
        return self._map(lambda v: v.to(device, non_blocking=non_blocking))

    def take(self: _M, index: Tensor) -> _M:
        """Copy of the items of the batch at `index`, in that order; pyramids stay behind."""
        return self._map(lambda v: v.take(index) if isinstance(v, _Movable) else v[index])

    def pin_memory(self: _M) -> _M:
        """Copy with every tensor in page-locked memory."""
        return self._map(lambda v: v.pin_memory())


@dataclass(frozen=True, slots=True)
class Tokens(_Movable):
    """Word pieces of B texts; masks and indices are made once, by the tokeniser, never from strings.

    `word` and `sentence` number the words and sentences of a text from 0 and are -1 on special tokens and padding.
    `most_sentences` is the largest number of sentences of a text, where it is known without asking the device.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    word: Int[Tensor, "B T"]
    sentence: Int[Tensor, "B T"]
    most_sentences: int | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True, slots=True)
class StudyBatch(_Movable):
    """B samples of pre-training: up to V images of a study with its report.

    Images are grey, uint8, and the backbone normalises them; `flipped` says which of them were mirrored (the report's
    left and right are then swapped too). `study` numbers the studies of the data set, so that two images of one study
    can be told from two studies. `labels` hold 1, 0, -1 (uncertain) or nan (unknown). `caption` is the report in the
    pieces of a decoder's own vocabulary, where it has one.
    """

    image: UInt8[Tensor, "B V 1 H W"]
    view_mask: Bool[Tensor, "B V"]
    flipped: Bool[Tensor, "B V"]
    text: Tokens
    labels: Float[Tensor, "B L"]
    study: Int[Tensor, "B"]
    study_id: tuple[str, ...]
    caption: Tokens | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def frontal(self) -> UInt8[Tensor, "B 1 H W"]:
        """The first view of each sample."""
        return self.image[:, 0]


@dataclass(frozen=True, slots=True)
class LabelledBatch(_Movable):
    """B images of a downstream task with their targets; `row` points into the prepared images.

    `mask` has a plane for each of M labels, 255 where it is unknown; `boxes` are xyxy in pixels and a class, -1 on
    padding.
    """

    image: UInt8[Tensor, "B 1 H W"]
    target: Float[Tensor, "B L"]
    row: Int[Tensor, "B"]
    mask: UInt8[Tensor, "B M H W"] | None = None
    boxes: Float[Tensor, "B N 5"] | None = None

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True, slots=True)
class WordsBatch(_Movable):
    """B images with a text each: a question with the score of each of A answers, or a report (A is 0) to be written."""

    image: UInt8[Tensor, "B 1 H W"]
    text: Tokens
    answers: Float[Tensor, "B A"]

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True, slots=True)
class ImageFeatures(_Movable):
    """What a vision backbone says of B images.

    `saliency` is the head-averaged attention of [CLS] on each patch in the last block, without gradient; None for
    networks without one. `pyramid` holds maps from fine to coarse, with the strides of the spec, when asked for; with
    it comes `stem`, the finer map that a CNN makes before them.
    """

    pooled: Float[Tensor, "B D"]
    tokens: Float[Tensor, "B P Dt"]
    grid: tuple[int, int]
    saliency: Float[Tensor, "B P"] | None = None
    pyramid: tuple[Tensor, ...] = ()
    stem: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TextFeatures(_Movable):
    """What a text backbone says of B texts; `saliency` is the attention of [CLS] on each token in the last layer."""

    pooled: Float[Tensor, "B D"]
    tokens: Float[Tensor, "B T Dt"]
    index: Tokens
    saliency: Float[Tensor, "B T"] | None = None

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """True on real tokens."""
        return self.index.mask


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """The facts about a vision backbone that travel with its weights. `mean` and `std` refer to pixels in [0, 1]."""

    name: str
    pooled_dim: int
    token_dim: int
    pyramid_channels: tuple[int, ...]
    pyramid_strides: tuple[int, ...]
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
