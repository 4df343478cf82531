"""MedViLL in variant=paper, one sample, one pair of tokens and one number at a time, without padding.

Written from the paper; shares with the package only the weights, BERT's layers, the image features and the draws.
"""

import torch
from torch import Tensor


def sees(kind: str, query: int, key: int, image_tokens: int, length: int, open_padding: bool = False) -> bool:
    """Whether token `query` may look at token `key`, of a text with `length` real tokens."""
    front = image_tokens + 2
    from_image, to_image, padding = query < front, key < front, key >= front + length
    if kind == "bi":
        return not padding
    if padding and not open_padding:
        return False
    if kind == "noncross":
        return from_image == to_image
    if to_image:
        return True
    if from_image:
        return kind == "bar"
    return key <= query


def report_of(i: int, labels: list[set[int]], swap: list[float], priority: Tensor) -> int:
    """Whose report image i gets."""
    others = [j for j in range(len(labels)) if labels[j] != labels[i]]
    if swap[i] >= 0.5 or not others:
        return i
    return max(others, key=lambda j: float(priority[i, j]))


def hide(words: list[int], draw: Tensor, replacement: Tensor, mask: int, share: float) -> tuple[list[int], dict]:
    """The pieces as BERT sees them, and the true piece at each hidden place."""
    shown, truth = list(words), {}
    for t, word in enumerate(words):
        u = float(draw[t]) / share
        if u < 1:
            truth[t] = word
            shown[t] = mask if u < 0.8 else int(replacement[t]) if u < 0.9 else word
    if not truth:
        truth[0], shown[0] = words[0], mask
    return shown, truth


def normalise(norm: torch.nn.Module, x: Tensor) -> Tensor:
    deviation = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / (deviation + norm.eps).sqrt() * norm.weight + norm.bias


def hidden_states(method, features: Tensor, places: list[int], words: list[int], kind: str) -> Tensor:
    """Last hidden states of [CLS], the features at `places`, [SEP], the words and [SEP]."""
    joint, bert, tokenizer = method.joint, method.text.bert, method.text.tokenizer
    tables = bert.embeddings
    word, position, segment = (getattr(tables, f"{n}_embeddings").weight for n in ("word", "position", "token_type"))
    special = [
        normalise(tables.LayerNorm, word[t] + position[i] + segment[0])
        for i, t in enumerate([tokenizer.cls, tokenizer.sep])
    ]
    image = [
        normalise(
            tables.LayerNorm,
            joint.project.weight @ (features[p] + joint.location.weight[p] + joint.kind) + joint.project.bias,
        )
        for p in places
    ]
    text = [*([tokenizer.cls] if kind == "noncross" else []), *words, tokenizer.sep]
    language = [
        normalise(tables.LayerNorm, word[w] + position[t if kind == "noncross" else 2 + t] + segment[1])
        for t, w in enumerate(text)
    ]
    x = torch.stack([special[0], *image, special[1], *language])
    size = range(len(x))
    mask = torch.tensor([[sees(kind, q, k, len(places), len(text)) for k in size] for q in size])
    added = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, float("-inf"))
    return bert.encoder(x[None], attention_mask=added[None, None]).last_hidden_state[0]


def losses(method, features: Tensor, batch, draws, kind: str) -> dict[str, Tensor]:
    """MLM and IRM of a batch; `draws` holds swap (B, 1), report (B, B), hide, replacement (B, T) and look (B, P)."""
    joint, text = method.joint, method.text
    labels = [{i for i, value in enumerate(row) if value == 1} for row in batch.labels.tolist()]
    swap = draws["swap"][:, 0].tolist()
    word_nats, match_nats, guessed = [], [], 0
    for i in range(len(batch)):
        j = report_of(i, labels, swap, draws["report"])
        length = int(batch.text.mask[j].sum())
        words = batch.text.ids[j, 1 : length - 1].tolist()
        replacement = (draws["replacement"][i] * len(text.tokenizer)).long()
        shown, truth = hide(words, draws["hide"][i], replacement, text.tokenizer.mask, method.mask_share)
        count = round(method.visual_share * features.shape[1])
        places = sorted(sorted(range(features.shape[1]), key=lambda p, i=i: float(draws["look"][i, p]))[:count])
        hidden = hidden_states(method, features[i], places, shown, kind)
        if kind == "noncross":
            pair = hidden[0] * hidden[count + 2]
        else:
            pair = torch.tanh(joint.pooler.weight @ hidden[0] + joint.pooler.bias)
        no, yes = joint.matching.weight @ pair + joint.matching.bias
        probability = torch.sigmoid(yes - no)
        match_nats.append(-(probability if i == j else 1 - probability).log())
        for t, word in truth.items() if i == j else ():
            state = hidden[count + 2 + (kind == "noncross") + t]
            linear, _, norm = joint.transform
            state = normalise(norm, torch.nn.functional.gelu(linear.weight @ state + linear.bias))
            scores = text.bert.embeddings.word_embeddings.weight @ state + joint.bias
            word_nats.append(scores.exp().sum().log() - scores[word])
            guessed += 1
    return {"mlm": sum(word_nats) / guessed, "irm": sum(match_nats) / len(batch)}
