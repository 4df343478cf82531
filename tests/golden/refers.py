"""REFERS' vectors, recorded from the authors' code, fed to variant=official and to what it is built from."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from harness import Results, Vector, adapter, default_tolerance
from torch import Tensor, nn

from vlp_bench.data.datamodule import assemble
from vlp_bench.data.reports import swap_laterality
from vlp_bench.data.tokenization import Pieces, without_accents
from vlp_bench.encoders.decoders import ReportDecoder
from vlp_bench.encoders.study import StudyAligner
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.contrastive import info_nce
from vlp_bench.losses.language import next_words, reverse_words, word_loss
from vlp_bench.losses.precision import unit
from vlp_bench.methods.refers import REFERS
from vlp_bench.methods.refers_official import PatchGates, REFERSOfficial
from vlp_bench.optim import look_ahead, multiplier
from vlp_bench.tasks.classification import masked_loss
from vlp_bench.types import Tokens


def python_numbers(name: str, expected: np.ndarray) -> float | None:
    """1e-5 for losses and norms, Python numbers that are double whatever they were computed in."""
    number = expected.dtype == np.float64 and (expected.ndim == 0 or "norm_before" in name)
    return 1e-5 * float(np.abs(expected).max()) if number else default_tolerance(name, expected)


def contrast_in_float32(name: str, expected: np.ndarray) -> float | None:
    """1e-6 for gradients in double precision, 1e-5 for losses: the code casts to float32 before the contrast."""
    touched = expected.dtype == np.float64 and name.startswith("out_grad_")
    return 1e-6 * float(np.abs(expected).max()) + 1e-12 if touched else python_numbers(name, expected)


def weights(file: Vector, prefix: str = "") -> dict[str, Tensor]:
    """What is stored below `w.` and the prefix, by the rest of its name."""
    start = f"w.{prefix}"
    return {n.removeprefix(start): file.tensor(n) for n in file.names(f"^{re.escape(start)}")}


def depth(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.search(pattern, name)))


def small_text(vocab_size: int, **architecture: float) -> TextBackbone:
    """A BERT over made-up word pieces, of which number 0 is the padding."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *(f"w{i}" for i in range(5, vocab_size))]
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder) / "vocab.txt"
        vocab.write_text("\n".join(pieces))
        return TextBackbone("small", vocab=str(vocab), architecture=architecture)


def official(
    views: int, width: int, dtype: torch.dtype, vocab_size: int = 8, max_tokens: int = 4, **changed: object
) -> REFERSOfficial:
    """The method itself, around encoders that the losses do not need."""
    architecture = {"patch_size": 8, "embed_dim": width, "depth": 1, "num_heads": 1, "mlp_ratio": 0.1}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    arguments = {
        "loss_weights": {"report": 1.0, "consistency": 1.0},
        "decoder": {"width": 8, "heads": 1, "feedforward": 8},
        "views": views,
        "max_tokens": max_tokens,
    }
    method = REFERS(
        VisionBackbone("vit_tiny_patch16_224", image_size=16, architecture=architecture),
        small_text(vocab_size, **text),
        **(arguments | changed),
        variant="official",
    )
    assert isinstance(method, REFERSOfficial)
    return method.to(dtype).eval()


@adapter("refers/contrastive", contrast_in_float32, component="consistency of study and report", equation="task 2")
def contrastive(file: Vector) -> Results:
    v, u = file.tensor("in_v").requires_grad_(), file.tensor("in_u").requires_grad_()
    tau = float(file["par_tau"])
    method = official(1, 8, v.dtype, temperature=tau)
    method.shares = (float(file["par_lambda"]), 1 - float(file["par_lambda"]))
    loss = method.consistency(v, u)
    gradients = torch.autograd.grad(loss, (v, u))

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([info_nce(unit(a[i : i + 1]), unit(b), tau, i) for i in range(len(a))])

    return {
        "out_loss": loss,
        "out_image_text_terms": rows(v, u),
        "out_text_image_terms": rows(u, v),
        "out_grad_v": gradients[0],
        "out_grad_u": gradients[1],
    }


def load_gates(gates: PatchGates, state: dict[str, Tensor], order: list[int]) -> None:
    """The layer of each view, `fc1` and on, as one row of the project's."""
    rows = {k: torch.cat([state[f"fc{j}.{k}"] for j in order]) for k in ("weight", "bias")}
    gates.linear.load_state_dict(rows)


@adapter(
    "refers/fusion", component="view fusion", departure="the first gate for all views, as in the code of 2021, too"
)
def fusion(file: Vector) -> Results:
    views = len(file.names(r"^in_x\d+$"))
    x = torch.stack([file.tensor(f"in_x{j}") for j in range(1, views + 1)], 1)
    aligner = official(views, x.shape[-1], x.dtype, recurrent=False).studies
    gates, results = aligner.fusion, {}
    assert isinstance(gates, PatchGates)
    with torch.no_grad():
        for name, order in (("gate", range(1, views + 1)), ("legacy2021_gate", [1] * views)):
            load_gates(gates, weights(file), list(order))
            results |= {f"out_{name}{j + 1}": gate[..., None] for j, gate in enumerate(gates(x).unbind(1))}
            if name == "gate":
                results["out_fused"] = aligner.memory(x.mean(2), x)
    return results


@adapter("refers/lm_loss", python_numbers, component="loss of the words", equation="task 1")
def lm_loss(file: Vector) -> Results:
    logits, ids = file.tensor("in_logits").requires_grad_(), file.tensor("in_caption_tokens")
    loss = word_loss(*next_words(logits, ids, ids != int(file["par_ignore_index"])))
    return {"out_loss": loss, "out_grad_logits": torch.autograd.grad(loss, logits)[0]}


@adapter("refers/lr_schedule", component="learning rate of a step")
def lr_schedule(file: Vector) -> Results:
    results = {}
    for name in file.names("^out_"):
        run, schedule = re.fullmatch(r"out_(\w+)_(cosine|linear)", name).groups()
        prefix = "" if run == "pretrain" else f"{run}_"
        total, warmup = file[f"par_{prefix}total_warmup"].tolist()
        steps = file[f"in_{prefix}steps"].tolist()
        results[name] = np.array([multiplier(step, total, warmup, schedule=schedule) for step in steps])
    return results


@adapter(
    "refers/sgd_lookahead", python_numbers, component="SGD with clipping and Lookahead", departure="gradients are fed"
)
def sgd_lookahead(file: Vector) -> Results:
    names = [re.fullmatch("in_(.*)_start", name)[1] for name in file.names("^in_.*_start$")]
    parameters = [nn.Parameter(file.tensor(f"in_{name}_start")) for name in names]
    given = zip(parameters, file["par_max_lr"].tolist(), file["par_weight_decay"].tolist(), strict=True)
    groups = [{"params": [p], "lr": lr, "weight_decay": decay} for p, lr, decay in given]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=float(file["par_momentum"]))
    total, warmup = int(file["par_total_steps"]), int(file["par_warmup_steps"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: multiplier(step, total, warmup))
    look_ahead(optimizer, int(file["par_k"]), float(file["par_alpha"]))
    used, norms = [], []
    after: dict[str, list[Tensor]] = {name: [] for name in names}
    for step in range(len(file["out_lr_used"])):
        for name, p in zip(names, parameters, strict=True):
            p.grad = file.tensor(f"in_grads_{name}")[step]
        norms.append(nn.utils.clip_grad_norm_(parameters, float(file["par_clip_norm"])))
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
        for name, p in zip(names, parameters, strict=True):
            after[name].append(p.detach().clone())
    return {
        "out_lr_used": np.array(used),
        "out_grad_norm_before_clip": torch.stack(norms),
        **{f"out_{name}_after_step": torch.stack(kept) for name, kept in after.items()},
    }


#: names of the authors' report transformer, and ours
DECODER = {
    "visual_projection.": "projection.",
    "embedding.words.": "words.",
    "embedding.positions.": "positions.",
    "embedding.layer_norm.": "norm.",
    "transformer.layers.": "layers.",
    "output.bias": "bias",
}


def decoder_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Ours by theirs; the output's weight is that of the words."""
    return {
        name: DECODER[start] + name.removeprefix(start) for name in state for start in DECODER if name.startswith(start)
    }


def decoder_sizes(state: dict[str, Tensor], heads: int) -> dict[str, int]:
    return {
        "width": state["embedding.words.weight"].shape[1],
        "heads": heads,
        "feedforward": state["transformer.layers.0.linear1.weight"].shape[0],
        "layers": depth(state, r"^transformer\.layers\.(\d+)"),
    }


def load_decoder(decoder: ReportDecoder, state: dict[str, Tensor], backward: dict[str, Tensor] | None = None) -> None:
    torch.testing.assert_close(state["output.weight"], state["embedding.words.weight"])
    renamed = {ours: state[theirs] for theirs, ours in decoder_names(state).items()}
    for name, value in (backward or {}).items():
        renamed[name.replace("transformer.layers.", "backward_layers.")] = value
    decoder.load_state_dict(renamed)


@adapter(
    "refers/report_transformer",
    python_numbers,
    component="decoder of the report, its loss and gradients",
    equation="task 1",
)
def report_transformer(file: Vector) -> Results:
    state = weights(file)
    memory = file.tensor("in_visual_features").requires_grad_()
    vocabulary, limit = state["output.bias"].shape[0], int(file["par_max_caption_length"])
    sizes = decoder_sizes(state, int(file["par_num_heads"]))
    decoder = ReportDecoder(vocabulary, 0, memory.shape[-1], max_tokens=limit, **sizes).to(memory.dtype).eval()
    load_decoder(decoder, state)
    ids = file.tensor("in_caption_tokens")
    mask = torch.arange(ids.shape[1]) < file.tensor("in_caption_lengths")[:, None]
    hidden = decoder(memory, ids, mask)
    kept, target = next_words(hidden, ids, ids != decoder.pad)
    loss = word_loss(decoder.logits(kept), target)
    loss.backward()
    ours = decoder_names(state)
    parameters = dict(decoder.named_parameters())
    gradients = {name: parameters[ours[name.removeprefix("out_grad_w.")]].grad for name in file.names(r"^out_grad_w\.")}
    return {
        "out_embeddings": decoder.embed(ids),
        "out_textual_features": hidden,
        "out_logits": decoder.logits(hidden),
        "out_lm_loss": loss,
        "out_grad_visual_features": memory.grad,
        **gradients,
    }


def study_forward(file: Vector) -> Results:
    """The losses of studies whose encoders' outputs are given."""
    names = sorted(file.names(r"^in_vit_tokens_view\d+$"))
    views = [file.tensor(name).requires_grad_() for name in names]
    report = file.tensor("in_text_feature").requires_grad_()
    state, backward = weights(file, "textual."), weights(file, "backward_textual.")
    ids = file.tensor("in_caption_tokens")
    mask = torch.arange(ids.shape[1]) < file.tensor("in_caption_lengths")[:, None]
    method = official(
        len(views),
        views[0].shape[-1],
        report.dtype,
        vocab_size=state["output.bias"].shape[0],
        max_tokens=state["embedding.positions.weight"].shape[0],
        decoder=decoder_sizes(state, int(file["par_num_heads"])),
        bidirectional=bool(backward),
    )
    load_decoder(method.decoder, state, backward)
    load_gates(method.studies.fusion, weights(file, "fusion."), list(range(1, len(views) + 1)))
    torch.testing.assert_close(reverse_words(ids, mask), file.tensor("in_noitpac_tokens"))
    stacked = torch.stack(views, 1)
    pooled, tokens = stacked[:, :, 0], stacked[:, :, 1:]
    feature, memory = method.studies.feature(pooled), method.studies.memory(pooled, tokens)
    terms = method.report_terms(memory, ids, mask)
    contrast = method.consistency(feature, report)
    loss = torch.stack(terms).sum() + contrast
    gradients = torch.autograd.grad(loss, (*views, report))
    predicted = method.decoder.logits(method.decoder(memory, ids, mask)).argmax(-1)
    results = {
        "out_decoder_memory": memory,
        "out_global_concat": feature,
        "out_captioning_forward": terms[0],
        "out_contrastive": contrast,
        "out_loss": loss,
        "out_predictions": predicted,
        "out_grad_text_feature": gradients[-1],
    }
    for i, patches in enumerate(method.studies.recur(pooled, tokens).unbind(1)):
        results[f"out_patch_plus_global_view{i + 1}"] = patches
        results[f"out_grad_vit_tokens_view{i + 1}"] = gradients[i]
    return results | ({"out_captioning_backward": terms[1]} if backward else {})


adapter(
    "refers/study_forward_captioning",
    contrast_in_float32,
    component="both losses of a study",
    equation="tasks 1, 2",
    departure="outputs of the encoders are fed",
)(study_forward)
adapter(
    "refers/study_forward_bicaptioning",
    contrast_in_float32,
    component="both losses of a study, words read backwards, too",
    departure="outputs of the encoders are fed",
)(study_forward)


@adapter("refers/text_branch", component="feature of a report")
def text_branch(file: Vector) -> Results:
    state, ids = weights(file, "text_encoder."), file.tensor("in_input_ids")
    words, width = state["embeddings.word_embeddings.weight"].shape
    assert not file.tensor("in_token_type_ids").any()
    backbone = small_text(
        words,
        hidden_size=width,
        num_hidden_layers=depth(state, r"^encoder\.layer\.(\d+)"),
        num_attention_heads=int(file["par_num_heads"]),
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=float(file["par_layer_norm_eps"]),
    )
    pooler = {k.removeprefix("pooler.dense."): state.pop(k) for k in list(state) if k.startswith("pooler.")}
    last = weights(file, "fc.")
    aligner = StudyAligner(views=3, pooled=last["bias"].shape[0] // 3, token=1, text=width)
    dtype = last["bias"].dtype
    backbone, aligner = backbone.to(dtype).eval(), aligner.to(dtype).eval()
    aligner.text[0].load_state_dict(pooler)
    aligner.text[2].load_state_dict(last)
    backbone.bert.load_state_dict(state)
    with torch.no_grad():
        pooled = backbone(Tokens(ids, file.tensor("in_attention_mask").bool(), ids, ids)).pooled
        return {"out_pooler": aligner.text[:2](pooled), "out_text_feature": aligner.text(pooled)}


#: names of the authors' transformer, and timm's
VIT = {
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "encoder.encoder_norm.": "norm.",
    "encoder.layer.": "blocks.",
    ".attention_norm.": ".norm1.",
    ".ffn_norm.": ".norm2.",
    ".ffn.": ".mlp.",
    ".attn.out.": ".attn.proj.",
}
QKV = ("query", "key", "value")


def timm_name(name: str) -> str:
    for theirs, ours in VIT.items():
        name = name.replace(theirs, ours)
    return name


def timm_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under timm's names, with query, key and value in one."""
    out = {timm_name(name): value for name, value in state.items()}
    for name in [n for n in out if ".attn.query." in n]:
        parts = [out.pop(name.replace("query", part)) for part in QKV]
        out[name.replace("query", "qkv")] = torch.cat(parts)
    return out


def timm_gradient(trunk: nn.Module, name: str) -> Tensor:
    """Gradient of one of their weights."""
    ours, parameters = timm_name(name), dict(trunk.named_parameters())
    for i, part in enumerate(QKV):
        if f".attn.{part}." in ours:
            return parameters[ours.replace(part, "qkv")].grad.chunk(3)[i]
    return parameters[ours].grad


@adapter(
    "refers/vit_tiny",
    python_numbers,
    component="ViT, loss of a classification and gradients",
    departure="query, key and value are fed as one matrix",
)
def vit_tiny(file: Vector) -> Results:
    image, state = file.tensor("in_image"), weights(file, "transformer.")
    width, hidden = state["embeddings.cls_token"].shape[-1], state["encoder.layer.0.ffn.fc1.bias"].shape[0]
    architecture = {
        "patch_size": int(file["par_patch"]),
        "embed_dim": width,
        "depth": depth(state, r"^encoder\.layer\.(\d+)"),
        "num_heads": int(file["par_num_heads"]),
        "mlp_ratio": hidden / width,
    }
    backbone = VisionBackbone("vit_base_patch16_224", image_size=image.shape[-1], architecture=architecture)
    trunk = backbone.to(image.dtype).eval().trunk
    trunk.load_state_dict(timm_state(state))
    assert trunk.norm.eps == float(file["par_layer_norm_eps"])
    seen: list[Tensor] = []
    trunk.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = backbone(image)
    head = nn.Linear(width, file["w.head.bias"].shape[0]).to(image.dtype)
    head.load_state_dict(weights(file, "head."))
    logits = head(features.pooled)
    loss = masked_loss(logits, file.tensor("in_labels"), multiclass=False)
    loss.backward()

    def gradient(name: str) -> Tensor:
        if name.startswith("head."):
            return dict(head.named_parameters())[name.removeprefix("head.")].grad
        return timm_gradient(trunk, name.removeprefix("transformer."))

    return {
        "out_embeddings": seen[0],
        "out_tokens": torch.cat([features.pooled[:, None], features.tokens], 1),
        "out_logits": logits,
        "out_bce_loss": loss,
        **{name: gradient(name.removeprefix("out_grad_w.")) for name in file.names(r"^out_grad_w\.")},
    }


@adapter(
    "refers/caption_text",
    compared=("items",),
    component="report for the decoder: sides swapped, plain letters, cut, read from its end",
    departure="`inputs.swap=substrings`, `inputs.caption_end=cut`; ids of SentencePiece are fed",
)
def caption_text(file: Vector) -> Results:
    names = {name.strip("[]"): number for name, number in file["special"].item().items()}
    special = SimpleNamespace(pad=names["<unk>"], cls=names["SOS"], sep=names["EOS"])
    longest = int(file["max_caption_length"])

    def cut(ids: list[int]) -> tuple[Tensor, Tensor]:
        assert ids[0] == special.cls
        body = np.array(ids[1 : -1 if ids[-1] == special.sep else None], np.int32)
        pieces = Pieces(body, body, np.zeros_like(body), np.array([0, len(body)]))
        tokens = assemble(pieces, np.zeros(1, int), special, longest, end="cut")
        return tokens.ids, tokens.mask

    def item(given: dict) -> dict:
        flipped = swap_laterality(given["input"], "substrings")
        ids, mask = cut(given["token_ids_full"])
        return given | {
            "flipped": flipped,
            "normalized": without_accents(given["input"]),
            "flipped_normalized": without_accents(flipped),
            "token_ids_truncated_100": ids[0].tolist(),
            "noitpac_token_ids": reverse_words(ids, mask)[0].tolist(),
            "flipped_token_ids_truncated_100": cut(given["flipped_token_ids_truncated_100"])[0][0].tolist(),
        }

    return {"items": [item(given) for given in file["items"].tolist()]}
