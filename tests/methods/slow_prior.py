"""PRIOR's loss terms in variant=paper, one study, one sentence and one pair at a time, outside of training.

Written from the paper and its supplement; shares with the package only the encoders' outputs and the weights.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn


def linear(layer: Any, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def two_layers(head: Any, x: Tensor) -> Tensor:
    return linear(head[2], linear(head[0], x).clamp(min=0))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """Multi-head attention of one query."""
    width = len(query) // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = torch.stack([query[part] @ k[part] / math.sqrt(width) for k in keys]).softmax(0)
        out.append(sum(w * v[part] for w, v in zip(scores, values, strict=True)))
    return torch.cat(out)


def attention_pool(pool: Any, summary: Tensor, tokens: list[Tensor]) -> Tensor:
    xs = [summary, *tokens]
    if pool.positional_embedding is not None:
        xs = [x + p for x, p in zip(xs, pool.positional_embedding, strict=True)]
    keys, values = [linear(pool.k_proj, x) for x in xs], [linear(pool.v_proj, x) for x in xs]
    return linear(pool.c_proj, attend(linear(pool.q_proj, xs[0]), keys, values, pool.heads))


def sentence_vectors(pool: Any, pieces: list[Tensor], numbers: list[int]) -> list[Tensor]:
    found = []
    for k in sorted({n for n in numbers if n >= 0}):
        own = [p for p, n in zip(pieces, numbers, strict=True) if n == k]
        scores = [sum(linear(pool.query, a) @ linear(pool.key, b) for b in own) for a in own]
        weights = torch.stack(scores).softmax(0)
        found.append(sum(w * p for w, p in zip(weights, own, strict=True)))
    return found


def report(heads: Any, sentences: list[Tensor]) -> Tensor:
    return two_layers(heads.text, attention_pool(heads.report_pool, sum(sentences) / len(sentences), sentences))


def both_ways(scores: Tensor) -> Tensor:
    """Mean of the cross-entropies of the rows and of the columns with the diagonal."""
    n = len(scores)
    terms = [scores[i].logsumexp(0) + scores[:, i].logsumexp(0) - 2 * scores[i, i] for i in range(n)]
    return sum(terms) / (2 * n)


def contrast(a: list[Tensor], b: list[Tensor], temperature: float) -> Tensor:
    return both_ways(torch.stack([torch.stack([cosine(x, y) for y in b]) for x in a]) / temperature)


def gathered(attention: Any, queries: list[Tensor], others: list[Tensor], asking: str, asked: str) -> list[Tensor]:
    query, key, value = (
        getattr(attention, f"{asking}_query"),
        getattr(attention, f"{asked}_key"),
        getattr(attention, f"{asked}_value"),
    )
    root = math.sqrt(len(queries[0]))
    return [
        sum(torch.sigmoid(linear(query, q) @ linear(key, o) / root) * linear(value, o) for o in others) for q in queries
    ]


def patch_loss(predictor: Any, patches: list[Tensor], context: list[Tensor]) -> Tensor:
    terms = [
        cosine(two_layers(predictor, p), c) + cosine(two_layers(predictor, c), p)
        for p, c in zip(patches, context, strict=True)
    ]
    return -sum(terms) / (2 * len(terms))


def mixture(bank: Any, x: Tensor, temperature: float) -> Tensor:
    return ((bank.vectors @ x) / temperature).softmax(0) @ bank.vectors


def norm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def decoder_attention(layer: Any, query: Tensor, others: list[Tensor]) -> Tensor:
    (wq, wk, wv), (bq, bk, bv) = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    found = attend(wq @ query + bq, [wk @ o + bk for o in others], [wv @ o + bv for o in others], layer.num_heads)
    return linear(layer.out_proj, found)


def generated(decoder: Any, patches: list[Tensor]) -> list[Tensor]:
    xs = [norm(decoder.norm, q + p) for q, p in zip(decoder.queries, decoder.positions, strict=True)]
    for layer in decoder.layers:
        xs = [norm(layer.norm1, x + decoder_attention(layer.self_attn, x, xs)) for x in xs]
        xs = [norm(layer.norm2, x + decoder_attention(layer.multihead_attn, x, patches)) for x in xs]
        inner = [linear(layer.linear1, x) for x in xs]
        inner = [h * 0.5 * (1 + torch.erf(h / math.sqrt(2))) for h in inner]
        xs = [norm(layer.norm3, x + linear(layer.linear2, h)) for x, h in zip(xs, inner, strict=True)]
    return xs


def drawn(decoder: Any, patches: list[Tensor], context: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """The image (H, W): every cell of the map holds a patch and what it gathered."""
    x = torch.zeros(1, 2 * len(patches[0]), *grid, dtype=patches[0].dtype)
    for i, (p, c) in enumerate(zip(patches, context, strict=True)):
        x[0, :, i // grid[1], i % grid[1]] = torch.cat([p, c])
    for block in decoder.blocks:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        convolutions = [m for m in block if isinstance(m, nn.Conv2d)]
        for convolution, batch_norm in zip(
            convolutions, [m for m in block if isinstance(m, nn.BatchNorm2d)], strict=True
        ):
            x = convolution(x).clamp(min=0)
            per_channel = (batch_norm.running_mean, batch_norm.running_var, batch_norm.weight, batch_norm.bias)
            mean, variance, weight, bias = (v[None, :, None, None] for v in per_channel)
            x = (x - mean) / (variance + batch_norm.eps).sqrt() * weight + bias
    return decoder.output(x)[0, 0]


def losses(method: Any, image: Any, text: Any, pixels: Tensor, stage: int, tau: float) -> dict[str, Tensor]:
    """All terms of a stage; `pixels` (B, H, W) are normalised."""
    heads, limit = method.heads, method.queries if stage == 3 else None
    studies = range(len(image.pooled))
    v = [
        two_layers(heads.image, attention_pool(heads.image_pool, image.pooled[b], list(image.tokens[b])))
        for b in studies
    ]
    patches = [[two_layers(heads.patch, p) for p in image.tokens[b]] for b in studies]
    raw = []
    for b in studies:
        pieces = [two_layers(heads.word, p) for p in text.tokens[b]]
        raw.append(sentence_vectors(heads.sentence_pool, pieces, text.index.sentence[b].tolist())[:limit])
    used = [[mixture(heads.bank, s, tau) for s in r] for r in raw] if stage > 1 else raw
    t = [report(heads, s) for s in used]
    of_patches = [gathered(heads.attention, patches[b], used[b], "image", "text") for b in studies]
    of_sentences = [gathered(heads.attention, used[b], patches[b], "text", "image") for b in studies]
    local_text = [contrast(used[b], of_sentences[b], 0.05) for b in studies]
    terms = {
        "global": contrast(v, t, 0.1),
        "local_image": sum(patch_loss(method.predictor, patches[b], of_patches[b]) for b in studies) / len(studies),
        "local_text": sum(local_text) / len(studies),
    }
    if stage > 1:
        errors = [(x - y).abs().mean() for r, u in zip(raw, used, strict=True) for x, y in zip(r, u, strict=True)]
        terms["prototype"] = sum(errors) / len(errors)
    if stage == 3:
        images = [drawn(method.image_decoder, patches[b], of_patches[b], image.grid) for b in studies]
        terms["image_reconstruction"] = (torch.stack(images) - pixels).abs().mean()
        terms |= generation(method, patches, raw, used, t, tau)
    return terms


def generation(method: Any, patches: list, raw: list, used: list, t: list, tau: float) -> dict[str, Tensor]:
    heads, spg, divergences, reports = method.heads, [], [], []
    for b, sentences in enumerate(used):
        made = generated(method.sentence_decoder, patches[b])
        missing = len(made) - len(sentences)
        targets = [*sentences, *(torch.zeros_like(made[0]) for _ in range(missing))]
        orders = [[made[i] for i in order] for order in itertools.permutations(range(len(made)))]
        costs = [sum((m - g).abs().sum() for m, g in zip(o, targets, strict=True)) for o in orders]
        matched = orders[int(torch.stack(costs).argmin())]
        spg.append(min(costs) / (len(made) * len(made[0])))
        for x, y in zip(raw[b], matched, strict=False):
            p, q = ((heads.bank.vectors @ z).softmax(0) for z in (x, y))
            divergences.append((p * (p / q).log()).sum())
        reports.append(report(heads, [mixture(heads.bank, m, tau) for m in matched[: len(sentences)]]))
    return {
        "sentence_generation": sum(spg) / len(spg),
        "prototype_divergence": sum(divergences) / len(divergences),
        "report_alignment": contrast(reports, t, 0.1),
    }
