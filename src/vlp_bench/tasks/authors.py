"""What writes a report from an image: a decoder before image tokens, or a joint encoder that uncovers word by word."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.encoders.decoders import ReportDecoder, caption_tokenizer
from vlp_bench.encoders.generation import DecoderWriter, JointWriter, Writer, beam_search, greedy, next_word_states
from vlp_bench.errors import UserError
from vlp_bench.losses.language import word_loss
from vlp_bench.losses.masked_language import hide_to_write, writing_loss
from vlp_bench.types import Tokens, WordsBatch


class Author(ABC):
    """An image encoder and what writes from it.

    `seeing` are the pre-trained parts up to the image tokens, `writing` is what comes after them; whoever trains or
    moves them holds them.

    Args:
        tokenizer: of the words.
        max_tokens: longest report, [CLS] and [SEP] included.
    """

    seeing: dict[str, nn.Module]
    writing: nn.Module
    #: whether nobody has taught it to write
    new: bool = False

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    @abstractmethod
    def states(self, batch: WordsBatch) -> Float[Tensor, "B T D"]:
        """What is said at each word of the true reports, from those before it."""

    @abstractmethod
    def scores(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """Logits of the words."""

    @abstractmethod
    def writer(self, batch: WordsBatch, published: bool) -> Writer:
        """A writer of B reports; `published` as MedViLL's code decodes, where that is another way."""

    def loss(self, batch: WordsBatch) -> Float[Tensor, ""]:
        """Mean cross-entropy of all words."""
        words, real = true_words(batch.text)
        return word_loss(self.scores(self.states(batch)[real]), words[real])

    def losses(self, batch: WordsBatch) -> tuple[Float[Tensor, "B"], Int[Tensor, "B"]]:
        """Sum of -log p over the words of each report, its end included, and their number."""
        words, real = true_words(batch.text)
        each = F.cross_entropy(self.scores(self.states(batch)[real]).float(), words[real], reduction="none")
        return torch.zeros(words.shape, device=words.device).masked_scatter(real, each).sum(1), real.sum(1)

    def write(self, batch: WordsBatch, beams: int, published: bool = False) -> Int[Tensor, "B T"]:
        """Word pieces of B reports; `published` reads the true words, as MedViLL's code does with one beam."""
        tokenizer, writer = self.tokenizer, self.writer(batch, published)
        longest = self.max_tokens - 1
        if beams > 1:
            return beam_search(writer, len(batch), beams, tokenizer.sep, tokenizer.pad, longest).report
        words, _ = true_words(batch.text)
        if published:
            return greedy(writer, tokenizer.sep, tokenizer.pad, words.shape[1], reference=words)[0]
        return greedy(writer, tokenizer.sep, tokenizer.pad, longest)[0]


def true_words(text: Tokens) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """What has to be written: all after [CLS]."""
    return text.ids[:, 1:], text.mask[:, 1:]


class DecoderAuthor(Author):
    """A decoder that looks at the patches of the image, or at what the method's aligner makes of them.

    Args:
        vision: the image encoder.
        decoder: reads the tokenizer's words.
        tokenizer: see Author.
        max_tokens: see Author.
        aligner: fuses views to a memory; an image is then every view of its study. None takes the patches.
    """

    def __init__(
        self,
        vision: nn.Module,
        decoder: ReportDecoder,
        tokenizer: Tokenizer,
        max_tokens: int,
        aligner: nn.Module | None = None,
    ) -> None:
        super().__init__(tokenizer, min(max_tokens, int(decoder.arguments["max_tokens"])))
        self.seeing = {"vision": vision} | ({} if aligner is None else {"aligner": aligner})
        self.writing = decoder

    def memory(self, batch: WordsBatch) -> Float[Tensor, "B M D"]:
        """What the decoder looks at."""
        image = self.seeing["vision"](batch.image)
        if "aligner" not in self.seeing:
            return image.tokens
        aligner: Any = self.seeing["aligner"]
        views = (part[:, None].expand(-1, aligner.views, *part.shape[1:]) for part in (image.pooled, image.tokens))
        return aligner.memory(*views)

    def states(self, batch: WordsBatch) -> Float[Tensor, "B T D"]:
        """See Author."""
        return self.writing(self.memory(batch), batch.text.ids, batch.text.mask)[:, :-1]

    def scores(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """See Author."""
        return self.writing.logits(states)  # type: ignore[operator]

    def writer(self, batch: WordsBatch, published: bool) -> Writer:
        """See Author."""
        return DecoderWriter(self.writing, self.memory(batch), self.tokenizer.cls)  # type: ignore[arg-type]


class JointAuthor(Author):
    """A joint encoder under the s2s mask.

    Args:
        vision: the image encoder.
        text: the BERT.
        joint: the joint encoder.
        max_tokens: see Author.
        hide: `share`, `most` and `end_share` of the words that are hidden at a time in training, as MedViLL's code
            does; None learns to write every word from those before it, as in writing.
    """

    def __init__(
        self, vision: nn.Module, text: Any, joint: Any, max_tokens: int, hide: Mapping[str, Any] | None = None
    ) -> None:
        room = int((joint.language_positions(text.max_tokens)[2:] < text.max_tokens).sum())
        super().__init__(text.tokenizer, min(max_tokens, room))
        self.seeing, self.writing = {"vision": vision}, nn.ModuleDict({"text": text, "joint": joint})
        self.hide = hide

    def _parts(self) -> tuple[Any, Any]:
        return self.writing["joint"], self.writing["text"]  # type: ignore[index]

    def states(self, batch: WordsBatch) -> Float[Tensor, "B T D"]:
        """See Author."""
        joint, text = self._parts()
        return next_word_states(joint, text, self.seeing["vision"](batch.image).tokens, *true_words(batch.text))

    def scores(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """See Author."""
        joint, text = self._parts()
        return joint.predict(text, states)

    def loss(self, batch: WordsBatch) -> Float[Tensor, ""]:
        """In training with `hide` that of the hidden words, else of every word."""
        if self.hide is None or not self.writing.training:
            return super().loss(batch)
        joint, text = self._parts()
        words, real = true_words(batch.text)
        draw, end = torch.rand(words.shape, device=words.device), torch.rand(len(words), device=words.device)
        shown, places, counted = hide_to_write(words, real, draw, end, self.tokenizer.mask, **self.hide)
        features = self.seeing["vision"](batch.image).tokens
        where = torch.arange(features.shape[1], device=words.device).expand(len(words), -1)
        hidden = joint(text, features, where, shown, real, "s2s")[:, -words.shape[1] :]
        asked = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
        return writing_loss(joint.predict(text, asked), words.gather(1, places), counted)

    def writer(self, batch: WordsBatch, published: bool) -> Writer:
        """See Author."""
        return JointWriter(*self._parts(), self.seeing["vision"](batch.image).tokens, pair_positions=published)


def author(
    encoders: Encoders,
    *,
    own: bool,
    decoder: Mapping[str, Any],
    vocab: str | None,
    max_tokens: int,
    hide: Mapping[str, Any] | None,
) -> Author:
    """What writes with these encoders: what they have for it, or a new decoder.

    Args:
        encoders: a bundle.
        own: use what the bundle has.
        decoder: sizes of a new decoder.
        vocab: word pieces of a new decoder: `synthetic`, or the path of a vocab.txt; None takes those of the text
            encoder, or `synthetic` where there is none.
        max_tokens: longest report.
        hide: see JointAuthor.

    Raises:
        UserError: a decoder whose words are not those of the vocabulary, or that cannot be built.
    """
    if own and encoders.joint is not None:
        return JointAuthor(encoders.vision, encoders.text, encoders.joint, max_tokens, hide)
    if own and "decoder" in encoders.parts:
        return _own_decoder(encoders, max_tokens)
    if vocab is None and encoders.text is not None:
        tokenizer = encoders.text.tokenizer
    else:
        tokenizer = Tokenizer.load(vocab or "synthetic")
    if decoder["width"] % decoder["heads"]:
        raise UserError(
            f"task.decoder.width={decoder['width']} is no multiple of task.decoder.heads={decoder['heads']}."
        )
    width = encoders.vision.spec.token_dim
    made = ReportDecoder(len(tokenizer), tokenizer.pad, width, max_tokens=max_tokens, **decoder)
    written = DecoderAuthor(encoders.vision, made, tokenizer, max_tokens)
    written.new = True
    return written


def _own_decoder(encoders: Encoders, max_tokens: int) -> Author:
    made: Any = encoders.parts["decoder"]
    name = encoders.name
    if not isinstance(made, ReportDecoder) or encoders.text is None:
        raise UserError(f"{name} has a decoder that writes no words. Give it a new one: task.own=false.")
    tokenizer = caption_tokenizer(encoders.text, encoders.inputs.sentencepiece)
    if len(tokenizer) != made.arguments["vocabulary"]:
        raise UserError(
            f"The decoder of {name} knows {made.arguments['vocabulary']} words and its vocabulary has "
            f"{len(tokenizer)}. Use the vocabulary of its pre-training, or a new decoder: task.own=false."
        )
    aligner = encoders.aligner if hasattr(encoders.aligner, "memory") else None
    return DecoderAuthor(encoders.vision, made, tokenizer, max_tokens, aligner)
