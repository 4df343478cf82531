"""One BERT over an image and a text: the sequence, who sees whom in it, and the heads on top.

N image tokens and T text tokens make a sequence of S = N + 2 + T, in two blocks:

    [CLS] image ... image [SEP]  |  word ... word [SEP] padding ...

With the non-crossing mask the second block begins with a [CLS] of its own, which counts among the T.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.encoders.chunks import InChunks
from vlp_bench.encoders.text import TextBackbone, attention_rows
from vlp_bench.errors import UserError
from vlp_bench.types import ImageFeatures, TextFeatures

ATTENTION = ("bi", "s2s", "bar", "mixed", "noncross")


def attention_mask(
    kind: str,
    image_tokens: int,
    real: Bool[Tensor, "B T"],
    *,
    causal: Bool[Tensor, "B"] | None = None,
    open_padding: bool = False,
) -> Bool[Tensor, "B S S"]:
    """Which token (row) sees which (column), S = N + 2 + T.

    `bi`: everything. `s2s`: all see the image; the image does not see the text, and words see the words before them.
    `bar`: s2s, but the image also sees the text (MedViLL eq. 14). `mixed`: s2s for the samples of `causal`, bi for the
    others. `noncross`: image and text see only themselves.

    Args:
        kind: one of ATTENTION.
        image_tokens: N.
        real: False on padding; the last real token of a text is its [SEP].
        causal: samples that `mixed` gives s2s.
        open_padding: treat padding like words, as the authors' code does in all kinds but `bi`.

    >>> print(picture(attention_mask("bar", 1, torch.tensor([[True, True, True, False]]))[0]))
    ######.
    ######.
    ######.
    ####...
    #####..
    ######.
    ###....
    """
    front = image_tokens + 2
    size = front + real.shape[1]
    is_image = torch.arange(size, device=real.device) < front
    row_image, column_image = is_image[:, None], is_image[None]
    column_real = F.pad(real, (front, 0), value=True)[:, None]
    both_real = column_real & column_real.transpose(1, 2)
    bi = column_real.expand(-1, size, -1)
    if open_padding:
        column_real = both_real = torch.ones_like(bi)
    earlier = torch.ones(size, size, dtype=torch.bool, device=real.device).tril()
    s2s = column_image | (~row_image & earlier & both_real)
    if kind == "mixed":
        assert causal is not None
        return torch.where(causal[:, None, None], s2s, bi)
    return {
        "bi": bi,
        "s2s": s2s,
        "bar": s2s | (row_image & column_real),
        "noncross": (row_image == column_image) & column_real,
    }[kind]


def picture(mask: Bool[Tensor, "S S"]) -> str:
    """A mask as text: a line for each row, `#` where it sees the column."""
    return "\n".join("".join(".#"[int(seen)] for seen in row) for row in mask.tolist())


def sample_features(
    features: Float[Tensor, "B P C"], draw: Float[Tensor, "_ P"], count: int
) -> tuple[Float[Tensor, "B N C"], Int[Tensor, "B N"]]:
    """A random subset of N = `count` of the P features, in their order, with their positions.

    Args:
        features: of B images.
        draw: random; the features with the lowest are kept. One row for each image, or one for all of them.
        count: how many to keep.
    """
    kept = draw.argsort(1)[:, :count].sort(1).values.expand(len(features), -1)
    return features.gather(1, kept[..., None].expand(-1, -1, features.shape[2])), kept


class JointEncoder(InChunks):
    """What a BERT needs beside its own weights to read an image before a text, and to answer about both.

    Location and kind of an image token are added before its projection to BERT's width; of the tokens of language,
    [CLS], [SEP] of the image and the text are numbered in one row, a text with its own [CLS] by itself. The BERT is a
    TextBackbone's, which every call is given.

    Args:
        image: width of the image features.
        width: of BERT.
        positions: most image tokens.
        vocabulary: number of word pieces.
        attention: kind of the mask in pre-training; see attention_mask.

    Raises:
        UserError: an unknown attention.
    """

    #: whether padding is seen like words
    open_padding: ClassVar[bool] = False

    def __init__(self, image: int, width: int, positions: int, vocabulary: int, attention: str = "bar") -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise UserError(f"method.attention={attention}: expected one of {', '.join(ATTENTION)}.")
        self.arguments = {
            "image": image,
            "width": width,
            "positions": positions,
            "vocabulary": vocabulary,
            "attention": attention,
        }
        self.attention, self.positions = attention, positions
        self.crosses = attention != "noncross"
        self.build_locations(image, positions)
        self.project = nn.Linear(image, width)
        # With two [CLS] their product is the vector of the pair, and nothing is pooled.
        self.pooler = nn.Linear(width, width) if self.crosses else None
        self.matching = nn.Linear(width, 2)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def build_locations(self, image: int, positions: int) -> None:
        """The tables of location and kind, in the width of the image features."""
        self.location = nn.Embedding(positions, image)
        self.kind = nn.Parameter(torch.empty(image))
        for table in (self.location.weight, self.kind):
            nn.init.normal_(table, std=0.02)

    def embed_image(
        self, text: TextBackbone, features: Float[Tensor, "B N C"], positions: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        """Image features to BERT's inputs: features, locations and kind summed, projected, normalised."""
        table = text.bert.embeddings
        return table.dropout(table.LayerNorm(self.project(features + self.location(positions) + self.kind)))

    def language_positions(
        self, text_tokens: int, device: torch.device | None = None
    ) -> Int[Tensor, "{text_tokens}+2"]:
        """Positions of [CLS], the image's [SEP] and T text tokens."""
        start = 2 if self.crosses else 0
        return torch.cat([torch.arange(2), torch.arange(start, start + text_tokens)]).to(device)

    def embed(
        self,
        text: TextBackbone,
        features: Float[Tensor, "B N C"],
        positions: Int[Tensor, "B N"],
        words: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B S D"]:
        """The sequence that enters BERT's layers; the special tokens of the image are of kind 0, the text of kind 1."""
        special = torch.tensor([[text.tokenizer.cls, text.tokenizer.sep]], device=words.device)
        ids = torch.cat([special.expand(len(words), -1), words], 1)
        kinds = (torch.arange(ids.shape[1], device=words.device) >= 2).long().expand_as(ids)
        places = self.language_positions(words.shape[1], words.device)[None]
        language = text.bert.embeddings(ids, token_type_ids=kinds, position_ids=places)
        return torch.cat([language[:, :1], self.embed_image(text, features, positions), language[:, 1:]], 1)

    def forward(
        self,
        text: TextBackbone,
        features: Float[Tensor, "B N C"],
        positions: Int[Tensor, "B N"],
        words: Int[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        attention: str | None = None,
        causal: Bool[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Last hidden states of the sequence.

        Args:
            text: the BERT.
            features: of N places of each image.
            positions: which places.
            words: word pieces and [SEP], padded; without [CLS].
            real: False on padding.
            attention: kind of the mask; None takes that of pre-training.
            causal: see attention_mask.

        Raises:
            UserError: more image tokens than positions.
        """
        x, mask = self.sequence(text, features, positions, words, real, attention, causal)
        return text.bert.encoder(x, attention_mask=mask[:, None]).last_hidden_state

    def sequence(
        self,
        text: TextBackbone,
        features: Float[Tensor, "B N C"],
        positions: Int[Tensor, "B N"],
        words: Int[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        attention: str | None = None,
        causal: Bool[Tensor, "B"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S S"]]:
        """What the layers of the BERT read, and who sees whom; arguments and errors as in `forward`."""
        if features.shape[1] > self.positions:
            raise UserError(
                f"vision gives {features.shape[1]} image tokens and the joint encoder has {self.positions} positions. "
                "Lower vision.image_size, or raise text.architecture.max_position_embeddings."
            )
        if not self.crosses:
            words, real = F.pad(words, (1, 0), value=text.tokenizer.cls), F.pad(real, (1, 0), value=True)
        mask = attention_mask(
            attention or self.attention, features.shape[1], real, causal=causal, open_padding=self.open_padding
        )
        return self.embed(text, features, positions, words), mask

    def match(self, hidden: Float[Tensor, "B S D"], image_tokens: int) -> Float[Tensor, "B 2"]:
        """Logits of "these do not belong together" and "they do"."""
        if self.pooler is None:
            return self.matching(hidden[:, 0] * hidden[:, image_tokens + 2])
        return self.matching(self.pooler(hidden[:, 0]).tanh())

    def predict(self, text: TextBackbone, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... W"]:
        """Logits of every word piece; the output weights are BERT's word embeddings."""
        return F.linear(self.transform(hidden), text.bert.embeddings.word_embeddings.weight, self.bias)

    def similarity(
        self, text: TextBackbone, images: ImageFeatures, texts: TextFeatures, pairs: int = 256
    ) -> Float[Tensor, "Ni Nt"]:
        """Log-odds that image and text belong together, from all features of the image and the whole text.

        Args:
            text: the BERT.
            images: their tokens are read.
            texts: their index is read; what a text encoder made of them is not.
            pairs: how many go through BERT at once.
        """
        n = len(images.tokens)
        both = torch.cartesian_prod(torch.arange(n), torch.arange(len(texts.index)))
        scores = [
            self.score_pairs(text, images.tokens[i], texts.index.ids[t], texts.index.mask[t])
            for i, t in (part.unbind(1) for part in both.split(pairs))
        ]
        return torch.cat(scores).view(n, -1)

    def score_pairs(
        self, text: TextBackbone, tokens: Float[Tensor, "B N C"], ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B"]:
        """Log-odds that image b and text b belong together; `ids` begin with [CLS]."""
        count = tokens.shape[1]
        places = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
        attention = "bi" if self.crosses else self.attention
        logits = self.match(self(text, tokens, places, ids[:, 1:], mask[:, 1:], attention), count)
        return logits[:, 1] - logits[:, 0]

    def token_similarity(
        self, text: TextBackbone, images: ImageFeatures, texts: TextFeatures
    ) -> Float[Tensor, "B T N"] | None:
        """Attention of each token of text b on the features of image b, mean over the heads of the last layer.

        0 for what is no word; None where words do not see the image.
        """
        if not self.crosses:
            return None
        index, count = texts.index, images.tokens.shape[1]
        places = torch.arange(count, device=images.tokens.device).expand(len(images.tokens), -1)
        x, mask = self.sequence(text, images.tokens, places, index.ids[:, 1:], index.mask[:, 1:], "bi")
        layers: Any = text.bert.encoder.layer
        for layer in layers[:-1]:
            x = layer(x, mask[:, None])
        # with this mask all see the same
        rows = attention_rows(layers[-1].attention.self, x, mask[:, 0], slice(count + 2, None))
        seen = F.pad(rows[..., 1 : count + 1].float().mean(1), (0, 0, 1, 0))
        return seen * (index.word >= 0)[..., None]
