"""Every number that a method, a task or the engine logs, in one place: what it is, which way is better, where it shows.

Curves have names such as `train/loss/token`: part of the run, then what is measured. A measure of a task is called
`auroc`, or with a direction or a label `i2t/R@5`, `auroc/Edema`; to a logger that sees many tasks it goes under the
name of its cell, as `classification-nih-probe/test/auroc`.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Measure:
    """What one name means.

    Args:
        words: how it is written for people.
        better: `higher`, `lower`, or nothing where neither is.
        unit: of its values; nothing for a number without one, and for shares, which lie in [0, 1].
        panel: heading under which its curve is drawn.
        summary: what of a curve stands for the run, such as `min,last`; nothing for its last value.
    """

    words: str
    better: str = ""
    unit: str = ""
    panel: str = ""
    summary: str = ""


#: Headings of the panels, in the order in which they are looked at.
LOSSES, ALIGNMENT, RATE, THROUGHPUT, WAIT, MEMORY = (
    "Losses", "Alignment in the batch", "Learning rate", "Throughput", "Data wait", "Memory",
)  # fmt: skip
PANELS = (LOSSES, ALIGNMENT, RATE, THROUGHPUT, WAIT, MEMORY)
#: what training is drawn over: optimiser steps
STEP = "trainer/global_step"
#: what downstream measures are drawn over
FRACTION = "label_fraction"
#: the cell of a run that measures nothing
PRETRAINING = "pretrain"

#: Curves of training, by name or by pattern.
CURVES = {
    "train/loss": Measure("training loss", LOWER, panel=LOSSES),
    "val/loss": Measure("validation loss", LOWER, panel=LOSSES, summary="min,last"),
    "train/loss/*": Measure("unweighted term of the training loss", LOWER, panel=LOSSES),
    "val/loss/*": Measure("unweighted term of the validation loss", LOWER, panel=LOSSES),
    "train/top1": Measure("own report first, of the batch", HIGHER, "%", ALIGNMENT),
    "train/top5": Measure("own report among five, of the batch", HIGHER, "%", ALIGNMENT),
    "val/top1": Measure("own report first, of the validation batch", HIGHER, "%", ALIGNMENT, "max,last"),
    "val/top5": Measure("own report among five, of the validation batch", HIGHER, "%", ALIGNMENT, "max,last"),
    "train/irm_accuracy": Measure("pairs told from mixed ones, of the batch", HIGHER, "%", ALIGNMENT),
    "val/irm_accuracy": Measure("the same of the validation batch", HIGHER, "%", ALIGNMENT, "max,last"),
    "train/negatives": Measure("negatives of a sample", unit="samples", panel=ALIGNMENT),
    "val/negatives": Measure("negatives of a sample in validation", unit="samples", panel=ALIGNMENT),
    "val/score": Measure("what chooses the epoch of a downstream model", HIGHER),
    "lr": Measure("learning rate, before the factors of parameter groups", panel=RATE),
    "throughput/images_per_s": Measure("images a second", HIGHER, "1/s", THROUGHPUT, "mean,last"),
    "throughput/tokens_per_s": Measure("tokens a second", HIGHER, "1/s", THROUGHPUT, "mean,last"),
    "throughput/mfu": Measure("share of the peak of the device", HIGHER, panel=THROUGHPUT, summary="mean,last"),
    "throughput/data_wait": Measure("share of the time waiting for data", LOWER, panel=WAIT, summary="mean,last"),
    "throughput/step_s": Measure("seconds of a batch", LOWER, "s", THROUGHPUT, "mean,last"),
    "throughput/memory_gb": Measure("peak memory of the device", LOWER, "GB", MEMORY, "max"),
    "epoch": Measure("epoch"),
    STEP: Measure("optimiser steps"),
}

#: Measures of tasks: the part of a name that is no direction and no label.
MEASURES = {
    "auroc": Measure("AUROC", HIGHER),
    "auprc": Measure("AUPRC", HIGHER),
    "f1": Measure("F1", HIGHER),
    "accuracy": Measure("accuracy", HIGHER),
    "dice": Measure("Dice", HIGHER),
    "dice_positive": Measure("Dice of the positives", HIGHER),
    "iou": Measure("IoU", HIGHER),
    "false_positive_rate": Measure("share of false alarms", LOWER),
    "false_positives": Measure("false alarms an image", LOWER),
    "map": Measure("mAP", HIGHER),
    "ap50": Measure("AP50", HIGHER),
    "map_40_75": Measure("mAP .40:.75", HIGHER),
    "map_40_75_skipping": Measure("mAP .40:.75 without empty images", HIGHER),
    "R@*": Measure("recall at {}", HIGHER),
    "hit@*": Measure("hit@{}", HIGHER),
    "precision@*": Measure("precision@{}", HIGHER),
    "recall@*": Measure("recall@{}", HIGHER),
    "mrr": Measure("mean reciprocal rank", HIGHER),
    "median_rank": Measure("median rank", LOWER, "rank"),
    "perplexity": Measure("perplexity", LOWER),
    "perplexity_per_report": Measure("perplexity of a report", LOWER),
    "rouge_l": Measure("ROUGE-L", HIGHER),
    **{f"bleu{n}": Measure(f"BLEU-{n}", HIGHER) for n in range(1, 5)},
    "label_f1": Measure("F1 of findings", HIGHER),
    "label_accuracy": Measure("accuracy of findings", HIGHER),
    "label_precision": Measure("precision of findings", HIGHER),
    "label_recall": Measure("recall of findings", HIGHER),
    "label_f1_micro": Measure("F1 of all findings together", HIGHER),
    "label_precision_micro": Measure("precision of all findings together", HIGHER),
    "label_recall_micro": Measure("recall of all findings together", HIGHER),
    "pointing": Measure("pointing game", HIGHER),
    "cnr": Measure("contrast-to-noise ratio", HIGHER),
    "box_iou": Measure("IoU of boxes", HIGHER),
    "box_iou@*": Measure("IoU of boxes at least {}", HIGHER),
}
#: The other parts of a measure's name that are no labels.
QUALIFIERS = {"i2t": "image to text", "t2i": "text to image", "macro": "mean of labels"}


def curve(name: str) -> Measure | None:
    """What a curve is; None if nobody has declared it."""
    return _found(CURVES, name)


def measure(name: str) -> Measure | None:
    """What a measure of a task is, with or without a direction and a label; None if nobody has declared it."""
    parts = name.split("/")
    head = parts[1] if parts[0] in ("i2t", "t2i") and len(parts) > 1 else parts[0]
    return _found(MEASURES, head)


def _found(declared: dict[str, Measure], name: str) -> Measure | None:
    exact = declared.get(name)
    return exact or next((m for pattern, m in declared.items() if "*" in pattern and fnmatchcase(name, pattern)), None)


def rises(name: str) -> bool:
    """Tell whether more of a task's measure is better; of one that is not declared, by its name."""
    known = measure(name)
    if known is not None:
        return known.better == HIGHER
    return not re.search(r"^false_positive|rank|loss|error|hausdorff|perplexity", name.rsplit("/", 1)[-1])


def in_words(name: str) -> str:
    """Write one part of a measure's name for people: a measure, a direction, or a label as it is."""
    if name in QUALIFIERS:
        return QUALIFIERS[name]
    known = _found(MEASURES, name)
    return name if known is None else known.words.format(name.partition("@")[2])


def cell(task: str, target: str, adaptation: str, protocol: str) -> str:
    """Name what is comparable in itself: `classification-nih-probe`, with the protocol unless it is the default."""
    parts = (task, target.replace(" ", "-"), adaptation, "" if protocol == "honest" else protocol)
    return "-".join(part for part in parts if part and part != "none")


def row(encoders: object, variant: object) -> str:
    """Name encoders as a row of a comparison: their name, and the variant of the method unless it is the paper's."""
    return f"{encoders}{'' if variant in (None, '', 'paper') else f' {variant}'}"


def logged(cell: str, kind: str, name: str) -> str:
    """Name a measure of a cell to a logger; kind is `test`, `low`, `high` (of its interval) or `trivial`."""
    return f"{cell}/{kind}/{name}"
