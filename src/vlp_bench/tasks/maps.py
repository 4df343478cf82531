"""Maps of labels over images: of patches against a prompt, of [CLS], of the classes of a linear probe."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.tasks.base import Cell
from vlp_bench.tasks.class_maps import Mapper, class_maps, last_map, seen
from vlp_bench.tasks.classification import linear_probe
from vlp_bench.tasks.scoring import require_comparison
from vlp_bench.types import ImageFeatures

KINDS = ("local", "attention", "cam")


def mapper(cell: Cell, kind: str, prompt: str, labels: Sequence[str]) -> tuple[Mapper, dict[str, Any], dict[str, bool]]:
    """How maps of `labels` are made, facts about it, and what the backbone is to be asked for.

    Args:
        cell: encoders, target, and for `cam` the labels that may be used.
        kind: one of KINDS.
        prompt: of `local`, with {label}.
        labels: names.

    Raises:
        UserError: another kind, or encoders that make no such maps.
    """
    if kind not in KINDS:
        raise UserError(f"task.map={kind}: expected one of {', '.join(KINDS)}.")
    make = {"local": lambda: _local(cell, prompt, labels), "attention": _attention, "cam": lambda: _cam(cell, labels)}
    found, facts = make[kind]()
    asked = {"saliency": kind == "attention", "pyramid": kind == "cam"}
    _try(cell, found, asked, kind)
    return found, facts, asked


def _try(cell: Cell, found: Mapper, asked: dict[str, bool], kind: str) -> None:
    """Make one map, or say that the encoders have none."""
    one = torch.zeros(1, 1, cell.image_size, cell.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        try:
            found(cell.encoders.vision(one, **asked), torch.tensor([0]), torch.tensor([0]))
        except _NoMap as error:
            name = cell.encoders.name
            raise NotApplicable(f"{name} has no maps of task.map={kind}: {error}.") from error


class _NoMap(Exception):
    """What a map would be made of is not there."""


def _local(cell: Cell, prompt: str, labels: Sequence[str]) -> tuple[Mapper, dict[str, Any]]:
    require_comparison(cell)
    encoders = cell.encoders
    if "{label}" not in prompt:
        raise UserError(f"task.prompt={prompt} has no {{label}}: every label would have the same map.")
    prompts = [prompt.replace("{label}", label.lower()) for label in labels]
    texts = encoders.encode_texts(prompts)

    def maps(features: ImageFeatures, image: Tensor, label: Tensor) -> Float[Tensor, "N h w"]:
        scores = encoders.local_similarity(features.to("cpu").take(image), texts.take(label))
        if scores is None:
            raise _NoMap("it aligns no patches with texts. Use task.map=cam, or attention with a ViT")
        return scores.unflatten(1, features.grid)

    return maps, {"prompts": dict(zip(labels, prompts, strict=True))}


def _attention() -> tuple[Mapper, dict[str, Any]]:
    def maps(features: ImageFeatures, image: Tensor, label: Tensor) -> Float[Tensor, "N h w"]:
        if features.saliency is None:
            raise _NoMap("only networks with a [CLS], such as a ViT, have its attention. Use task.map=cam")
        return features.saliency[image].unflatten(1, features.grid)

    return maps, {"read": "attention of [CLS], the same for every label"}


def _cam(cell: Cell, labels: Sequence[str]) -> tuple[Mapper, dict[str, Any]]:
    """Log-odds that a linear probe on the mean of the cells gives each cell; their mean is that of the image."""
    lacking = [label for label in labels if label not in cell.target.labels]
    if lacking:
        raise UserError(f"task.map=cam needs a class for each label, and target.labels lacks {', '.join(lacking)}.")
    if "penalties" not in cell.adaptation:
        raise UserError("task.map=cam trains a linear probe: use adaptation=probe_cached.")
    cell.target.require_both_classes(cell.target.rows("train"), "train")
    vision = cell.encoders.vision
    rows = {"train": cell.train_rows(), "val": cell.target.rows("val")}
    features = {
        name: np.concatenate(
            [last_map(vision, found).mean((1, 2)).float().cpu().numpy() for _, found in seen(cell, part, pyramid=True)]
        )
        for name, part in rows.items()
    }
    probe = linear_probe(cell, features, rows)
    what = "the patches of a ViT" if vision.is_vit else "the cells of the last map"
    facts = {
        "read": f"linear probe on the mean of {what}",
        "penalty": probe.penalty,
        "train_images": len(rows["train"]),
    }
    return class_maps(vision, probe, [cell.target.labels.index(label) for label in labels]), facts
