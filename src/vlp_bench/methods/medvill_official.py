"""What the code that MedViLL's authors released does, and only that; `medvill.py` has the table of differences."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.methods.draws import Draws
from vlp_bench.methods.medvill import MedViLL, Reports
from vlp_bench.types import StudyBatch


class JointEncoderOfficial(JointEncoder):
    """Image features share BERT's tables of positions and kinds; [CLS], [SEP] and the first word are at position 0."""

    open_padding = True

    def build_locations(self, image: int, positions: int) -> None:
        """Nothing: the tables are BERT's."""

    def embed_image(
        self, text: TextBackbone, features: Float[Tensor, "B N C"], positions: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        """Features projected, then location and kind 0 added, then normalised."""
        table = text.bert.embeddings
        x = self.project(features) + table.position_embeddings(positions) + table.token_type_embeddings.weight[0]
        return table.dropout(table.LayerNorm(x))

    def language_positions(
        self, text_tokens: int, device: torch.device | None = None
    ) -> Int[Tensor, "{text_tokens}+2"]:
        """0 and 0, then from 0 on."""
        return F.pad(torch.arange(text_tokens, device=device), (2, 0))


class MedViLLOfficial(MedViLL):
    """MedViLL as released."""

    joint_class = JointEncoderOfficial

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        # The loop that is to train the late blocks runs over none of them.
        self.vision.requires_grad_(False)

    def pair(self, batch: StudyBatch, draws: Draws) -> Reports:
        """Reports padded to the longest that there may be."""
        words, real, aligned = super().pair(batch, draws)
        missing = self.max_tokens - 1 - words.shape[1]
        return Reports(F.pad(words, (0, missing), value=self.text.tokenizer.pad), F.pad(real, (0, missing)), aligned)

    def asked(self, labels: Int[Tensor, "B T"], aligned: Bool[Tensor, "B"]) -> Int[Tensor, "B T"]:
        """All of them."""
        return labels

    def visual_draw(self, draws: Draws, places: Int[Tensor, "P"]) -> Float[Tensor, "_ P"]:
        """One for the batch."""
        return draws.shared("look", places)

    def causal(self, draws: Draws) -> Bool[Tensor, "B"] | None:
        """Each sample by itself."""
        if self.joint.attention != "mixed":
            return None
        return draws("causal", draws.study.new_zeros(1))[:, 0] < self.s2s_share
