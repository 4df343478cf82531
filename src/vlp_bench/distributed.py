"""Talk between processes; on one process each function is the identity."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

_by_itself = ContextVar("by_itself", default=False)


@contextmanager
def by_itself(alone: bool = True) -> Iterator[None]:
    """Within it this process is the only one: nothing is gathered, nothing is averaged; unless `alone` is False."""
    before = _by_itself.set(alone)
    try:
        yield
    finally:
        _by_itself.reset(before)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    if _by_itself.get() or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


class _Gather(torch.autograd.Function):
    """All ranks' rows, with the gradient summed over what every rank did with ours."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Float[Tensor, "B ..."]) -> Float[Tensor, "world*B ..."]:
    """Rows of all ranks in rank order, with gradient; every rank must hold as many rows.

    A loss over the gathered batch that averages over the local rows gives, after DDP's mean over ranks, the gradient
    of one process with the joined batch.
    """
    return _Gather.apply(x) if rank_and_world()[1] > 1 else x


def gather_longest(x: Tensor) -> Tensor:
    """As `gather`, for (B, W, ...) where every rank has a W of its own: zeros fill up to the longest."""
    if rank_and_world()[1] == 1:
        return x
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padded = x.new_zeros((len(x), int(longest), *x.shape[2:]))
    padded[:, : x.shape[1]] = x
    # booleans cannot be sent by every backend
    return gather(padded.byte()).bool() if x.dtype == torch.bool else gather(padded)


def mean_count(count: Tensor) -> Tensor:
    """Mean over all ranks of how many each has of something, as if there were at least one in all; without gradient.

    What a rank sums over its own, divided by this, gives, averaged over ranks, the mean over all of them.
    """
    return all_reduce(count).clamp(min=1) / rank_and_world()[1]


def all_reduce(x: Tensor) -> Tensor:
    """Sum over all ranks, without gradient."""
    if rank_and_world()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x
