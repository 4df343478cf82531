"""Key maps of the official checkpoints of four methods and of timm: images, of MGCA and PRIOR also texts.

The names were read from state dicts of the authors' code (MGCA 680fe4a, PRIOR 086bf2e, REFERS df7e83e, MedViLL dd51e72)
with random weights; the released files themselves were not at hand.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlp_bench.encoders.aligner import Aligner, DualEncoderAligner
from vlp_bench.encoders.sentence_aligner import SentenceAligner

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
#: temperature of PRIOR's prototypes, fixed in its code; a checkpoint does not hold it
GUMBEL = 0.9
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
        data: the data set it was trained on, so that an evaluation can say what was seen; "" if none that is known.
        text: what the keys of its BERT begin with; "" where no text encoder is taken.
        text_facts: further arguments of the text encoder.
        aligner: (pattern, replacement) for the keys of the projection heads.
        align: the aligner of a state dict under those names; None where heads are missing from it.
        unused: (pattern, reason) for keys that are left over on purpose.
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
    data: str = "mimic_cxr"
    text: str = ""
    text_facts: Mapping[str, Any] = field(default_factory=dict)
    aligner: tuple[tuple[str, str], ...] = ()
    align: Callable[[Mapping[str, Tensor]], Aligner | None] = lambda _: None
    unused: tuple[tuple[str, str], ...] = ()

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

    def texts(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """BertModel's name of each key of the text encoder, by the checkpoint's."""
        if not self.text:
            return {}
        return {k: k.removeprefix(self.text) for k in state if k.startswith(self.text) and not self.reason(k)}

    def heads_of(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """The aligner's name of each key of the projection heads, by the checkpoint's."""
        found = ((k, re.sub(old, new, k)) for k in state for old, new in self.aligner if re.match(old, k))
        return dict(found)

    def reason(self, key: str) -> str:
        """Why the key is left over; "" where that is not known."""
        if key.removeprefix(self.prefix).startswith(self.heads):
            return "a classifier"
        return next((why for pattern, why in self.unused if re.search(pattern, key)), "")


def dual(state: Mapping[str, Tensor]) -> DualEncoderAligner | None:
    """MGCA's aligner, of the sizes that the shapes of its state dict tell."""
    sizes = {}
    for name in ("image", "text", "patch", "word"):
        first, last = state.get(f"{name}.head.0.weight"), state.get(f"{name}.head.3.weight")
        if first is not None and last is not None:
            sizes[name] = {"inputs": first.shape[1], "hidden": first.shape[0], "outputs": last.shape[0]}
    return DualEncoderAligner(**sizes) if {"image", "text"} <= sizes.keys() else None  # type: ignore[arg-type]


def of_sentences(state: Mapping[str, Tensor]) -> SentenceAligner | None:
    """PRIOR's aligner as its authors' code has it, its bank in use; sizes from the shapes, 8 heads."""
    needed = ("image.weight", "word.weight", "image_pool.positional_embedding", "bank.vectors")
    if not all(name in state for name in needed):
        return None
    image, word, places, bank = (state[name] for name in needed)
    made = SentenceAligner(
        image_dim=image.shape[1],
        text_dim=word.shape[1],
        patches=places.shape[0] - 1,
        embed_dim=image.shape[0],
        heads=8,
        prototypes=bank.shape[0],
        sentence_pool="mean",
        attention="sigmoid",
        temperature=0.01,
        learned_temperature=True,
        mlp=False,
        normalised_prototypes=False,
        raw_patches=True,
    )
    made.bank.in_use.fill_(True)
    made.bank.temperature.fill_(GUMBEL)
    return made


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
_MGCA = {
    **{"method": "mgca", "prefix": "img_encoder_q.model.", "rule": "resize_and_pad"},
    "text": "text_encoder_q.model.",
    # The cleaned text is in lower case already; the vocabulary is the cased one of Bio_ClinicalBERT.
    "text_facts": {
        **{"name": "emilyalsentzer/Bio_ClinicalBERT", "lowercase": False},
        **{"positions": False, "token_types": False},
    },
    "aligner": (
        (r"^img_encoder_q\.global_embed\.", "image."),
        (r"^text_encoder_q\.global_embed\.", "text."),
        (r"^img_encoder_q\.local_embed\.", "patch."),
        (r"^text_encoder_q\.local_embed\.", "word."),
    ),
    "align": dual,
    "unused": (
        (r"\.crossattention\.", "cross-attention of BERT that the authors never use"),
        (r"\.position_ids$", "an index, no weight"),
        (r"^(patch|word)_local_atten_layer\.", "attention layers that the authors never use"),
        (r"^prototype_layer\.", "prototypes, which only pre-training reads"),
    ),
}
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
        text="text_encoder.encoder.",
        text_facts={"name": "emilyalsentzer/Bio_ClinicalBERT", "lowercase": False},
        align=of_sentences,
        aligner=(
            (r"^local_cross_attention\.(query|key|value)1", r"attention.image_\1"),
            (r"^local_cross_attention\.(query|key|value)2", r"attention.text_\1"),
            (r"^global_image_projection", "image"),
            (r"^local_image_projection", "patch"),
            (r"^local_text_projection", "word"),
            (r"^global_text_attention", "report_pool"),
            (r"^image_encoder\.atten_pool", "image_pool"),
            (r"^sentence_bank\.embed\.weight", "bank.vectors"),
            (r"^logit_scale", "log_scale"),
        ),
        unused=(
            (r"\.position_ids$", "an index, no weight"),
            (r"^text_encoder\.encoder\.pooler\.", "BERT's pooler, which the authors never train"),
            (r"^global_text_projection\.", "a projection that the authors never use"),
            (
                r"^(predictor|image_decoder|sentence_decoder)\.|^prototype_queries$|^local_logit_scale$",
                "pre-training only",
            ),
        ),
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
    Layout("timm_resnet", "timm", "", "conv1.weight", "resize_and_pad", data="", facts=IMAGENET),
    Layout("timm_vit", "timm", "", "cls_token", "resize_and_pad", data="", facts={"mean": 0.5, "std": 0.5}),
)


def linear(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with each convolution of kernel size 1, (out, in, 1), as the linear layer (out, in) that it is."""
    return {k: v.squeeze(-1) if v.ndim == 3 and v.shape[-1] == 1 else v for k, v in state.items()}


def bert(state: Mapping[str, Tensor]) -> dict[str, int]:
    """BertConfig fields that the shapes of a BertModel's state dict tell; the width of a head is taken to be 64."""
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.layer.")),
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["embeddings.position_embeddings.weight"].shape[0],
    }


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
