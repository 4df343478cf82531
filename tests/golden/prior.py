"""PRIOR's vectors, recorded from the authors' code, fed to variant=official and to what it is built from."""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
from harness import Results, Vector, adapter, default_tolerance
from mgca import text_backbone
from torch import Tensor, nn

from vlp_bench.checkpoints.layouts import LAYOUTS
from vlp_bench.data.datamodule import assemble_glued
from vlp_bench.data.reports import one_line, sections
from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.cross_attention import LocalCrossAttention
from vlp_bench.encoders.decoders import ImageDecoder, SentenceDecoder
from vlp_bench.encoders.pooling import AttentionPool, SentencePool, sentence_slots
from vlp_bench.encoders.prototypes import SentenceBank
from vlp_bench.encoders.sentence_aligner import SentenceAligner, Sentences, channel_major
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.losses.reconstruction import assign, divergence, l1, masked_mean, pick, quantisation_error
from vlp_bench.methods.prior import Stages, anneal
from vlp_bench.methods.prior_official import PRIOROfficial
from vlp_bench.tasks.zero_shot import summed_scores
from vlp_bench.types import ImageFeatures, StudyBatch, TextFeatures, Tokens


def leaf(file: Vector, name: str, dtype: torch.dtype | None = None) -> Tensor:
    return file.tensor(name, dtype).requires_grad_()


def suffixed(values: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    return {f"{name}{suffix}": value for name, value in values.items()}


def numbered(file: Vector, pattern: str) -> list[str]:
    """The arrays of a pattern with one number, in its order."""
    return sorted(file.names(pattern), key=lambda n: int(re.search(pattern, n)[1]))


def padded(rows: list[Tensor]) -> Sentences:
    """Reports of different length in one batch; what fills it up is no number."""
    vectors = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e3)
    mask = torch.arange(vectors.shape[1]) < torch.tensor([[len(r)] for r in rows])
    return Sentences(vectors, mask)


#: how `vlp-bench import` names what an official checkpoint holds
LAYOUT = next(layout for layout in LAYOUTS if layout.name == "prior")
#: names of the authors' modules (second column) under ours
RENAMED = [
    *((old, f"heads.{new}") for old, new in LAYOUT.aligner),
    (r"^local_logit_scale", "sentence_log_scale"),
    (r"^prototype_queries", "sentence_decoder.queries"),
    (r"blocks\.(\d+)\.conv1\.0", r"blocks.\1.0"),
    (r"blocks\.(\d+)\.conv1\.1", r"blocks.\1.1"),
    (r"blocks\.(\d+)\.conv2\.0", r"blocks.\1.3"),
    (r"blocks\.(\d+)\.conv2\.1", r"blocks.\1.4"),
    (r"output_head\.0", "output"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.self_attn.out_proj"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"layers.\1.norm1"),
    (r"encoder\.layer\.(\d+)\.crossattention\.output\.dense", r"layers.\1.multihead_attn.out_proj"),
    (r"encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm", r"layers.\1.norm2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.linear1"),
    (r"encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.linear2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm", r"layers.\1.norm3"),
    (r"embeddings\.position_embeddings\.weight", "positions"),
    (r"embeddings\.LayerNorm", "norm"),
]
#: query, key and value are one matrix here: its rows
STACKED = re.compile(r"encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)$")


def ours(name: str) -> tuple[str, int | None]:
    """Our name of a parameter of theirs, and which third of it."""
    if found := STACKED.search(name):
        attention = {"attention": "self_attn", "crossattention": "multihead_attn"}[found[2]]
        place = f"layers.{found[1]}.{attention}.in_proj_{found[4]}"
        return name[: found.start()] + place, ["query", "key", "value"].index(found[3])
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name, None


def state(weights: dict[str, Tensor], queries: int) -> dict[str, Tensor]:
    """Weights of theirs under our names."""
    thirds: dict[str, dict[int, Tensor]] = {}
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if re.search(r"position_ids|word_embeddings|token_type_embeddings|global_text_projection", name):
            continue
        target, third = ours(name)
        if third is None:
            named[target] = value
        else:
            thirds.setdefault(target, {})[third] = value
    for prefix in ("", "sentence_decoder."):
        if f"{prefix}positions" in named:
            # Token type 0 is the same vector for every query.
            kind = weights[f"{prefix}embeddings.token_type_embeddings.weight"][0]
            named[f"{prefix}positions"] = named[f"{prefix}positions"][:queries] + kind
        if f"{prefix}queries" in named:
            named[f"{prefix}queries"] = named[f"{prefix}queries"][0]
    return named | {name: torch.cat([parts[i] for i in range(3)]) for name, parts in thirds.items()}


@adapter("prior/report_sections", component="sections of a report")
def report_sections(file: Vector) -> Results:
    # The last section of a name, as it stands in the report.
    found = [{s.name: s.text for s in sections(report)} for report in file["in_report"].tolist()]
    return {
        "out_clean_text": [one_line(text) for text in file["in_text"].tolist()],
        "out_has_sections": ["impression" in f or "findings" in f for f in found],
        "out_impression": [f.get("impression", "") for f in found],
        "out_findings": [f.get("findings", "") for f in found],
    }


@adapter(
    "prior/tokenise",
    component="word pieces of a report and their sentences",
    departure="`inputs.join=glued`; the order of the file is fed; padded to its length by the adapter",
)
def tokenise(file: Vector) -> Results:
    tokenizer = Tokenizer(file["in_vocab"].tolist(), lowercase=True)
    longest = file.meta["max_length"]
    results: dict[str, Tensor] = {}
    for name in file.names("^in_sentences_after_shuffle_"):
        text = file[name].tolist()
        assert str(file[name.replace("in_sentences_after_shuffle", "mid_concatenated_text")]) == "".join(text)
        tokens = assemble_glued([text], tokenizer, longest)
        more, number = (0, longest - tokens.ids.shape[1]), name.rpartition("_")[2]
        results |= {
            f"out_input_ids_{number}": F.pad(tokens.ids[0], more, value=tokenizer.pad),
            f"out_attention_mask_{number}": F.pad(tokens.mask[0].long(), more),
            # Theirs counts from 1.
            f"out_sentence_index_{number}": F.pad(tokens.sentence[0] + (tokens.sentence[0] >= 0), more, value=-1),
        }
    return results


@adapter("prior/attention_pool2d", component="pooling of the cells of an image")
def attention_pool2d(file: Vector) -> Results:
    x = file.tensor("in_x_BCHW").flatten(2).transpose(1, 2)
    pool = AttentionPool(x.shape[2], file.meta["num_heads"], x.shape[1])
    pool.load_state_dict(file.weights())
    return {"out": pool(x.mean(1), x)}


@adapter(
    "prior/sentence_attention_pool",
    component="pooling of the sentences of a report",
    equation="suppl. 2.2",
    departure="reports in one padded batch",
)
def sentence_attention_pool(file: Vector) -> Results:
    reports = [file.tensor(n)[0] for n in numbered(file, r"^in_sentences_(\d+)")]
    width = reports[0].shape[1]
    aligner = SentenceAligner(
        width, width, 1, width, file.meta["num_heads"], 2, "mean", "sigmoid", 0.1, True, False, False, True
    )
    aligner.report_pool.load_state_dict(file.weights())
    found = aligner.embed_reports(padded(reports))
    return {f"out_{i}_1xD": found[i : i + 1] for i in range(len(reports))}


@adapter(
    "prior/sentence_gather",
    component="pooling of word pieces to sentences, both ways",
    departure="compared only where a sentence is real",
)
def sentence_gather(file: Vector) -> Results:
    tokens, sentence = file.tensor("in_tokens"), file.tensor("in_sentence_index")
    slots = sentence_slots(Tokens(sentence, sentence >= 0, sentence, sentence))
    results = {}
    for name, kind in {"avg": "mean", "attention": "attention"}.items():
        pool = SentencePool(kind, tokens.shape[2])
        if kind == "attention":
            pool.load_state_dict({k.removeprefix("attention_pool."): v for k, v in file.weights().items()})
        vectors, mask = pool(tokens, slots, tokens.shape[1])
        results |= {f"out_{name}_{i}": vectors[i][mask[i]] for i in range(len(tokens))}
    return results


@adapter("prior/local_cross_attention", component="attention between patches and sentences", equation="LAM")
def local_cross_attention(file: Vector) -> Results:
    image, text = file.tensor("in_image_IxD")[None], file.tensor("in_text_TxD")[None]
    module = LocalCrossAttention(image.shape[2])
    prefix = "local_cross_attention."
    renamed = {ours(prefix + k)[0].removeprefix("heads.attention."): v for k, v in file.weights().items()}
    module.load_state_dict(renamed)
    found = module(image, text, torch.ones(1, text.shape[1], dtype=torch.bool))
    return {
        "out_text_to_image_context_IxD": found.of_patches[0],
        "out_text_to_image_atten_IxT": found.patch_to_sentence[0],
        "out_image_to_text_context_TxD": found.of_sentences[0],
        "out_image_to_text_atten_TxI": found.sentence_to_patch[0],
    }


LAST = {
    "global": 10.0,
    "local_image": 1.0,
    "local_text": 1.0,
    "prototype": 10.0,
    "image_reconstruction": 1.0,
    "sentence_generation": 10.0,
    "prototype_divergence": 1.0,
    "report_alignment": 1.0,
}


def method(width: int, prototypes: int, queries: int, **changed: object) -> PRIOROfficial:
    """The method itself, around encoders whose features a file gives."""
    text = text_backbone(
        8, hidden_size=changed.pop("text_dim", 8), num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    early = {"global": 1.0, "local_image": 1.0, "local_text": 1.0}
    stages = {"lengths": [1, 1, 1], "warmup": [0, 0, 0], "lr": [1, 1, 1], "start_lr": [0, 0, 0]}
    arguments = {
        "loss_weights": {"stage1": early, "stage2": early | {"prototype": 10.0}, "stage3": LAST},
        "stages": stages,
        "temperatures": {"reports": 0.01, "sentences": 0.01},
        "gumbel": {"decay": "fixed", "start": 0.9, "end": 0.09},
        "embed_dim": width,
        "heads": 1,
        "prototypes": prototypes,
        "queries": queries,
        "sentence_pool": "mean",
        "image_mask": 0.0,
        "decoder": {"layers": 1, "heads": 1, "hidden": 8, "dropout": 0.0},
        "variant": "official",
    }
    made = PRIOROfficial(VisionBackbone("test_resnet", image_size=224), text, **(arguments | changed))
    return made


def set_scale(scale: Tensor, stored: Tensor) -> None:
    """The scale that the code starts from, which a file holds in single precision only."""
    exact = -math.log(round(math.exp(-float(stored)), 4))
    assert abs(exact - float(stored)) < 1e-6
    scale.data.fill_(exact)


def load(module: PRIOROfficial, weights: dict[str, Tensor], queries: int) -> None:
    """Every weight of theirs has a place here."""
    faults = module.load_state_dict(state(weights, queries), strict=False)
    assert not faults.unexpected_keys, faults.unexpected_keys


@adapter(
    "prior/local_alignment_loss",
    component="local losses and gradients",
    equation="LAM",
    departure="reports in one padded batch; the scale is fed in double precision",
)
def local_alignment_loss(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    texts = numbered(file, r"^in_text_(\d+)_")
    for suffix, dtype in file.dtypes().items():
        image, reports = leaf(file, "in_image_BxIxD", dtype), [leaf(file, n, dtype) for n in texts]
        prior = method(image.shape[2], 2, 2)
        load(prior, file.weights(), 2)
        prior.to(dtype)
        set_scale(prior.sentence_log_scale, file.tensor("w__local_logit_scale"))
        sentences = padded(reports)
        context = prior.heads.attention(image, *sentences)
        losses = {
            "local_image_loss": prior.patch_term(image, context),
            "local_text_loss": prior.sentence_term(sentences, context),
        }
        found = {f"out_{n}": v for n, v in losses.items()} | {"out_text_to_local_image_embed": context.of_patches}
        own = dict(prior.named_parameters())
        for name in file.names(f"^grad_.*{suffix}$"):
            loss, wrt = re.fullmatch(rf"grad_(.*?)__(.*){suffix}", name).groups()
            if wrt == "image":
                source = image
            elif number := re.fullmatch(r"text_(\d+)", wrt):
                source = reports[int(number[1])]
            else:
                source = own[ours(wrt)[0]]
            found[f"grad_{loss}__{wrt}"] = torch.autograd.grad(losses[loss], source, retain_graph=True)[0]
        results |= suffixed(found, suffix)
    return results


@adapter(
    "prior/global_alignment_loss",
    component="contrast of image and report",
    equation="stage 1",
    departure="the scale is fed in double precision",
)
def global_alignment_loss(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    for suffix, dtype in file.dtypes().items():
        image, text = leaf(file, "in_image_BxD", dtype), leaf(file, "in_text_BxD", dtype)
        prior = method(image.shape[1], 2, 2)
        load(prior, file.weights(), 2)
        prior.to(dtype)
        set_scale(prior.heads.log_scale, file.tensor("w__logit_scale"))
        loss = prior.contrast(image, text)
        gradients = torch.autograd.grad(loss, (image, text, prior.heads.log_scale))
        names = [f"grad_loss__{n}" for n in ("image", "text", "logit_scale")]
        results |= suffixed({"out_loss": loss} | dict(zip(names, gradients, strict=True)), suffix)
    return results


@adapter("prior/spb", component="sentence prototype bank", equation="SPB", departure="draws of the file are fed")
def spb(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    temperatures = sorted({re.search(r"tau([\d.]+)_", n)[1] for n in file.names("^out_tau")})
    for suffix, dtype in file.dtypes().items():
        for tau in temperatures:
            x, y = leaf(file, "in_x", dtype), leaf(file, "in_y_for_kl", dtype)
            vectors, noise = file.tensor("w__embed", dtype), file.tensor("in_gumbel", dtype)[None]
            bank = SentenceBank(*vectors.shape, normalised=False).to(dtype)
            bank.load_state_dict({"vectors": vectors}, strict=False)
            logits = bank.logits(x[None])
            prototypes = bank(x[None], float(tau), noise)
            real = torch.ones(1, len(x), dtype=torch.bool)
            error = masked_mean(quantisation_error(x[None], prototypes), real, real.sum().float())
            kl = masked_mean(divergence(logits, bank.logits(y[None])), real, real.sum().float())
            of_error = torch.autograd.grad(error, (x, bank.vectors), retain_graph=True)
            of_kl = torch.autograd.grad(kl, (x, y, bank.vectors))
            found = {
                "out_%s_prototypes": prototypes[0],
                "out_%s_recon_loss": error,
                "out_%s_index": (logits + noise)[0].argmax(1),
                "out_%s_kl": kl,
                "grad_%s_recon_loss__x": of_error[0],
                "grad_%s_recon_loss__bank": of_error[1],
                "grad_%s_kl__x": of_kl[0],
                "grad_%s_kl__y": of_kl[1],
                "grad_%s_kl__bank": of_kl[2],
            }
            results |= suffixed({n % f"tau{tau}": v for n, v in found.items()}, suffix)
    return results


@adapter(
    "prior/hungarian_spg",
    component="matching of generated prototypes, divergence",
    equation="CCR",
    departure="matched vectors compared only where a sentence is real; no gradient to the target of the divergence",
)
def hungarian_spg(file: Vector) -> Results:
    results: dict[str, Tensor] = {}
    mask = file.tensor("in_mask").bool()
    for suffix, dtype in file.dtypes().items():
        logits, targets = leaf(file, "in_logits", dtype), leaf(file, "in_protos_padded", dtype)
        vectors = file.tensor("w__embed", dtype)
        prior = method(vectors.shape[1], len(vectors), logits.shape[1])
        bank = prior.heads.bank.to(dtype)
        bank.load_state_dict({"vectors": vectors}, strict=False)
        column = assign(logits, targets)
        matched = pick(logits, prior.pairing(column))
        spg = file.meta["lambda_proto"] * l1(matched, targets)
        raw = torch.zeros_like(targets)
        raw[mask] = file.tensor("in_gt_sentence_features_for_gt_dist", dtype)
        # The file was recorded with the products of the sentences as given; stage_steps has them with their gradient.
        kl = masked_mean(divergence(bank.logits(raw).detach(), bank.logits(matched)), mask, mask.sum().float())
        of_spg = torch.autograd.grad(spg, (logits, targets), retain_graph=True)
        of_kl = torch.autograd.grad(kl, (logits, bank.vectors))
        right = file.meta["lambda_proto"] * l1(pick(logits, column.argsort(1)), targets)
        torch.testing.assert_close(right, file.tensor("ref_spg_x10_if_correct_pairing", dtype), rtol=1e-5, atol=0)
        results["mid_col_ind"] = column
        results |= suffixed(
            {
                "out_spg_loss_x10": spg,
                "out_kl_loss": kl,
                "grad_spg__logits": of_spg[0],
                "grad_spg__protos": of_spg[1],
                "grad_kl__logits": of_kl[0],
                "grad_kl__bank": of_kl[1],
            }
            | {f"out_matched_logits_{i}": matched[i][mask[i]] for i in range(len(mask))},
            suffix,
        )
    return results


@adapter(
    "prior/image_decoder",
    component="reconstruction of the image",
    equation="CCR",
    departure="images compared at the stride of the file",
)
def image_decoder(file: Vector) -> Results:
    image, text = leaf(file, "in_image_embed"), leaf(file, "in_text_embed")
    target = file.tensor("in_image")
    decoder = ImageDecoder(image.shape[1], tuple(image.shape[2:]), target.shape[2], norm_last=False)
    decoder.load_state_dict({ours(k)[0]: v for k, v in file.weights().items()})
    results: dict[str, Tensor] = {}
    for mode in ("eval", "train"):
        drawn = decoder.train(mode == "train")(image, text)
        stride = drawn.shape[2] // file[f"out_{mode}"].shape[2]
        results |= {f"out_{mode}": drawn[..., ::stride, ::stride], f"out_{mode}_loss": l1(drawn, target)}
    gradients = torch.autograd.grad(results["out_train_loss"], (image, text))
    names = ("grad_train_loss__image_embed", "grad_train_loss__text_embed")
    return results | dict(zip(names, gradients, strict=True))


def depth(weights: dict[str, Tensor]) -> int:
    return 1 + max(int(found[1]) for n in weights if (found := re.search(r"encoder\.layer\.(\d+)\.", n)))


@adapter(
    "prior/sentence_decoder",
    component="generation of prototypes",
    equation="CCR",
    departure="queries of each sample are fed as the decoder's own",
)
def sentence_decoder(file: Vector) -> Results:
    weights, queries = file.weights(), file.tensor("in_queries")
    decoder = SentenceDecoder(
        queries.shape[2],
        queries.shape[1],
        depth(weights),
        file.meta["heads"],
        weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        0.1,
        causal=True,
    ).eval()
    named = state(weights, queries.shape[1])
    image = file.tensor("in_image_embed")
    out = []
    with torch.no_grad():
        for own, patches in zip(queries, image, strict=True):
            decoder.load_state_dict(named | {"queries": own})
            out.append(decoder(patches[None])[0])
    return {"out": torch.stack(out)}


class Identity(nn.Module):
    """A trunk whose last map is its input."""

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x, [x] * 5


@adapter("prior/resnet_local_reshape", component="rows of raw memory for patches", departure="the last map is fed")
def resnet_local_reshape(file: Vector) -> Results:
    backbone = VisionBackbone("test_resnet", image_size=32)
    backbone.set_token_stride(backbone.spec.pyramid_strides[-1])
    backbone.trunk = Identity()
    features = backbone._cnn(file.tensor("in_layer4_map"), pyramid=False)
    return {"out_local": channel_major(features.tokens), "out_global_mean": features.pooled}


@adapter("prior/schedules", component="learning rates of the stages, Gumbel temperature")
def schedules(file: Vector) -> Results:
    per_epoch = file.meta["iters_per_epoch"]
    warmup, lengths, peak, start, final = zip(*(file.meta["stages"][str(i)] for i in (1, 2, 3)), strict=True)
    assert set(final) == {0}
    base = peak[0]
    stages = Stages(lengths, warmup, [p / base for p in peak], [s / p for s, p in zip(start, peak, strict=True)])
    total = per_epoch * sum(lengths)
    rates = np.array([base * stages.lr_factor(i, total) for i in range(total)])
    cuts = np.cumsum([0, *lengths]) * per_epoch
    results = {f"out_stage{i + 1}_lr": rates[cuts[i] : cuts[i + 1]] for i in range(3)}
    decays = {"fixed": "fixed", "linear": "linear", "exp": "exponential"}
    for name in file.names("^out_spb_temp_"):
        tau = [anneal(decays[name.split("_")[3]], 0.9, 0.09, f / 100) for f in range(0, 101, 10)]
        results[name] = np.array(tau)
    return results


def deep(name: str, expected: np.ndarray) -> float | None:
    """2e-3 for gradients, which the file has in single precision, through the whole method."""
    return (
        2e-3 * float(np.abs(expected).max()) + 1e-7 if name.startswith("grad_") else default_tolerance(name, expected)
    )


class Given(nn.Module):
    """An encoder whose features a file gives."""

    def __init__(self, features: object, image: Tensor | None = None) -> None:
        super().__init__()
        self.features, self.image = features, image

    def forward(self, *_: object) -> object:
        return self.features

    def normalise(self, _: Tensor) -> Tensor:
        return self.image


#: the terms under the authors' names, with the factor that these hold already
TERMS = {
    "global": ("global_alignment_loss", 1),
    "local_image": ("local_image_loss", 1),
    "local_text": ("local_text_loss", 1),
    "prototype": ("proto_loss_", 10),
    "image_reconstruction": ("rec_image_loss", 1),
    "sentence_generation": ("spg_loss", 10),
    "prototype_divergence": ("kl_loss", 1),
    "report_alignment": ("gpa_loss", 1),
}


@adapter(
    "prior/stage_steps",
    deep,
    component="all losses and gradients of the three stages",
    equation="stages 1 to 3",
    departure="computed in float64; features and draws of the file are fed",
)
def stage_steps(file: Vector) -> Results:
    weights, meta = file.weights(), file.meta
    prototypes, width = weights["sentence_bank.embed.weight"].shape
    # Twice the file's precision, which leaves the rounding of the file alone.
    features = ("in_local_image_features", "in_global_image_features", "in_token_features", "in_image")
    local, pooled, tokens, image = (file.tensor(n, torch.float64) for n in features)
    sentence = file.tensor("in_sentence_index")
    prior = method(
        width,
        prototypes,
        meta["num_queries"],
        text_dim=tokens.shape[2],
        heads=meta["global_pool_heads"],
        decoder={
            "layers": meta["decoder_layers"],
            "heads": meta["decoder_heads"],
            "hidden": len(weights["sentence_decoder.encoder.layer.0.intermediate.dense.weight"]),
            "dropout": 0.0,
        },
    )
    prior.heads.image, prior.heads.patch = (nn.Linear(pooled.shape[1], width) for _ in range(2))
    load(prior, weights, meta["num_queries"])
    prior.double().train()
    prior.heads.image_pool = Given(pooled)
    # The file has the rows of raw memory; the map that they come from is what an encoder gives.
    cells = local.flatten(1).unflatten(1, (local.shape[2], -1)).transpose(1, 2)
    prior.vision = Given(ImageFeatures(pooled, cells, prior.grid), image)
    index = Tokens(sentence, sentence >= 0, sentence, sentence)
    prior.text = Given(TextFeatures(tokens[:, 0], tokens, index))
    batch = StudyBatch(
        torch.zeros(len(tokens), 1, 1, 1, 1, dtype=torch.uint8),
        torch.ones(len(tokens), 1, dtype=torch.bool),
        torch.zeros(len(tokens), 1, dtype=torch.bool),
        index,
        torch.zeros(len(tokens), 1),
        torch.arange(len(tokens)),
        tuple(map(str, range(len(tokens)))),
    )
    results: dict[str, object] = {}
    for number in (1, 2, 3):
        results |= one_stage(file, prior, number, batch)
    return results


def one_stage(file: Vector, prior: PRIOROfficial, number: int, batch: StudyBatch) -> dict[str, object]:
    sentences = sentence_slots(batch.text).amax(1, keepdim=True) + 1
    draws = iter([file.tensor(n) for n in numbered(file, rf"^in_stage{number}_gumbel_draw(\d+)")])

    def recorded(like: Tensor) -> Tensor:
        drawn = next(draws)
        noise = drawn.new_zeros((*like.shape[:2], drawn.shape[1]))
        noise[torch.arange(like.shape[1]) < sentences] = drawn
        return noise

    prior.noise, prior.stage = recorded, number
    prior.zero_grad()
    terms = prior.losses(batch)
    weights = prior.weights(0.0)
    assert weights.keys() == terms.keys()
    loss = torch.stack([weights[n] * v for n, v in terms.items()]).sum()
    loss.backward()
    assert next(draws, None) is None
    results: dict[str, object] = {f"out_stage{number}_loss": loss}
    results |= {f"out_stage{number}_{TERMS[n][0]}": TERMS[n][1] * v for n, v in terms.items()}
    gradients = {n: p.grad for n, p in prior.named_parameters()}
    for name in file.names(f"^grad_stage{number}__"):
        own, third = ours(name.removeprefix(f"grad_stage{number}__"))
        gradient = gradients[own] if third is None else gradients[own].chunk(3)[third]
        results[name] = gradient.reshape(file[name].shape)
    # The file names parameters, but none of the layers of the sentence decoder.
    listed = [n for n in file.weights() if not re.search(r"running_|num_batches|position_ids|encoder\.layer", n)]
    unused = ("global_text_projection.weight", "global_text_projection.bias", WORDS)
    folded = {TYPES: "sentence_decoder.positions"}
    results[f"out_stage{number}_params_without_grad"] = [
        n for n in listed if n in unused or gradients[folded.get(n) or ours(n)[0]] is None
    ]
    return results


#: a table that no one looks up, and one that is part of the positions here
WORDS = "sentence_decoder.embeddings.word_embeddings.weight"
TYPES = "sentence_decoder.embeddings.token_type_embeddings.weight"


@adapter(
    "prior/zero_shot",
    component="zero-shot score of five classes",
    equation="supplement",
    departure="the factor on cosines is the raw logarithm, the local part counts half, as released",
)
def zero_shot(file: Vector) -> Results:
    prompts, sentences = file.tensor("in_global_prompts_5xD"), file.tensor("in_local_prompts_5xD")
    width = prompts.shape[1]
    heads = SentenceAligner(width, width, 9, width, 1, 4, "mean", "sigmoid", 0.07, False, False, False, False)
    weights = {n: v for n, v in file.weights().items() if n.startswith("local_cross_attention.")}
    heads.attention.load_state_dict({ours(n)[0].removeprefix("heads.attention."): v for n, v in weights.items()})
    results: dict[str, object] = {}
    for name in file.names("^in_global_image_"):
        number = name.removeprefix("in_global_image_")
        cosine = F.normalize(file.tensor(name), dim=-1) @ F.normalize(prompts, dim=-1).T
        one = torch.ones(len(sentences), 1, dtype=torch.bool)
        local = heads.score_sentences(file.tensor(f"in_local_image_{number}"), sentences[:, None], one)
        score = summed_scores(file.tensor("w__logit_scale") * cosine, local, 0.5)
        results |= {f"out_score_{number}": score, f"out_prediction_{number}": score.argmax(-1)}
    return results
