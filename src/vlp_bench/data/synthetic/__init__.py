"""The synthetic chest world: radiographs, reports, labels, boxes, masks and questions, all from one drawn truth.

Nobody's data and free to share, it lets every part of the suite be tried, tested and timed without access to a hospital
archive. A seed fixes all of it; study ``i`` of a seed is the same however many are asked for.
"""

from vlp_bench.data.synthetic.drawing import annotate, render
from vlp_bench.data.synthetic.language import HEDGES, MENTIONS
from vlp_bench.data.synthetic.sampling import sample_studies, split_of
from vlp_bench.data.synthetic.vocabulary import SPECIAL_TOKENS, VOCABULARY, train_vocabulary
from vlp_bench.data.synthetic.world import (
    CHEXPERT_LABELS,
    DEVICES,
    FINDINGS,
    QA,
    Finding,
    SyntheticImage,
    SyntheticStudy,
)
from vlp_bench.data.synthetic.writing import layout_names, write_raw

__all__ = [
    "CHEXPERT_LABELS",
    "DEVICES",
    "FINDINGS",
    "HEDGES",
    "MENTIONS",
    "QA",
    "SPECIAL_TOKENS",
    "VOCABULARY",
    "Finding",
    "SyntheticImage",
    "SyntheticStudy",
    "annotate",
    "layout_names",
    "render",
    "sample_studies",
    "split_of",
    "train_vocabulary",
    "write_raw",
]
