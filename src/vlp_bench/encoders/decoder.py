"""The decoder that writes a report from image features."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class ReportDecoder(nn.Module):
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
