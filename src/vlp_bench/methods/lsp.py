"""LSP: label-supervised pre-training, the baseline that learns from the labels of the reports and reads none.

What the papers compare with under this name (REFERS, table 1): the image encoder and a linear layer, trained to tell
the findings that a labeller took from the report. Labels that are uncertain or unknown are left out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlp_bench.distributed import mean_count
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.labels import label_loss
from vlp_bench.methods.base import VLPMethod
from vlp_bench.types import StudyBatch


class LSP(VLPMethod):
    """Binary cross-entropy over the labels of each image.

    Args:
        vision: the image encoder.
        text: not used, and not kept.
        optimizer: see VLPMethod.
        labels: how many labels the data have.
        **common: see VLPMethod; loss_weights are of the only term, `labels`.
    """

    def __init__(
        self,
        vision: VisionBackbone,
        text: TextBackbone | None,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None,
        *,
        labels: int = 14,
        **common: Any,
    ) -> None:
        super().__init__(vision, None, optimizer, **common)
        self.head = nn.Linear(vision.spec.pooled_dim, labels)

    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        """The mean over the labels that are known, of all processes.

        Raises:
            UserError: the data have another number of labels.
        """
        if batch.labels.shape[1] != self.head.out_features:
            raise UserError(
                f"method.labels={self.head.out_features}, but the data have {batch.labels.shape[1]} labels: "
                f"give method.labels={batch.labels.shape[1]}."
            )
        logits = self.head(self.vision(batch.frontal).pooled)
        return {"labels": label_loss(logits, batch.labels, mean_count)}
