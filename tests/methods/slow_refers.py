"""REFERS' losses in variant=paper, one study, one token and one number at a time.

Written from the paper; shares with the package only the encoders' outputs and the weights.
"""

import math

import torch
from torch import Tensor, nn


def apply(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / ((centred**2).mean() + norm.eps).sqrt() * norm.weight + norm.bias


def softmax(scores: list[Tensor]) -> list[Tensor]:
    powers = [s.exp() for s in scores]
    return [p / sum(powers) for p in powers]


def view_weights(network: nn.Sequential, pooled: list[Tensor]) -> list[Tensor]:
    hidden = apply(network[0], torch.cat(pooled)).clamp(min=0)
    return softmax(list(apply(network[2], hidden)))


def attend(attention: nn.MultiheadAttention, query: Tensor, context: list[Tensor]) -> Tensor:
    q_weight, k_weight, v_weight = attention.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = attention.in_proj_bias.chunk(3)
    size, joined = len(query) // attention.num_heads, []
    for h in range(attention.num_heads):
        part = slice(h * size, (h + 1) * size)
        q = (q_weight @ query + q_bias)[part]
        shares = softmax([q @ (k_weight @ c + k_bias)[part] / math.sqrt(size) for c in context])
        joined.append(sum(s * (v_weight @ c + v_bias)[part] for s, c in zip(shares, context, strict=True)))
    return apply(attention.out_proj, torch.cat(joined))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def word_terms(decoder: nn.Module, memory: list[Tensor], ids: list[int]) -> list[Tensor]:
    """-log p of each word of one report (without padding) after the first."""
    memory = [apply(decoder.projection, m) for m in memory]
    x = [normalise(decoder.norm, decoder.words.weight[w] + decoder.positions.weight[t]) for t, w in enumerate(ids)]
    for layer in decoder.layers:
        x = [normalise(layer.norm1, x[t] + attend(layer.self_attn, x[t], x[: t + 1])) for t in range(len(x))]
        x = [normalise(layer.norm2, y + attend(layer.multihead_attn, y, memory)) for y in x]
        x = [normalise(layer.norm3, y + apply(layer.linear2, gelu(apply(layer.linear1, y)))) for y in x]
    terms = []
    for here, following in zip(x[:-1], ids[1:], strict=True):
        scores = decoder.words.weight @ here + decoder.bias
        terms.append(scores.exp().sum().log() - scores[following])
    return terms


def losses(
    method: nn.Module,
    pooled: list[list[Tensor]],
    tokens: list[list[Tensor]],
    texts: list[Tensor],
    reports: list[list[int]],
) -> dict[str, Tensor]:
    """Both losses.

    Args:
        method: gives the weights.
        pooled: the feature of each image of each study.
        tokens: the patches of the same images.
        texts: [CLS] of each report.
        reports: word pieces of each report, without padding.
    """
    studies, head, terms = method.studies, method.studies.text, []
    features: list[Tensor] = []
    for images, patches, ids in zip(pooled, tokens, reports, strict=True):
        # in order, at most as many as there are views, and the first again for those that are missing
        shown = [k if k < len(images) else 0 for k in range(method.views)]
        weight = view_weights(studies.fusion.network, [images[k] for k in shown])
        features.append(torch.cat([w * images[k] for w, k in zip(weight, shown, strict=True)]))
        memory = [
            w * (torch.cat([patch, images[k]]) if studies.recurrent else patch)
            for w, k in zip(weight, shown, strict=True)
            for patch in patches[k]
        ]
        terms += word_terms(method.decoder, memory, ids)
    words = [apply(head[2], torch.tanh(apply(head[0], t))) for t in texts]
    contrast = []
    for i, v in enumerate(features):
        scores = [v @ t / (v.norm() * t.norm()) / method.temperature for t in words]
        contrast.append(torch.stack(scores).exp().sum().log() - scores[i])
    return {"report": sum(terms) / len(terms), "consistency": sum(contrast) / len(contrast)}
