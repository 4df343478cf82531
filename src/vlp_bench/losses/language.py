"""Generation of a report word by word.

B reports of T tokens, V entries of the vocabulary, N tokens of all reports that have something after them to predict.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.losses.precision import full_precision


def next_words(
    x: Float[Tensor, "B T D"], ids: Int[Tensor, "B T"], counted: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"]]:
    """Each token whose successor counts, with that successor: x is float, ids are int64."""
    following = counted[:, 1:]
    return x[:, :-1][following], ids[:, 1:][following]


@full_precision
def word_loss(
    logits: Float[Tensor, "N V"],
    target: Int[Tensor, " N"],
    average: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, ""]:
    """Mean of -log p(word | words before it, image) over all words of the batch (REFERS, report generation).

    Args:
        logits: of any float type; computed in float32 at least.
        target: the words, int64.
        average: averages a tensor over processes; with it the mean of the result over processes, and of its gradient,
            is that of one process with the joined batch, however the words are spread.
    """
    words = average(logits.new_tensor(float(len(target)))).clamp(min=1)
    return F.cross_entropy(logits, target, reduction="sum") / words


def reverse_words(ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Each report read from its end (int64), its padding left where it is; `mask` is True on real tokens."""
    from_end = mask.sum(1, keepdim=True) - mask.cumsum(1)
    return ids.gather(1, from_end.where(mask, 0)).where(mask, ids)
