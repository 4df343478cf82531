"""What the code that MGCA's authors released does, and only that; `mgca.py` has the table of differences."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.errors import UserError
from vlp_bench.losses.local_alignment import attend, clipped_shares, shares, token_contrast
from vlp_bench.losses.precision import unit
from vlp_bench.losses.words import sum_pieces, word_slots
from vlp_bench.methods.mgca import MGCA, Words
from vlp_bench.types import ImageFeatures, TextFeatures, Tokens


def surviving_slots(index: Tokens, max_tokens: int) -> Int[Tensor, "B T"]:
    """Words that the code's walk along the tokens completes.

    It stops one token before the end, so that a report that fills all `max_tokens` never meets its [SEP], and the word
    that is open by then is not written.
    """
    slots = word_slots(index)
    full = index.mask.sum(1, keepdim=True) >= max_tokens
    return slots.masked_fill(full & (slots >= slots[:, -2:-1]), -1)


def shifted(saliency: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each token gets the attention of [CLS] on the token after it."""
    return F.pad(saliency[:, 1:], (0, 1))


def gather_words(text: TextFeatures, max_tokens: int) -> Words:
    """Words as sums of pieces, padded with zero vectors to `max_tokens` - 1 slots; the mask marks the written ones."""
    assert text.saliency is not None
    slots = surviving_slots(text.index, max_tokens)
    vectors = sum_pieces(text.tokens, slots)
    weight = sum_pieces(shifted(text.saliency)[..., None], slots)
    mask = torch.arange(max_tokens, device=slots.device) <= slots.amax(1, keepdim=True)
    missing = max_tokens - slots.shape[1]
    vectors, weight = F.pad(vectors, (0, 0, 0, missing)), F.pad(weight, (0, 0, 0, missing))
    return Words(vectors[:, 1:], weight[:, 1:, 0], mask[:, 1:])


def contrast_tokens(
    p: Float[Tensor, "B P E"],
    w: Float[Tensor, "B W E"],
    saliency: Float[Tensor, "B P"] | None,
    word_weight: Float[Tensor, "B W"],
    mask: Bool[Tensor, "B W"],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions of the words, then of the patches, from unit vectors.

    Without the saliency that a ViT has, patches count alike; only then is what a patch attended to made a unit vector.
    """
    of_words, of_patches = unit(attend(w, p, temperature)), attend(p, w, temperature, mask)
    if saliency is None:
        of_patches, patch_weight = unit(of_patches), shares(torch.ones_like(p[..., 0]))
    else:
        patch_weight = clipped_shares(saliency)
    return (
        *token_contrast(w, of_words, clipped_shares(word_weight), temperature),
        *token_contrast(p, of_patches, patch_weight, temperature),
    )


class MGCAOfficial(MGCA):
    """MGCA as released.

    Raises:
        UserError: `heads` is given; this variant's attention has none.
    """

    across_processes = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        # The code hands the token types (all 0) to an argument that takes positions.
        self.text.positions = False
        self.text.remove_token_types()
        self.text.arguments |= {"positions": False, "token_types": False}

    def build_attention(self, embed_dim: int, heads: int) -> None:
        """Nothing: the attention is parameter-free."""
        if heads != 1:
            raise UserError(f"method.heads={heads} has no effect with method.variant=official; use variant=paper.")

    def token_terms(self, image: ImageFeatures, text: TextFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """CTA; padded slots enter the batch statistics of the words' head and the negatives."""
        words = gather_words(text, self.max_tokens)
        p, w = unit(self.heads.patch(image.tokens)), unit(self.heads.word(words.vectors))  # type: ignore[misc]
        return contrast_tokens(p, w, image.saliency, words.weight, words.mask, self.temperatures["token"])
