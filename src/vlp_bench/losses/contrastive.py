"""Contrast of whole images with whole reports.

E is the width of the joint space, B the rows that this process holds and N >= B the rows it compares them with: its own
B, or those of all processes in rank order, of which `offset` is the first of its own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp_bench.distributed import gather, rank_and_world
from vlp_bench.losses.precision import full_precision


@full_precision
def similarity(a: Float[Tensor, "B E"], b: Float[Tensor, "N E"], temperature: float = 1.0) -> Float[Tensor, "B N"]:
    """Inner products divided by the temperature; cosines where the rows are unit vectors."""
    return a @ b.T / temperature


@full_precision
def info_nce(
    rows: Float[Tensor, "B E"], columns: Float[Tensor, "N E"], temperature: float, offset: int = 0
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each row's partner among the columns; one direction of MGCA's ITA, ConVIRT, CLIP.

    Args:
        rows: unit vectors of this process.
        columns: unit vectors of the other kind; column `offset` + i belongs to row i.
        temperature: divides the cosines.
        offset: column of the first row's partner.

    Returns:
        the mean over the rows. With columns gathered over processes, its gradient, averaged over processes, is that
        of one process with the joined batch.
    """
    partner = torch.arange(offset, offset + len(rows), device=rows.device)
    return F.cross_entropy(similarity(rows, columns, temperature), partner)


def info_nce_both(
    v: Float[Tensor, "B E"], t: Float[Tensor, "B E"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`info_nce` of images among texts and of texts among images, over the batch of all processes."""
    first = rank_and_world()[0] * len(v)
    return info_nce(v, gather(t), temperature, first), info_nce(t, gather(v), temperature, first)


def negatives(x: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    """From how many others `info_nce_both` tells the partner of each of the rows `x`."""
    # filled in on the device: a number that is brought there would wait for it
    return x.new_full((), len(x) * rank_and_world()[1] - 1, dtype=torch.float32)


@full_precision
def queue_nce(
    queries: Float[Tensor, "B E"], keys: Float[Tensor, "B E"], queue: Float[Tensor, "K E"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each query's own key among it and the queue (MoCo, equation 1); all unit vectors."""
    own = (queries * keys).sum(1, keepdim=True)
    scores = torch.cat([own, queries @ queue.T], 1) / temperature
    return F.cross_entropy(scores, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


@torch.no_grad()
def retrieval_accuracy(image: Float[Tensor, "B E"], text: Float[Tensor, "B E"], k: int) -> Float[Tensor, ""]:
    """How often, in percent, the partner is among the k nearest of the batch; the mean of both directions.

    Ties count against it, so that embeddings that have collapsed into one score nothing.
    """
    scores = similarity(image, text)
    own = scores.diagonal()
    ranks = torch.stack([(scores >= own[:, None]).sum(1), (scores >= own[None]).sum(0)])
    return 100 * (ranks <= k).float().mean()
