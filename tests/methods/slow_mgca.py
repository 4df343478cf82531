"""MGCA's loss in variant=paper, one sample, one token and one number at a time.

Written from the paper and its supplement; shares with the package only the encoders' outputs and the weights.
"""

import math

import torch
from torch import Tensor


def words_of(hidden: Tensor, saliency: Tensor, ids: list[int], vocab: list[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors and weights of the words of one report, [SEP] included, [CLS] and padding not."""
    vectors: list[Tensor] = []
    weights: list[Tensor] = []
    for t, token in enumerate(vocab[i] for i in ids):
        if token in ("[CLS]", "[PAD]"):
            continue
        if token.startswith("##"):
            vectors[-1], weights[-1] = vectors[-1] + hidden[t], weights[-1] + saliency[t]
        else:
            vectors.append(hidden[t])
            weights.append(saliency[t])
    return vectors, weights


def project(head: torch.nn.Module, xs: list[Tensor]) -> list[Tensor]:
    """Projection head over all vectors of the batch, with their own statistics, to unit length."""
    first, norm, _, second, last = head.head

    def standardise(ys: list[Tensor], eps: float) -> list[Tensor]:
        mean = sum(ys) / len(ys)
        variance = sum((y - mean) ** 2 for y in ys) / len(ys)
        return [(y - mean) / (variance + eps).sqrt() for y in ys]

    hidden = standardise([first.weight @ x + first.bias for x in xs], norm.eps)
    hidden = [(h * norm.weight + norm.bias).clamp(min=0) for h in hidden]
    out = standardise([second.weight @ h + second.bias for h in hidden], last.eps)
    return [y / y.norm() for y in out]


def cross_attend(attention: torch.nn.Module, query: Tensor, context: list[Tensor]) -> Tensor:
    """Multi-head attention of one query over a list, to unit length."""
    width = len(query)
    q_weight, k_weight, v_weight = attention.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = attention.in_proj_bias.chunk(3)
    q = q_weight @ query + q_bias
    keys, values = [k_weight @ c + k_bias for c in context], [v_weight @ c + v_bias for c in context]
    joined = []
    size = width // attention.num_heads
    for h in range(attention.num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = torch.stack([q[part] @ k[part] / math.sqrt(size) for k in keys]).exp()
        joined.append(sum(s * v[part] for s, v in zip(scores / scores.sum(), values, strict=True)))
    out = attention.out_proj.weight @ torch.cat(joined) + attention.out_proj.bias
    return out / out.norm()


def cross_entropy(scores: list[Tensor], right: int) -> Tensor:
    return torch.stack(scores).exp().sum().log() - scores[right]


def both_ways(tokens: list[Tensor], attended: list[Tensor], weights: list[Tensor], tau: float) -> Tensor:
    total, n = sum(weights), range(len(tokens))
    loss = 0.0
    for j in n:
        there = cross_entropy([tokens[j] @ attended[k] / tau for k in n], j)
        back = cross_entropy([tokens[k] @ attended[j] / tau for k in n], j)
        loss = loss + weights[j] / total * (there + back) / 2
    return loss


def instance(v: list[Tensor], t: list[Tensor], tau: float) -> Tensor:
    n = range(len(v))
    there = sum(cross_entropy([v[i] @ t[j] / tau for j in n], i) for i in n)
    back = sum(cross_entropy([t[i] @ v[j] / tau for j in n], i) for i in n)
    return (there + back) / len(v)


def prototype(v: list[Tensor], t: list[Tensor], weight: Tensor, tau: float, epsilon: float, iterations: int) -> Tensor:
    centres = [c / c.norm() for c in weight]

    def assigned(xs: list[Tensor]) -> Tensor:
        q = torch.stack([torch.stack([(x @ c / epsilon).exp() for c in centres]) for x in xs]).detach()
        for _ in range(iterations):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        return q

    def predict(xs: list[Tensor], codes: Tensor) -> Tensor:
        loss = 0.0
        for b, x in enumerate(xs):
            scores = [x @ c / tau for c in centres]
            loss = loss + sum(codes[b, k] * cross_entropy(scores, k) for k in range(len(centres)))
        return loss / len(xs)

    return (predict(t, assigned(v)) + predict(v, assigned(t))) / 2


def losses(method: torch.nn.Module, image: object, text: object, vocab: list[str]) -> dict[str, Tensor]:
    """The three terms, from what the encoders said."""
    heads, tau = method.heads, method.temperatures
    v, t = project(heads.image, list(image.pooled)), project(heads.text, list(text.pooled))
    reports = [
        words_of(h, a, i.tolist(), vocab) for h, a, i in zip(text.tokens, text.saliency, text.index.ids, strict=True)
    ]
    all_words = project(heads.word, [x for vectors, _ in reports for x in vectors])
    all_patches = project(heads.patch, [x for sample in image.tokens for x in sample])
    token = 0.0
    for b, (vectors, weights) in enumerate(reports):
        words, all_words = all_words[: len(vectors)], all_words[len(vectors) :]
        count = image.tokens.shape[1]
        patches, all_patches = all_patches[:count], all_patches[count:]
        patch_weights = list(torch.ones(count) if image.saliency is None else image.saliency[b])
        of_words = [cross_attend(method.word_attention, w, patches) for w in words]
        of_patches = [cross_attend(method.patch_attention, p, words) for p in patches]
        token = token + both_ways(words, of_words, weights, tau["token"])
        token = token + both_ways(patches, of_patches, patch_weights, tau["token"])
    return {
        "instance": instance(v, t, tau["instance"]),
        "token": token / len(reports),
        "prototype": prototype(
            v, t, method.prototypes.weight.detach(), tau["prototype"], method.epsilon, method.sinkhorn_iterations
        ),
    }
