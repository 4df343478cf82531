"""What writes from image features: an image, sentences as vectors (both of PRIOR), a report word by word (REFERS)."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlp_bench.data.tokenization import SentencePieces, Tokenizer
from vlp_bench.encoders.chunks import InChunks
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.errors import UserError


class ImageDecoder(nn.Module):
    """A grey image from a map of patches and a map of what they gathered from the report.

    Each block doubles the side by nearest neighbours, then convolves twice, 3 x 3; channels halve from block to block.
    From 2 x 768 channels at 7 x 7 to 224 px these are five blocks that end with 48 channels.

    Args:
        width: D of each of the two maps.
        grid: their height and width.
        image_size: side of the image.
        norm_last: batch norm after the ReLU (the paper) instead of before it.
    """

    def __init__(self, width: int, grid: Sequence[int], image_size: int, norm_last: bool) -> None:
        super().__init__()
        self.arguments = {"width": width, "grid": list(grid), "image_size": image_size, "norm_last": norm_last}
        count = max(1, (image_size // max(grid)).bit_length() - 1)
        self.sizes = [-(-image_size // 2**i) for i in reversed(range(count))]
        channels = [max(2 * width // 2**i, 1) for i in range(count + 1)]
        self.blocks = nn.ModuleList(
            nn.Sequential(*_convolution(a, b, norm_last), *_convolution(b, b, norm_last)) for a, b in pairwise(channels)
        )
        self.output = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def forward(self, patches: Float[Tensor, "B D h w"], context: Float[Tensor, "B D h w"]) -> Float[Tensor, "B 1 H W"]:
        """The image, normalised as the encoder's input is."""
        x = torch.cat([patches, context], 1)
        for size, block in zip(self.sizes, self.blocks, strict=True):
            x = block(F.interpolate(x, size=(size, size), mode="nearest"))
        return self.output(x)


def _convolution(inputs: int, outputs: int, norm_last: bool) -> list[nn.Module]:
    after: list[nn.Module] = [nn.BatchNorm2d(outputs), nn.ReLU()]
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *(reversed(after) if norm_last else after)]


class SentenceDecoder(InChunks):
    """Q vectors, each of them a sentence of the report or nothing, from the patches: learned queries through a BERT.

    Layers are BERT's with cross-attention (self-attention, cross-attention, feed-forward, each followed by a layer
    norm); only dropout inside the feed-forward part is left out, as BERT has none there.

    Args:
        width: D.
        queries: Q.
        layers: how many.
        heads: of each attention.
        hidden: width inside the feed-forward part.
        dropout: of the embedding, the attention weights and each residual branch.
        causal: a query sees only those before it, as in BERT's decoder.

    Raises:
        UserError: `heads` does not divide `width`.
    """

    blind: Tensor | None

    def __init__(
        self, width: int, queries: int, layers: int, heads: int, hidden: int, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"method.decoder.heads={heads} does not divide method.embed_dim={width}.")
        self.arguments = {
            "width": width,
            "queries": queries,
            "layers": layers,
            "heads": heads,
            "hidden": hidden,
            "dropout": dropout,
            "causal": causal,
        }
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.positions = nn.Parameter(torch.zeros(queries, width))
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, hidden, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True)
            for _ in range(layers)
        )
        blind = torch.ones(queries, queries, dtype=torch.bool).triu(1) if causal else None
        self.register_buffer("blind", blind, persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and name != "queries":
                nn.init.normal_(parameter, std=0.02)
        for layer in self.layers:
            layer.dropout = nn.Identity()

    def forward(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B Q D"]:
        """One vector a query."""
        x = self.dropout(self.norm(self.queries + self.positions)).expand(len(patches), -1, -1)
        for layer in self.layers:
            x = layer(x, patches, tgt_mask=self.blind)
        return x


def caption_tokenizer(text: TextBackbone, sentencepiece: str | None) -> Tokenizer:
    """What a decoder's words are numbered by: a SentencePiece model of its own, or the text encoder's vocabulary.

    Raises:
        UserError: the model cannot be read.
    """
    return SentencePieces(sentencepiece) if sentencepiece else text.tokenizer


class ReportDecoder(InChunks):
    """A transformer that reads a report from the left and looks at a memory of image tokens.

    Post-norm layers with exact GELU; words and positions are learned, and the embedding of a word is also its row of
    the output layer. The sizes are those of the code that REFERS' authors released; the paper refers to its source.

    Args:
        vocabulary: number of word pieces, V.
        pad: id of the padding, whose embedding is zero.
        memory: width of the memory's tokens.
        width: of the decoder, H.
        heads: of its attention.
        feedforward: width inside its layers.
        layers: how many.
        max_tokens: longest report.
        dropout: everywhere, attention included.
        bidirectional: also have layers that read a report from its end; all else is shared.
    """

    def __init__(
        self,
        vocabulary: int,
        pad: int,
        memory: int,
        width: int = 1024,
        heads: int = 16,
        feedforward: int = 4096,
        layers: int = 1,
        max_tokens: int = 100,
        dropout: float = 0.1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary,
            "pad": pad,
            "memory": memory,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "layers": layers,
            "max_tokens": max_tokens,
            "dropout": dropout,
            "bidirectional": bidirectional,
        }
        self.pad = pad
        self.projection = nn.Linear(memory, width)
        self.words = nn.Embedding(vocabulary, width, padding_idx=pad)
        self.positions = nn.Embedding(max_tokens, width)
        self.norm = nn.LayerNorm(width, eps=1e-8)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.empty(vocabulary).uniform_(-(width**-0.5), width**-0.5))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, feedforward, dropout, activation="gelu", batch_first=True)
            for _ in range(layers)
        )
        self.apply(_draw)
        self.backward_layers = copy.deepcopy(self.layers) if bidirectional else None

    def embed(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """Words with their positions, normalised; zero on padding."""
        place = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.words(ids) + self.positions(place)))
        return x * (ids != self.pad)[..., None]

    def forward(
        self,
        memory: Float[Tensor, "B M D"],
        ids: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        *,
        from_end: bool = False,
    ) -> Float[Tensor, "B T H"]:
        """What each token, given those before it and the memory, says of the next.

        Args:
            memory: image tokens of each report, float.
            ids: words in reading order, int64.
            mask: True on real tokens.
            from_end: read with the layers of the other direction.
        """
        x, seen = self.embed(ids), self.projection(memory)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        layers = self.backward_layers if from_end else self.layers
        assert layers is not None
        for layer in layers:
            x = layer(x, seen, tgt_mask=later, tgt_key_padding_mask=~mask)
        return x

    def logits(self, x: Float[Tensor, "... H"]) -> Float[Tensor, "... V"]:
        """Scores of every word."""
        return F.linear(x, self.words.weight, self.bias)


def _draw(module: nn.Module) -> None:
    """Weights from N(0, 0.02), as in BERT; biases of linear layers stay as torch draws them."""
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
    elif isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
