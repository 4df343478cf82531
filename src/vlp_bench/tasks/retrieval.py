"""Image to report and report to image over a whole split."""

import numpy as np
import pandas as pd
import torch

from vlp_bench.data.datamodule import assemble
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.errors import UserError
from vlp_bench.metrics.retrieval import rank_metrics, retrieval_ranks, trivial_retrieval
from vlp_bench.tasks.base import Cell, Outcome, Picture, Task
from vlp_bench.tasks.pictures import attention
from vlp_bench.types import ImageFeatures, TextFeatures


class Retrieval(Task):
    """Exact pairs: the first frontal image of each study against the report of each study; nothing is trained."""

    learns = False

    def run(self, cell: Cell) -> Outcome:
        """Score every image with every report.

        Raises:
            UserError: the encoders cannot compare images and texts, or no study has both.
        """
        encoders, store = cell.encoders, cell.target.store
        if not encoders.compares:
            raise UserError(
                f"task=retrieval needs encoders that compare images and texts; "
                f"{encoders.meta.get('name', 'this backbone')} has no aligner."
            )
        rows, studies = _pairs(cell)
        similarity = _similarity(cell, encoders, rows, studies)
        patients = store.studies["patient_id"].to_numpy()[studies]
        ranks = retrieval_ranks(similarity, studies, studies)
        metrics = rank_metrics(*ranks, patients, patients, cell.resamples)
        predictions = pd.DataFrame(
            {
                "item_id": store.images["image_id"].to_numpy()[rows],
                "patient_id": patients,
                "score_own_report": np.diagonal(similarity).astype(np.float32),
                "rank_own_report": ranks[0],
            }
        )
        facts = {"candidates": len(rows)}
        return Outcome(metrics, trivial_retrieval(studies, studies), predictions, [], facts)

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> list[Picture]:
        """Where the encoders look in test images."""
        return attention(cell, count)


def _pairs(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """First frontal image row and study number of each study of the split that has a report."""
    store, inputs = cell.target.store, cell.encoders.inputs
    pieces, _ = store.pieces(cell.encoders.text.tokenizer, inputs.form)  # type: ignore[union-attr]
    images = store.images
    use = (images["split"] == cell.split) & images["frontal"] & (np.diff(pieces.offsets)[images["study"]] > 0)
    first = images[use].groupby("study").head(1)
    if first.empty:
        raise UserError(f"target={cell.target.name} has no {cell.split} study with a frontal image and a report.")
    return first.index.to_numpy(), first["study"].to_numpy()


@torch.inference_mode()
def _similarity(cell: Cell, encoders: Encoders, rows: np.ndarray, studies: np.ndarray) -> np.ndarray:
    text, inputs = encoders.text, encoders.inputs
    assert text is not None
    pieces, _ = cell.target.store.pieces(text.tokenizer, inputs.form)
    size = int(cell.adaptation.get("batch_size", 128))
    batches = [studies[i : i + size] for i in range(0, len(studies), size)]
    texts = [text(assemble(pieces, part, text.tokenizer, inputs.max_tokens)) for part in batches]
    images = cell.encode(rows)
    return np.concatenate([np.concatenate([_block(encoders, i, t) for t in texts], axis=1) for i in images])


def _block(encoders: Encoders, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
    return encoders.similarity(images, texts).float().cpu().numpy()
