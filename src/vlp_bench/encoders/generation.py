"""Writing reports: a joint encoder that uncovers one [MASK] after the other, a decoder word by word; greedy and beams.

R rows are written at a time (B reports, each with K beams); there is a loop over the words, none over the rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.encoders.decoders import ReportDecoder
from vlp_bench.encoders.joint import JointEncoder, attention_mask
from vlp_bench.encoders.text import TextBackbone

#: what a beam that has ended adds to the score of anything after its end
ENDED = -10000.0


class Writer(ABC):
    """What says, given the words so far, which comes next."""

    @abstractmethod
    def step(self, last: Int[Tensor, "R"] | None) -> Float[Tensor, "R W"]:
        """Logits of the next word, after `last` was written; None before the first word."""

    @abstractmethod
    def keep(self, rows: Int[Tensor, "Q"]) -> None:
        """Go on with these of the rows, in this order."""


class DecoderWriter(Writer):
    """A ReportDecoder before a memory.

    Args:
        decoder: in eval mode.
        memory: image tokens of each report.
        start: what a report begins with, [CLS].
    """

    def __init__(self, decoder: ReportDecoder, memory: Float[Tensor, "R M D"], start: int) -> None:
        self.decoder, self.memory = decoder, memory
        self.ids = torch.full((len(memory), 1), start, device=memory.device)

    def step(self, last: Int[Tensor, "R"] | None) -> Float[Tensor, "R W"]:
        """See Writer."""
        if last is not None:
            self.ids = torch.cat([self.ids, last[:, None]], 1)
        mask = torch.ones_like(self.ids, dtype=torch.bool)
        return self.decoder.logits(self.decoder(self.memory, self.ids, mask)[:, -1])

    def keep(self, rows: Int[Tensor, "Q"]) -> None:
        """See Writer."""
        self.ids, self.memory = self.ids[rows], self.memory[rows]


class JointWriter(Writer):
    """A joint encoder that guesses the [MASK] behind what it has written, under the s2s mask.

    Image and words do not see what comes later, so that their keys and values are computed once.

    Args:
        joint: in eval mode.
        text: its BERT, in eval mode.
        features: all features of each image.
        pair_positions: number the last word and the [MASK] 0 and 1 wherever they stand, as MedViLL's code does in
            decoding, though not in training.
    """

    def __init__(
        self, joint: JointEncoder, text: TextBackbone, features: Float[Tensor, "R P C"], pair_positions: bool = False
    ) -> None:
        self.joint, self.text, self.features, self.pair_positions = joint, text, features, pair_positions
        self.places = joint.language_positions(text.max_tokens, features.device)[2:]
        self.written = 0
        self.past: list[tuple[Tensor, Tensor]] = []

    def step(self, last: Int[Tensor, "R"] | None) -> Float[Tensor, "R W"]:
        """See Writer."""
        tokenizer, device, rows = self.text.tokenizer, self.features.device, len(self.features)
        if last is None:
            ids = torch.full((rows, 1), tokenizer.mask, device=device)
            words = ids if self.joint.crosses else F.pad(ids, (1, 0), value=tokenizer.cls)
            count = self.features.shape[1]
            x = self.joint.embed(self.text, self.features, torch.arange(count, device=device).expand(rows, -1), words)
            seen = attention_mask("s2s", count, torch.ones_like(words, dtype=torch.bool))
        else:
            ids = torch.stack([last, torch.full_like(last, tokenizer.mask)], 1)
            place = 0 if self.pair_positions else self.written
            places = self.places[place : place + 2].expand(rows, -1)
            embeddings: Any = self.text.bert.embeddings
            x = embeddings(ids, token_type_ids=torch.ones_like(ids), position_ids=places)
            seen = torch.ones(1, 2, self.past[0][0].shape[2] + 2, dtype=torch.bool, device=device)
            seen[:, 0, -1] = False
            self.written += 1
        # The keys and values of the [MASK], the last of them, are not kept.
        layers: Any = self.text.bert.encoder.layer
        hidden, past = through(layers, x, self.past, seen[:, None])
        self.past = [(k[:, :, :-1], v[:, :, :-1]) for k, v in past]
        if last is None and not self.joint.crosses:
            self.written = 1
        return self.joint.predict(self.text, hidden[:, -1])

    def keep(self, rows: Int[Tensor, "Q"]) -> None:
        """See Writer."""
        self.features = self.features[rows]
        self.past = [(k[rows], v[rows]) for k, v in self.past]


def through(
    layers: Iterable[Any], x: Float[Tensor, "R Q D"], past: list[tuple[Tensor, Tensor]], seen: Bool[Tensor, "_ 1 Q S"]
) -> tuple[Float[Tensor, "R Q D"], list[tuple[Tensor, Tensor]]]:
    """BERT's layers in eval mode over Q new tokens, whose queries also see the keys and values of those before.

    Args:
        layers: of a BertModel's encoder.
        x: embeddings of the new tokens.
        past: keys and values (R, heads, S - Q, width) of each layer; empty at first.
        seen: which of all S tokens each new one sees.

    Returns:
        last hidden states, and the keys and values of all S tokens.
    """
    kept = []
    for number, layer in enumerate(layers):
        attention = layer.attention.self
        heads = (attention.num_attention_heads, attention.attention_head_size)
        q, k, v = (
            part(x).unflatten(-1, heads).transpose(1, 2) for part in (attention.query, attention.key, attention.value)
        )
        if past:
            k, v = (torch.cat([old, new], 2) for old, new in zip(past[number], (k, v), strict=True))
        kept.append((k, v))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        x = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(x), x)
    return x, kept


def next_word_states(
    joint: JointEncoder,
    text: TextBackbone,
    features: Float[Tensor, "B P C"],
    words: Int[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T D"]:
    """What a joint encoder that writes says at each word of given reports, before it is uncovered; all words at once.

    Behind the words stand as many [MASK], each at the position of one word, which it does not see, nor those after it:
    what `JointWriter` would see at its turn, had it written what the report says.

    Args:
        joint: the joint encoder.
        text: its BERT.
        features: all features of each image.
        words: word pieces and [SEP], padded; without [CLS].
        real: False on padding.
    """
    count, length, device = features.shape[1], words.shape[1], words.device
    lead = 0 if joint.crosses else 1
    full, there = F.pad(words, (lead, 0), value=text.tokenizer.cls), F.pad(real, (lead, 0), value=True)
    front, size = count + 2, count + 2 + length + lead
    x = joint.embed(text, features, torch.arange(count, device=device).expand(len(words), -1), full)
    masks = torch.full_like(words, text.tokenizer.mask)
    places = joint.language_positions(length + lead, device)[2 + lead :].expand_as(masks)
    x = torch.cat([x, text.bert.embeddings(masks, token_type_ids=torch.ones_like(masks), position_ids=places)], 1)
    seen = F.pad(attention_mask("s2s", count, there), (0, length, 0, length))
    # Of the sequence, the [MASK] of word t sees what word t sees, but for word t itself, and itself.
    seen[:, size:, :size] = seen[:, front + lead : size, :size]
    own = torch.arange(length, device=device)
    seen[:, size + own, front + lead + own] = False
    seen[:, size + own, size + own] = True
    return text.bert.encoder(x, attention_mask=seen[:, None]).last_hidden_state[:, size:]


@torch.no_grad()
def greedy(
    writer: Writer,
    end: int,
    pad: int,
    longest: int,
    reference: Int[Tensor, "R T"] | None = None,
    to_the_end: bool = False,
) -> tuple[Int[Tensor, "R T"], Float[Tensor, "R T"]]:
    """Write each report by its likeliest words; stop when all have ended.

    Args:
        writer: gives the logits.
        end: the word that ends a report, [SEP].
        pad: what follows the end.
        longest: at most so many words.
        reference: what is read in place of what was written, as MedViLL's code does: its reports are guesses of each
            word after the true ones. None reads what was written.
        to_the_end: go on after the end, as there.

    Returns:
        words and their logits, T <= `longest`; padding after the end, unless `to_the_end`.
    """
    words: list[Tensor] = []
    scores: list[Tensor] = []
    ended: Tensor | None = None
    for place in range(longest):
        last = None if not words else words[-1] if reference is None else reference[:, place - 1]
        score, word = writer.step(last).max(-1)
        ended = torch.zeros_like(word, dtype=torch.bool) if ended is None else ended
        if not to_the_end:
            word, score = word.masked_fill(ended, pad), score.masked_fill(ended, 0.0)
            ended = ended | (word == end)
        words.append(word)
        scores.append(score)
        if bool(ended.all()):
            break
    return torch.stack(words, 1), torch.stack(scores, 1)


class Beams(NamedTuple):
    """What a search with K beams found in T steps: the best report of each, and how it was found.

    `scores` are summed log-probabilities of the beams, `words` what was written last in each and `parents` from which
    beam of the step before; `report` is padded after its end.
    """

    report: Int[Tensor, "B T"]
    scores: Float[Tensor, "B T K"]
    words: Int[Tensor, "B T K"]
    parents: Int[Tensor, "B T K"]


@torch.no_grad()
def beam_search(
    writer: Writer, count: int, beams: int, end: int, pad: int, longest: int, to_the_end: bool = False
) -> Beams:
    """Write B reports with K beams; the best has the highest sum of log-probabilities.

    A beam that ends is a candidate; what has not ended is one at the last step. The search stops when nothing that goes
    on can become better, as sums only fall.

    Args:
        writer: of B rows; afterwards it has B K.
        count: B.
        beams: K.
        end: the word that ends a report.
        pad: what follows the end.
        longest: at most so many words.
        to_the_end: take all the steps, as MedViLL's code does; the reports are the same.
    """
    trace: list[tuple[Tensor, Tensor, Tensor]] = []
    best: Tensor | None = None
    for _ in range(longest):
        if not trace:
            logits = writer.step(None)
            writer.keep(torch.arange(count, device=logits.device).repeat_interleave(beams))
            scores, words = logits.log_softmax(-1).topk(beams)
            parents = torch.zeros_like(words)
            best = scores.new_full((count,), -torch.inf)
        else:
            before, last, _ = trace[-1]
            logits = writer.step(last.flatten()).log_softmax(-1).view(count, beams, -1)
            each, word = logits.topk(beams)
            total = each + (before + (last == end) * ENDED)[..., None]
            scores, flat = total.flatten(1).topk(beams)
            parents, words = flat // beams, word.flatten(1).gather(1, flat)
            first = torch.arange(count, device=flat.device)[:, None] * beams
            writer.keep((first + parents).flatten())
        trace.append((scores, words, parents))
        ended = words == end
        assert best is not None
        best = torch.maximum(best, scores.masked_fill(~ended, -torch.inf).amax(1))
        if not to_the_end and bool((scores.masked_fill(ended, -torch.inf).amax(1) <= best).all()):
            break
    scores, words, parents = (torch.stack(part, 1) for part in zip(*trace, strict=True))
    return Beams(_backtrack(scores, words, parents, end, pad), scores, words, parents)


def _backtrack(
    scores: Float[Tensor, "B T K"], words: Int[Tensor, "B T K"], parents: Int[Tensor, "B T K"], end: int, pad: int
) -> Int[Tensor, "B T"]:
    """The best candidate of each search, read from its end."""
    count, steps, beams = words.shape
    candidate = words == end
    candidate[:, -1] = True
    chosen = scores.masked_fill(~candidate, -torch.inf).flatten(1).argmax(1)
    step, beam = chosen // beams, chosen % beams
    report = words.new_full((count, steps), pad)
    rows = torch.arange(count, device=report.device)
    for place in reversed(range(steps)):
        reached = place <= step
        report[:, place] = torch.where(reached, words[rows, place, beam], pad)
        beam = torch.where(reached, parents[rows, place, beam], beam)
    return report
