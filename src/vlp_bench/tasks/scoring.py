"""Images of a target against its reports: by one vector each where the method has them, else pair by pair."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_bench.data.datamodule import assemble
from vlp_bench.encoders.bundle import on_device
from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.tasks.base import Cell
from vlp_bench.types import Tokens

#: Pairs that go through a joint encoder at once, and pairs of vectors that are multiplied at once.
PAIRS, VECTORS = 256, 16384


def pairs(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """First frontal image row and study number of each study of the split that has a report.

    Raises:
        UserError: the encoders cannot compare images and texts, or no study has both.
    """
    require_comparison(cell)
    store, inputs = cell.target.store, cell.encoders.inputs
    pieces, _ = store.pieces(cell.encoders.text.tokenizer, inputs.form)  # type: ignore[union-attr]
    images = store.images
    use = store.in_split(cell.split) & images["frontal"] & (np.diff(pieces.offsets)[images["study"]] > 0)
    first = images[use].groupby("study").head(1)
    if first.empty:
        raise UserError(
            f"target={cell.target.name} has no {cell.split} study with a frontal image and a report that these "
            f"encoders read (sections={inputs.sections})."
        )
    return first.index.to_numpy(), first["study"].to_numpy()


def require_comparison(cell: Cell) -> None:
    """Refuse encoders that cannot score an image against a text.

    Raises:
        NotApplicable: they cannot.
    """
    if not cell.encoders.compares:
        raise NotApplicable(
            f"This task needs encoders that compare images and texts; {cell.encoders.name} has no aligner."
        )


def report_tokens(cell: Cell, studies: np.ndarray) -> Tokens:
    """The reports of studies in the pieces of the text encoder, which there must be."""
    text, inputs = cell.encoders.text, cell.encoders.inputs
    assert text is not None
    pieces, _ = cell.target.store.pieces(text.tokenizer, inputs.form)
    return assemble(pieces, studies, text.tokenizer, inputs.max_tokens)


class Scores:
    """Scores of Ni images with the reports of Nt studies; nothing is computed before it is asked for.

    Dual encoders keep one vector for each side; a joint encoder reads each pair that is asked for.

    Args:
        cell: the encoders and the target.
        rows: image rows, (Ni,).
        studies: whose reports, (Nt,).
    """

    def __init__(self, cell: Cell, rows: np.ndarray, studies: np.ndarray) -> None:
        self.cell, self.rows, self.studies = cell, rows, studies
        self.vectors = None if cell.encoders.aligner is None else (self._images(), self._texts())

    def tokens(self, places: np.ndarray) -> Tokens:
        """The reports at some places of `studies`."""
        return report_tokens(self.cell, self.studies[places])

    @torch.inference_mode()
    def _images(self) -> Tensor:
        aligner = self.cell.encoders.aligner
        assert aligner is not None
        return torch.cat([F.normalize(aligner.embed_images(f), dim=-1) for f in self.cell.encode(self.rows)])

    @torch.inference_mode()
    def _texts(self) -> Tensor:
        aligner, text = self.cell.encoders.aligner, self.cell.encoders.text
        assert aligner is not None
        assert text is not None
        with on_device(text) as device:
            found = [
                F.normalize(aligner.embed_texts(text(self.tokens(part).to(device)).to("cpu")), dim=-1)
                for part in self.cell.parts(np.arange(len(self.studies)))
            ]
        return torch.cat(found)

    def block(self, start: int, stop: int) -> np.ndarray:
        """Scores of images start to stop - 1 with every text, float32 (stop - start, Nt)."""
        if self.vectors is not None:
            return (self.vectors[0][start:stop] @ self.vectors[1].T).numpy()
        images, texts = np.arange(start, stop), np.arange(len(self.studies))
        return self.of(*(part.ravel() for part in np.meshgrid(images, texts, indexing="ij"))).reshape(-1, len(texts))

    def matrix(self) -> np.ndarray:
        """All scores, float32 (Ni, Nt)."""
        return self.block(0, len(self.rows))

    @torch.inference_mode()
    def of(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Scores of P pairs, float32 (P,), given by the places of image and text."""
        if self.vectors is not None:
            parts = (slice(i, i + VECTORS) for i in range(0, len(images), VECTORS))
            both = ((self.vectors[0][images[part]], self.vectors[1][texts[part]]) for part in parts)
            return torch.cat([(a * b).sum(1) for a, b in both]).numpy()
        joint, reader = self.cell.encoders.joint, self.cell.encoders.text
        assert joint is not None
        assert reader is not None
        out = np.empty(len(images), np.float32)
        order, begin = np.argsort(images, kind="stable"), 0
        sorted_images = images[order]
        with on_device(joint, reader) as device:
            # each image is encoded once, and the pairs that it is in are read while it is at hand
            for features in self.cell.encode(self.rows):
                end = begin + len(features.tokens)
                mine = order[np.searchsorted(sorted_images, begin) : np.searchsorted(sorted_images, end)]
                for part in (mine[i : i + PAIRS] for i in range(0, len(mine), PAIRS)):
                    said = self.tokens(texts[part]).to(device)
                    seen = features.tokens[images[part] - begin].to(device)
                    out[part] = joint.score_pairs(reader, seen, said.ids, said.mask).float().cpu().numpy()
                begin = end
        return out
