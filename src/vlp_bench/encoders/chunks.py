"""Encoders that see a large batch in chunks, with the gradient of the whole: gradient caching (Gao et al., 2021).

A contrast wants many samples at once, and what an encoder keeps of them for its gradient fills a GPU. Here an encoder
first computes the features of all samples and keeps nothing else; when the loss has told what it wants of them, the
chunks go through the encoder again, one after the other, each with its part of that gradient. Dropout draws in the
second pass what it drew in the first. It costs one more forward pass of the encoders.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp_bench.errors import UserError
from vlp_bench.types import Tokens


class InChunks(nn.Module):
    """Base of encoders and decoders: calls with more than `chunk` samples run chunk by chunk; with None, all at once.

    Every tensor and every `Tokens` among the arguments has the samples along its first axis; so has what comes out.
    """

    chunk: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`."""
        anchor = next(a.ids if isinstance(a, Tokens) else a for a in args if isinstance(a, Tensor | Tokens))
        if self.chunk is None or len(anchor) <= self.chunk:
            return super().__call__(*args, **kwargs)
        parts = []
        for start in range(0, len(anchor), self.chunk):
            rows = slice(start, start + self.chunk)
            own = [_rows(a, rows) for a in args], {k: _rows(v, rows) for k, v in kwargs.items()}
            parts.append(
                self._part(anchor[rows], *own) if torch.is_grad_enabled() else super().__call__(*own[0], **own[1])
            )
        return _joined(parts)

    def _part(self, anchor: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """One chunk, of which only the result is kept."""
        forward = super().__call__
        # by the tensor the device is found whose random numbers, and whose autocast, are to be those of the first pass
        return checkpoint(lambda _: forward(*args, **kwargs), anchor, use_reentrant=False)


def _rows(x: Any, rows: slice) -> Any:
    """Samples of an argument; what has none as it is."""
    if isinstance(x, Tokens):
        fields: Any = {f.name: _rows(getattr(x, f.name), rows) for f in dataclasses.fields(x)}
        return dataclasses.replace(x, **fields)
    return x[rows] if isinstance(x, Tensor) else x


def _joined(parts: list[Any]) -> Any:
    """Results of all chunks as one; what is no tensor is the same in each."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return dataclasses.replace(first, **{k: _joined([getattr(p, k) for p in parts]) for k in names})
    return first


def cache_gradients(method: nn.Module, chunk: Any) -> None:
    """Let every encoder of a method see its batches in chunks of so many samples; None changes nothing.

    Raises:
        UserError: not a positive number, or an encoder that normalises over the batch: the statistics of a chunk are
            not those of the batch, and no second pass makes them so.
    """
    if chunk is None:
        return
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise UserError(f"gradient_cache={chunk}: expected how many samples an encoder sees at once, or null.")
    for name, part in method.named_modules():
        if not isinstance(part, InChunks):
            continue
        norm = next((n for n, _ in part.named_buffers() if n.endswith(("running_mean", "running_var"))), None)
        if norm is not None:
            raise UserError(
                f"gradient_cache={chunk}: {name} normalises over the batch (at {norm.rpartition('.')[0]}), and the "
                "statistics of a chunk are not those of the batch. Choose a vision transformer or a network with group "
                "norm (vision.name=resnet50_gn), or more devices with trainer.sync_batchnorm=true."
            )
        part.chunk = chunk
