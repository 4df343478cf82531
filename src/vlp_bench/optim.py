"""Learning rates by step and parameters by group."""

import math
from collections.abc import Iterable

from torch import nn


def multiplier(step: int, total: int, warmup: int, final: float = 0.0) -> float:
    """Factor on the learning rate at an optimiser step: linear warm-up, then half a cosine.

    From `final` to 1 over `warmup` steps, back to `final` at `total`; after that the cycle begins anew, as in the
    scheduler that MGCA uses (supplement A.3).

    >>> [round(multiplier(i, 10, 4), 3) for i in (0, 2, 4, 7, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    step %= max(total, 1)
    if step < warmup:
        return final + (1 - final) * step / warmup
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def warmup_cosine(step: int, length: int, warmup: int, start: float = 0.0, final: float = 0.0) -> float:
    """Factor on the learning rate of one stage of `length` steps: `start` to 1 in `warmup` steps, then half a cosine.

    The last of the warm-up's steps and the one after it are both at 1, as in lightning-bolts.

    >>> [round(warmup_cosine(i, 10, 4, 0.1), 3) for i in (0, 1, 3, 4, 7, 10)]
    [0.1, 0.4, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return start + (1 - start) * step / max(warmup - 1, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(length - warmup, 1)))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, decay_all: bool = False) -> list[dict]:
    """Two groups of the trainable parameters: decayed matrices, and the biases and norms that are not.

    Args:
        modules: their parameters, each counted once.
        weight_decay: of the first group.
        decay_all: put everything into the first group, as MGCA's code does.
    """
    parameters = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    matrices = [p for p in parameters if p.ndim > 1 or decay_all]
    vectors = [p for p in parameters if p.ndim <= 1 and not decay_all]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
