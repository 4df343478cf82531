"""Key maps of image encoders in the official checkpoints of four methods, and of timm.

The names were read from state dicts of the authors' code (MGCA 680fe4a, PRIOR 086bf2e, REFERS df7e83e, MedViLL dd51e72)
with random weights; the released files themselves were not at hand.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Layout:
    """Where an official checkpoint keeps its image encoder and what belongs to it.

    Args:
        name: as in `layout=`.
        method: the method's name.
        prefix: what the encoder's keys begin with.
        sign: a key that gives the layout away.
        rule: how images are made square.
        size: side of the input in pixels; that of a ViT is read from its positions.
        facts: further arguments of the backbone.
        renamed: (pattern, replacement) in order, for what follows the prefix.
        heads: what below the prefix classifies; it is left out.
        channels: of the image that a CNN reads.
    """

    name: str
    method: str
    prefix: str
    sign: str
    rule: str
    size: int = 224
    facts: Mapping[str, Any] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    heads: tuple[str, ...] = ("fc.", "head.")
    channels: int = 3

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the sign is there; a first convolution must read as many channels as the layout's does."""
        first = state.get(self.sign)
        return first is not None and (first.ndim != 4 or first.shape[1] == self.channels)

    def vision(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Timm's name of each key of the image encoder, by the checkpoint's."""
        names = {}
        for key in state:
            rest = key.removeprefix(self.prefix)
            if not key.startswith(self.prefix) or rest.startswith(self.heads):
                continue
            for pattern, replacement in self.renamed:
                rest = re.sub(pattern, replacement, rest)
            names[key] = rest
        return names


VIT_JEYA = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^encoder\.encoder_norm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.ffn_norm\.", ".norm2."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn\.out\.", ".attn.proj."),
)
INDEXED = tuple((rf"^{i}\.", f"{name}.") for i, name in SEQUENCE.items())
_MGCA = {"method": "mgca", "prefix": "img_encoder_q.model.", "rule": "resize_and_pad"}
LAYOUTS = (
    Layout("mgca_vit", sign="img_encoder_q.model.cls_token", facts={"mean": 0.5, "std": 0.5}, **_MGCA),  # type: ignore[arg-type]
    Layout(
        "mgca_resnet",
        sign="img_encoder_q.model.conv1.weight",
        facts={"mean": 0.5, "std": 0.5, "upsample_to": 299},
        **_MGCA,  # type: ignore[arg-type]
    ),
    Layout(
        *("prior", "prior", "image_encoder.encoder.", "image_encoder.encoder.conv1.weight", "squash"),
        facts={"mean": 0.4755, "std": 0.3011, "token_stride": 32},
        channels=1,
    ),
    Layout(
        # the ResNet alone, by the author's word (issue 7 of the repository): torchvision's names without a prefix
        *("prior_resnet", "prior", "", "conv1.weight", "squash"),
        facts={"mean": 0.4755, "std": 0.3011, "token_stride": 32},
        channels=1,
    ),
    Layout(
        *("refers", "refers", "transformer.", "transformer.embeddings.cls_token", "squash"),
        facts=IMAGENET,
        renamed=VIT_JEYA,
    ),
    Layout(
        *("refers_raw", "refers", "visual.vit.transformer.", "visual.vit.transformer.embeddings.cls_token", "squash"),
        facts=IMAGENET,
        renamed=VIT_JEYA,
    ),
    Layout(
        *("medvill", "medvill", "enc.img_encoder.model.", "enc.img_encoder.model.0.weight", "squash", 512),
        facts={**IMAGENET, "token_stride": 32},
        renamed=INDEXED,
    ),
    Layout("timm_resnet", "timm", "", "conv1.weight", "resize_and_pad", facts=IMAGENET),
    Layout("timm_vit", "timm", "", "cls_token", "resize_and_pad", facts={"mean": 0.5, "std": 0.5}),
)


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with query, key and value of one layer in one tensor, as timm has them."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        found = re.match(r"(.*\.attn\.)(query|key|value)\.(weight|bias)$", key)
        if found is None:
            out[key] = value
        elif found[2] == "query":
            parts = [state.get(f"{found[1]}{part}.{found[3]}") for part in ("query", "key", "value")]
            if all(p is not None for p in parts):
                out[f"{found[1]}qkv.{found[3]}"] = torch.cat([p for p in parts if p is not None])
    return out


def architecture(state: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    """Arguments of `VisionBackbone` that the shapes of a timm state dict tell; {} for no ResNet or ViT."""
    if "patch_embed.proj.weight" in state and "pos_embed" in state:
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
        shape = {"embed_dim": width, "patch_size": patch, "depth": depth, "num_heads": max(1, width // 64)}
        return {
            "name": "vit_base_patch16_224",
            "image_size": side,
            "architecture": shape | ({"in_chans": channels} if channels != 3 else {}),
        }
    if "conv1.weight" in state and "layer4.0.conv1.weight" in state:
        depths = [len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
        deep = "layer1.0.conv3.weight" in state
        kinds = {(False, 8): "resnet18", (False, 16): "resnet34", (True, 16): "resnet50", (True, 33): "resnet101"}
        name = kinds.get((deep, sum(depths)))
        channels = state["conv1.weight"].shape[1]
        if name:
            return {
                "name": name,
                "image_size": size,
                "architecture": {"in_chans": channels} if channels != 3 else {},
            }
    return {}
