"""MGCA's vectors, recorded from the authors' code, fed to variant=official and to what it is built from."""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import Results, Vector, adapter, default_tolerance, float32_inside
from torch import Tensor, nn
from two_ranks import sinkhorn_on_two

from vlp_bench.checkpoints.layouts import LAYOUTS, linear
from vlp_bench.data.images import center_crop, to_square
from vlp_bench.data.reports import clean_alphanumeric, count_words, last_section, sections, select_text
from vlp_bench.encoders import text as text_encoder
from vlp_bench.encoders import vision as vision_encoder
from vlp_bench.encoders.projection import ProjectionHead
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.contrastive import retrieval_accuracy
from vlp_bench.losses.detection import PUBLISHED_RULE, corners, decode, suppress, yolo_loss, yolo_terms
from vlp_bench.losses.precision import unit
from vlp_bench.losses.prototypes import sinkhorn
from vlp_bench.losses.segmentation import focal_loss, mixed_loss
from vlp_bench.losses.words import sum_pieces
from vlp_bench.methods.mgca import MGCA
from vlp_bench.methods.mgca_official import contrast_tokens, gather_words, shifted, surviving_slots
from vlp_bench.metrics.segmentation import count_pixels, image_dice
from vlp_bench.optim import multiplier
from vlp_bench.types import TextFeatures, Tokens


def text_backbone(vocab_size: int, **architecture: float) -> TextBackbone:
    """A small BERT over made-up word pieces."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"w{i}" for i in range(5, vocab_size))]
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join(pieces))
        return TextBackbone("small", vocab=str(vocab), architecture=architecture, positions=False, token_types=False)


def official(file: Vector, width: int, prototypes: int) -> MGCA:
    """The method itself, around encoders that the losses do not need."""
    text = text_backbone(8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    temperatures = {name: file.meta[f"{key}_temperature"] for name, key in TEMPERATURES.items()}
    return MGCA(
        VisionBackbone("resnet10t", image_size=32),
        text,
        loss_weights={"instance": 1.0, "token": 1.0, "prototype": 1.0},
        temperatures=temperatures,
        embed_dim=width,
        hidden_dim=8,
        prototypes=prototypes,
        epsilon=file.meta["epsilon"],
        sinkhorn_iterations=file.meta["sinkhorn_iterations"],
        variant="official",
    )


TEMPERATURES = {"instance": "softmax", "token": "local", "prototype": "proto"}


#: How `vlp-bench import` names what an official checkpoint holds; the official weights below pass through it.
LAYOUT = next(layout for layout in LAYOUTS if layout.name == "mgca_vit")


def leaf(file: Vector, name: str, dtype: torch.dtype) -> Tensor:
    return file.tensor(name, dtype).requires_grad_()


def suffixed(values: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    return {f"{name}{suffix}": value for name, value in values.items()}


@adapter("mgca/loss_ita", component="instance-wise loss and its accuracies", equation="L_ITA")
def loss_ita(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    method = official(file, file["in_img_feat"].shape[1], 3)
    for suffix, dtype in file.dtypes().items():
        image, report = leaf(file, "in_img_feat", dtype), leaf(file, "in_report_feat", dtype)
        v, t = unit(image), unit(report)
        loss = sum(method.instance_terms(v, t))
        gradients = torch.autograd.grad(loss, (image, report))
        results |= suffixed(
            {
                "out_loss_ita": loss,
                "out_acc1": retrieval_accuracy(v, t, 1)[None],
                "out_acc5": retrieval_accuracy(v, t, 5)[None],
                "grad_ita__img_feat": gradients[0],
                "grad_ita__report_feat": gradients[1],
            },
            suffix,
        )
    return results


def loss_cta(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    for suffix, dtype in file.dtypes().items():
        patch, word = leaf(file, "in_patch_feat", dtype), leaf(file, "in_word_feat", dtype)
        has_map = "in_attention_map" in file.arrays
        saliency = file.tensor("in_attention_map", dtype)[:, :, 0, 1:].mean(1) if has_map else None
        weight, real = file.tensor("in_word_attn", dtype), ~file.tensor("in_word_is_pad")
        terms = contrast_tokens(unit(patch), unit(word), saliency, weight, real, file.meta["local_temperature"])
        loss = sum(terms) / 2
        gradients = torch.autograd.grad(loss, (patch, word))
        results |= suffixed(
            {
                "out_loss_local": loss,
                "out_loss_word": (terms[0] + terms[1]) / 2,
                "out_loss_patch": (terms[2] + terms[3]) / 2,
                "out_loss_word_1": terms[0],
                "out_loss_word_2": terms[1],
                "out_loss_patch_1": terms[2],
                "out_loss_patch_2": terms[3],
                "grad_local__patch_feat": gradients[0],
                "grad_local__word_feat": gradients[1],
            },
            suffix,
        )
    return results


adapter(
    "mgca/loss_cta_vit",
    component="token-wise loss, ViT",
    equation="L_CTA",
    departure="the map is averaged over its heads by the adapter",
)(loss_cta)
adapter("mgca/loss_cta_resnet", component="token-wise loss, ResNet", equation="L_CTA")(loss_cta)


@adapter("mgca/loss_cpa", float32_inside, component="prototype-wise loss", equation="L_CPA")
def loss_cpa(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    for suffix, dtype in file.dtypes().items():
        image, report = leaf(file, "in_img_feat", dtype), leaf(file, "in_report_feat", dtype)
        before = file.tensor("w__prototypes_before", dtype)
        method = official(file, before.shape[1], before.shape[0])
        method.prototypes.weight = nn.Parameter(before)
        terms = method.prototype_terms(unit(image), unit(report))
        loss = sum(terms) / 2
        gradients = torch.autograd.grad(loss, (image, report, method.prototypes.weight))
        results |= suffixed(
            {
                "out_loss_cpa": loss,
                "out_loss_i2t_proto": terms[0],
                "out_loss_t2i_proto": terms[1],
                "mid_prototypes_normalised": method.prototypes.weight,
                "grad_proto__img_feat": gradients[0],
                "grad_proto__report_feat": gradients[1],
                "grad_proto__prototypes": gradients[2],
            },
            suffix,
        )
    return results


@adapter("mgca/sinkhorn", float32_inside, component="Sinkhorn-Knopp codes", equation="L_CPA")
def sinkhorn_codes(file: Vector) -> Results:
    results = {}
    for name in file.names("^out_code"):
        iterations, bits = re.search(r"iters(\d+)_f(32|64)$", name).groups()
        logits = file.tensor("in_proto_logits_BxK", {"32": torch.float32, "64": torch.float64}[bits])
        results[name] = sinkhorn(logits, file.meta["epsilon"], int(iterations))
    return results


@adapter(
    "mgca/sinkhorn_distributed_2rank",
    component="Sinkhorn-Knopp codes over two processes",
    equation="L_CPA",
    departure="two gloo processes; the authors' training never calls it",
)
def sinkhorn_distributed(file: Vector) -> Results:
    named = {name: tuple(map(int, re.findall(r"rank(\d).*iters(\d+)", name)[0])) for name in file.names("^out_")}
    logits = file.tensor("in_proto_logits_2BxK")
    with tempfile.TemporaryDirectory() as folder:
        codes = sinkhorn_on_two(folder, logits, file.meta["epsilon"], sorted({n for _, n in named.values()}))
    return {name: codes[rank][iterations] for name, (rank, iterations) in named.items()}


def tokens(ids: Tensor, continues: Tensor, meta: dict) -> Tokens:
    """The index that the tokenizer makes, from ids and the marks of pieces that go on with a word."""
    special = (ids == meta["pad_id"]) | (ids == meta["cls_id"]) | (ids == meta["sep_id"])
    word = ((~continues & ~special).cumsum(1) - 1).masked_fill(special, -1)
    return Tokens(ids, ids != meta["pad_id"], word, torch.where(special, -1, 0))


@adapter(
    "mgca/token_aggregation",
    component="word pieces to words, with their weights",
    equation="suppl. D",
    departure="marks of word pieces are fed, no text",
)
def token_aggregation(file: Vector) -> Results:
    index = tokens(file.tensor("in_ids"), file.tensor("in_is_continuation"), file.meta)
    length = index.ids.shape[1]
    x = file.tensor("in_embeddings_Bx1xLxD")[:, 0]
    # The file has the attention on tokens 1 and on, as the encoder hands it over.
    saliency = F.pad(file.tensor("in_cls_attention_BxLm1"), (1, 0))
    slots = surviving_slots(index, length)
    words = gather_words(TextFeatures(x[:, 0], x, index, saliency), length)
    first = sum_pieces(shifted(saliency)[..., None], slots)[:, :1, 0]
    piece = np.char.replace(file["in_vocab_id_to_token"][file["in_ids"]], "##", "")
    spelled = [
        ["".join(p[s == k]) or "[PAD]" for k in range(length)] for p, s in zip(piece, slots.numpy(), strict=True)
    ]
    return {
        "out_emb_Bx1xLxD": torch.cat([x[:, :1], words.vectors], 1)[:, None],
        "out_attn_BxL": torch.cat([first, words.weight], 1),
        "out_is_pad_word": F.pad(~words.mask, (1, 0)),
        "out_words": spelled,
    }


@adapter(
    "mgca/text_encoder",
    component="BERT and the words that come from it",
    equation="suppl. A.2",
    departure="marks of word pieces are fed, no text; the file's unused cross-attention is left out",
)
def text_encoder_(file: Vector) -> Results:
    fields = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "layer_norm_eps",
        "hidden_act",
    )
    config = file.meta["config"]
    backbone = text_backbone(config["vocab_size"], **{k: config[k] for k in fields}).eval()
    named = {f"text_encoder_q.model.{k}": v for k, v in file.weights().items()}
    state = {new: named[old] for old, new in LAYOUT.texts(named).items()}
    types = "embeddings.token_type_embeddings.weight"
    backbone.bert.load_state_dict(state | {types: backbone.bert.state_dict()[types]})
    index = tokens(file.tensor("in_ids"), file.tensor("in_is_continuation"), file.meta)
    assert torch.equal(index.mask, file.tensor("in_attention_mask").bool())
    last = backbone.bert.encoder.layer[-1].attention.self
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        features = backbone(index, saliency=True)
        attention = text_encoder.attention_rows(last, seen[0], index.mask, slice(None))
    words = gather_words(features, index.ids.shape[1])
    return {
        "out_last_hidden_state": features.tokens,
        "out_last_layer_attentions_BxHxLxL": attention,
        "out_report_feat": features.pooled,
        "out_word_feat": words.vectors,
        "out_word_attn": words.weight,
        "out_is_pad_word": ~words.mask,
    }


@adapter("mgca/vit", component="ViT and the attention of its last block")
def vit(file: Vector) -> Results:
    weights = file.weights()
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    backbone = VisionBackbone(
        "vit_base_patch16_224",
        image_size=file["in_image"].shape[-1],
        architecture={
            "patch_size": patch,
            "embed_dim": width,
            "depth": 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks.")),
            "num_heads": file["out_last_block_attention_BxHxNxN"].shape[1],
            "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        },
    ).eval()
    named = {f"img_encoder_q.model.{k}": v for k, v in weights.items()}
    backbone.trunk.load_state_dict({new: named[old] for old, new in LAYOUT.vision(named).items()})
    last = backbone.trunk.blocks[-1].attn
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        features = backbone(file.tensor("in_image"), saliency=True)
        attention = vision_encoder.attention_rows(last, seen[0], slice(None))
    torch.testing.assert_close(features.saliency, file.tensor("out_last_block_attention_BxHxNxN")[:, :, 0, 1:].mean(1))
    return {
        "out_tokens": torch.cat([features.pooled[:, None], features.tokens], 1),
        "out_last_block_attention_BxHxNxN": attention,
    }


def head(file: Vector) -> Results:
    named = {f"img_encoder_q.local_embed.{k}": v for k, v in file.weights().items()}
    state = linear({new.removeprefix("patch."): named[old] for old, new in LAYOUT.heads_of(named).items()})
    hidden, inputs = state["head.0.weight"].shape
    module = ProjectionHead(inputs, hidden, state["head.3.weight"].shape[0])
    module.load_state_dict(state)
    x = file.tensor("in_x")
    with torch.no_grad():
        results = {"out_eval": module.eval()(x), "out_train": module.train()(x)}
    return results | {
        f"after_train_{k}": v for k, v in module.state_dict().items() if f"after_train_{k}" in file.arrays
    }


adapter("mgca/head_global", component="projection head, one vector a sample")(head)
adapter(
    "mgca/head_local",
    component="projection head, many vectors a sample",
    departure="convolutions of size 1 are fed as linear layers",
)(head)


class ToyTrunk(nn.Module):
    """The strides of a ResNet, one convolution a stage."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        width, channels, kernel, _ = weights["conv1.weight"].shape
        self.conv1 = nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i in range(1, 5):
            out, inputs, kernel, _ = weights[f"layer{i}.weight"].shape
            stage = nn.Conv2d(inputs, out, kernel, stride=1 if i == 1 else 2, padding=kernel // 2)
            self.add_module(f"layer{i}", stage)
        self.load_state_dict(weights)

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = [self.bn1(self.conv1(x)).relu()]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
            maps.append(x)
        return x, maps


@adapter(
    "mgca/resnet_forward",
    component="cells and pooled feature of a CNN at 299 pixels",
    departure="the file's toy trunk instead of a ResNet",
)
def resnet_forward(file: Vector) -> Results:
    backbone = VisionBackbone("resnet10t", image_size=file["in_image"].shape[-1], upsample_to=299)
    backbone.trunk = ToyTrunk(file.weights())
    with torch.no_grad():
        features = backbone.eval()(file.tensor("in_image"))
    return {"out_global": features.pooled, "out_local_Bx361xC": features.tokens}


@adapter("mgca/lr_schedule", component="learning rate of a step")
def lr_schedule(file: Vector) -> Results:
    meta = file.meta
    total, warmup, peak = meta["training_steps"], meta["warmup_steps"], meta["max_lr"]
    rates = [peak * multiplier(i, total, warmup, meta["min_lr"] / peak) for i in range(len(file["out_lr"]))]
    return {"out_lr": np.array(rates)}


def one_grey_level(name: str, expected: np.ndarray) -> float | None:
    """1 grey level, as other releases of OpenCV round otherwise."""
    return (
        1.0
        if expected.dtype == np.uint8
        else 2 / 255 + 1e-6
        if "normalised" in name
        else default_tolerance(name, expected)
    )


@adapter("mgca/image_preprocess", one_grey_level, component="resizing, padding, crop, normalisation")
def image_preprocess(file: Vector) -> Results:
    backbone = VisionBackbone("resnet10t", image_size=32, mean=0.5, std=0.5)
    results: dict[str, np.ndarray | Tensor] = {}
    for name in file.names("^in_gray_"):
        i = name.removeprefix("in_gray_")
        square, _ = to_square(file[name], file.meta["size"])
        cut = torch.from_numpy(center_crop(square, file.meta["crop"]).copy())[None, None]
        results[f"out_resized_padded_{i}"] = square
        results[f"out_centercrop_normalised_{i}"] = backbone.normalise(cut)[0]
    return results


@adapter("mgca/section_split", component="sections of a report")
def section_split(file: Vector) -> Results:
    results: dict[str, object] = {}
    for i, report in enumerate(file["in_report"].tolist()):
        found = sections(report)
        results |= {
            f"out_section_text_{i}": [s.text for s in found],
            f"out_section_name_{i}": [s.name for s in found],
            f"out_section_start_{i}": [s.start for s in found],
        }
        results |= {f"out_{n}_{i}": last_section(found, n) for n in ("impression", "findings", "last_paragraph")}
    return results


@adapter("mgca/text_cleaning", component="text of a report")
def text_cleaning(file: Vector) -> Results:
    pairs = zip(file["in_impression"].tolist(), file["in_findings"].tolist(), strict=True)
    texts = [select_text({"impression": i, "findings": f}, "impression_findings") for i, f in pairs]
    cleaned = [clean_alphanumeric(text) for text in texts]
    kept = [count_words(s) >= 3 for s in cleaned]
    return {"out_kept": kept, "out_sentences": ["|".join(s) if k else "" for s, k in zip(cleaned, kept, strict=True)]}


def single_precision(name: str, expected: np.ndarray) -> float | None:
    """1e-4 also in double precision, as the authors' code divides in float32 before it averages."""
    return default_tolerance(name, expected.astype(np.float32))


@adapter(
    "mgca/seg_loss_dice",
    single_precision,
    component="segmentation: mixed loss, focal loss, published Dice",
    departure="one label; the published threshold of 0.5",
)
def seg_loss_dice(file: Vector) -> Results:
    logits, masks = leaf(file, "in_logits", torch.float32), file.tensor("in_mask")[:, None]
    loss = mixed_loss(logits[:, None], masks)
    counts = count_pixels(logits[:, None].sigmoid() > 0.5, masks > 0.5)
    return {
        "out_loss": loss,
        "out_focal": focal_loss(logits[:, None], masks),
        "out_dice": np.float64(image_dice(counts).mean()),
        "grad_logits": torch.autograd.grad(loss, logits)[0],
    }


@adapter(
    "mgca/yolo_loss",
    single_precision,
    component="detection: loss per scale, boxes, suppression",
    departure="assignment as in the authors' code (PUBLISHED_RULE)",
)
def yolo_loss_per_scale(file: Vector) -> Results:
    truth = file.tensor("in_labels_cls_cx_cy_w_h")
    labels = torch.where(truth.sum(-1) > 0, truth[..., 0], -1).long()
    results: dict[str, Tensor] = {}
    decoded = []
    for i, anchors in enumerate(file.tensor("w__anchors")):
        head = leaf(file, f"in_head{i}", torch.float32)
        terms = yolo_terms(head, anchors, 224, truth[..., 1:], labels, PUBLISHED_RULE)
        loss = yolo_loss(terms, PUBLISHED_RULE)
        decoded.append(decode(head.detach(), anchors, 224))
        results |= {
            f"out_loss{i}": loss,
            f"out_parts{i}_x_y_w_h_conf_cls": torch.stack(terms).double(),
            f"grad_head{i}": torch.autograd.grad(loss, head)[0],
            f"out_decoded{i}_cx_cy_w_h_conf_cls": decoded[-1],
        }
    for image, found in enumerate(torch.cat(decoded, 1)):
        found = found[found[:, 4] >= 0.8]
        probability, label = found[:, 5:].max(-1)
        boxes = corners(found[:, :4])
        table = torch.cat([boxes, found[:, 4:5], probability[:, None], label[:, None].float()], 1)
        results[f"out_nms_conf0.8_iou0.5_img{image}"] = table[suppress(boxes, found[:, 4], label, 0.5, margin=1.0)]
    return results
