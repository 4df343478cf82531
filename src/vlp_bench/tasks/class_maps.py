"""Whole images through a backbone, and what a linear classifier on the mean of its cells says of each cell."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlp_bench.data.datamodule import BatchKey
from vlp_bench.encoders.bundle import on_device
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.tasks.base import Cell
from vlp_bench.tasks.training import TargetImages
from vlp_bench.types import ImageFeatures

#: From features of B images, the image (N,) and the label (N,) of each wanted map, to the maps (N, h, w).
Mapper = Callable[[ImageFeatures, Tensor, Tensor], Float[Tensor, "N h w"]]


class LinearProbe(NamedTuple):
    """A linear classifier on features as they are; `penalty` is what validation chose for a logistic regression."""

    weight: Float[Tensor, "D L"]
    bias: Float[Tensor, " L"]
    penalty: float = 0.0

    def __call__(self, features: Float[Tensor, "... D"]) -> Float[Tensor, "... L"]:
        """Logits."""
        return features @ self.weight + self.bias


@torch.inference_mode()
def seen(cell: Cell, rows: np.ndarray, **asked: bool) -> Iterator[tuple[np.ndarray, ImageFeatures]]:
    """Places in `rows` and features of these image rows, seen whole, batch by batch on the device at hand.

    Args:
        cell: the encoders and the target.
        rows: image rows.
        **asked: what else the backbone is to return, see VisionBackbone.forward.
    """
    vision = cell.encoders.vision
    data = TargetImages(cell.target, rows, cell.image_size, cell.seed, None, whole=True)
    with on_device(vision) as device:
        for places in cell.parts(np.arange(len(rows))):
            yield places, vision(data[BatchKey(0, 0, places)].image.to(device), **asked)


def last_map(vision: VisionBackbone, features: ImageFeatures) -> Float[Tensor, "B h w D"]:
    """The cells whose mean a linear classifier can read: a CNN's last map (asked for as a pyramid), a ViT's patches."""
    return features.tokens.unflatten(1, features.grid) if vision.is_vit else features.pyramid[-1].permute(0, 2, 3, 1)


def class_maps(vision: VisionBackbone, probe: LinearProbe, columns: Sequence[int] | None = None) -> Mapper:
    """Class activation maps (Zhou et al. 2016) of a probe on the mean of the last map.

    Args:
        vision: tells where the cells are.
        probe: of C classes.
        columns: the class of each label; None where they are the same.
    """
    wanted = torch.arange(probe.weight.shape[1]) if columns is None else torch.tensor(columns)

    def maps(features: ImageFeatures, image: Tensor, label: Tensor) -> Float[Tensor, "N h w"]:
        cells = last_map(vision, features).float().cpu()[image].to(probe.weight.dtype)
        weight, bias = probe.weight[:, wanted[label]], probe.bias[wanted[label]]
        return torch.einsum("nhwd,dn->nhw", cells, weight) + bias[:, None, None]

    return maps
