"""Findings of an image without a label of its own: how alike are it and a sentence that says so."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.metrics.classification import (
    agreement,
    choose_thresholds,
    classification_metrics,
    macro_auroc,
    trivial_classification,
)
from vlp_bench.tasks.base import Cell, Metrics, Outcome, Picture, Task
from vlp_bench.tasks.classification import predictions_table
from vlp_bench.tasks.pictures import attention
from vlp_bench.tasks.scoring import require_comparison
from vlp_bench.types import ImageFeatures, TextFeatures

OVER = "over prompts"


def summed_scores(
    logits: Float[Tensor, "N K"], local: Float[Tensor, "N K"], local_weight: float
) -> Float[Tensor, "N K"]:
    """PRIOR's score of K classes: both parts, each a softmax over the classes (supplement: summed; code: 0.5).

    Args:
        logits: scaled cosines of images and prompts.
        local: `Aligner.local_scores`.
        local_weight: factor on the second part.
    """
    return logits.softmax(-1) + local_weight * local.softmax(-1)


class Prompts:
    """The sentences of one prompt set for some labels.

    Args:
        name: for messages.
        spec: `positive` templates with {label}, `negative` ones, and `words` by label.
        labels: what is asked for.

    Raises:
        UserError: a set without positive templates, or without words for a label.
    """

    def __init__(self, name: str, spec: Mapping[str, Any], labels: Sequence[str]) -> None:
        if not spec.get("positive"):
            raise UserError(f"task.prompts.{name} has no positive sentences, such as '{{label}} is observed'.")
        words = spec.get("words")
        lacking = [label for label in labels if words is not None and label not in words]
        if lacking:
            raise UserError(
                f"task.prompts.{name} has no words for {', '.join(lacking)}. Add them under task.prompts.{name}.words, "
                "or leave the set out of task.sets."
            )
        names = {label: list(words[label]) if words else [label.lower()] for label in labels}
        self.name = name
        self.positive = [_filled(spec["positive"], names[label]) for label in labels]
        self.negative = [_filled(spec.get("negative") or (), names[label]) for label in labels]

    @property
    def texts(self) -> list[str]:
        """All sentences, the positive ones first."""
        return [t for group in (*self.positive, *self.negative) for t in group]

    def pooled(self, scores: Float[Tensor, "N S"]) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N L"] | None]:
        """Means over the positive and over the negative sentences of each label, from the scores of `texts`."""
        sizes = [len(group) for group in (*self.positive, *self.negative)]
        means = [part.mean(1) if part.shape[1] else part.new_zeros(len(part)) for part in scores.split(sizes, 1)]
        count = len(self.positive)
        return torch.stack(means[:count], 1), torch.stack(means[count:], 1) if any(self.negative) else None


def _filled(templates: Sequence[str], words: Sequence[str]) -> list[str]:
    return [template.replace("{label}", word) for template in templates for word in words]


class ZeroShot(Task):
    """Scores of labels from prompts; the prompt set and the thresholds are chosen on validation.

    Args:
        primary: the metric that a table shows.
        prompts: prompt sets by name, see Prompts.
        sets: which of them are tried.
        score: `similarity`, of which a set with negative sentences takes the difference; or `summed`.
        local_weight: see summed_scores.
        scale: factor on cosines before a softmax; None takes the aligner's.

    Raises:
        UserError: an unknown score or set.
    """

    learns = False
    rescores = True

    def __init__(
        self,
        primary: str,
        prompts: Mapping[str, Mapping[str, Any]],
        sets: Sequence[str],
        score: str = "similarity",
        local_weight: float = 1.0,
        scale: float | None = None,
    ) -> None:
        super().__init__(primary)
        if score not in ("similarity", "summed"):
            raise UserError(f"task.score={score}: expected similarity or summed.")
        unknown = [name for name in sets if name not in prompts]
        if unknown or not sets:
            raise UserError(f"task.sets={list(sets)}: expected some of {', '.join(prompts)}.")
        self.prompts = {name: prompts[name] for name in sets}
        self.score, self.local_weight, self.scale = score, local_weight, scale

    def run(self, cell: Cell) -> Outcome:
        """Score validation and test images with every prompt set, choose, measure.

        Raises:
            UserError: encoders that do not compare, a set without a label, a score that does not fit the target.
        """
        require_comparison(cell)
        target = cell.target
        multiclass = target.kind == "multiclass"
        if self.score == "summed" and not multiclass:
            raise UserError(f"task.score=summed is for target.kind=multiclass; target={target.name} is {target.kind}.")
        sets = [Prompts(name, spec, target.labels) for name, spec in self.prompts.items()]
        val, test = target.rows("val"), target.rows(cell.split)
        target.require_both_classes(test, cell.split)
        on_val, on_test = (self._scores(cell, rows, sets) for rows in (val, test))
        chosen = max(self.prompts, key=lambda name: _quality(on_val[name], target.targets[val], multiclass))
        self.chosen = next(s for s in sets if s.name == chosen)
        patients = target.patients(test)
        common: dict[str, Any] = {"labels": target.labels, "kind": target.kind, "resamples": cell.resamples}
        measured = {
            name: classification_metrics(
                scores, target.targets[test], patients, choose_thresholds(on_val[name], target.targets[val]), **common
            )
            for name, scores in on_test.items()
        }
        trivial = trivial_classification(target.targets[val], target.targets[test], patients, **common)
        whole = [name for name in trivial if "/" not in name]
        return Outcome(
            measured[chosen] | _ranges(measured, whole),
            trivial | {f"{name}/{OVER}": trivial[name] for name in whole},
            predictions_table(cell, test, on_test[chosen]),
            target.labels,
            {
                "chosen_prompts": chosen,
                "probabilities": multiclass,
                "prompts": {s.name: s.texts for s in sets},
                "by_prompts": {name: {k: found[k] for k in whole} for name, found in measured.items()},
            }
            | ({"agreement": agreement(on_test[chosen], target.targets[test])} if multiclass else {}),
        )

    def rescored(self, cell: Cell) -> np.ndarray:
        """By the prompt set that validation chose, float32 (N, L)."""
        return self._scores(cell, cell.target.rows(cell.split), [self.chosen])[self.chosen.name]

    @torch.inference_mode()
    def _scores(self, cell: Cell, rows: np.ndarray, sets: Sequence[Prompts]) -> dict[str, np.ndarray]:
        encoders = cell.encoders
        texts = {s.name: encoders.encode_texts(s.texts) for s in sets}
        parts: dict[str, list[Tensor]] = {s.name: [] for s in sets}
        for images in cell.encode(rows):
            for s in sets:
                parts[s.name].append(self._of(cell, images, s, texts[s.name]))
        return {name: torch.cat(found).float().numpy() for name, found in parts.items()}

    def _of(self, cell: Cell, images: ImageFeatures, prompts: Prompts, texts: TextFeatures) -> Float[Tensor, "N L"]:
        aligner = cell.encoders.aligner
        scale = self.scale if self.scale is not None else (aligner.scale if aligner is not None else 1.0)
        positive, negative = prompts.pooled(scale * cell.encoders.similarity(images, texts))
        if self.score == "summed":
            local = None if aligner is None else aligner.local_scores(images, texts)
            if local is None:
                raise NotApplicable(
                    f"task.score=summed needs an aligner with local scores; "
                    f"{cell.encoders.name} has none. Use task.score=similarity."
                )
            return summed_scores(positive, prompts.pooled(local)[0], self.local_weight)
        logits = positive if negative is None else positive - negative
        return logits.softmax(-1) if cell.target.kind == "multiclass" else logits

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> list[Picture]:
        """Where the encoders look in test images."""
        return attention(cell, count)


def _quality(scores: np.ndarray, targets: np.ndarray, multiclass: bool) -> float:
    """Accuracy of classes, macro AUROC of labels; what cannot be measured is never chosen."""
    value = float((scores.argmax(1) == targets.argmax(1)).mean()) if multiclass else macro_auroc(scores, targets)
    return -1.0 if np.isnan(value) else value


def _ranges(measured: Mapping[str, Metrics], names: Sequence[str]) -> Metrics:
    """Mean over the prompt sets, with the lowest and the highest in place of an interval."""
    found: Metrics = {}
    for name in names:
        values = [m[name]["value"] for m in measured.values() if m[name]["value"] is not None]
        n = next(iter(measured.values()))[name]["n"]
        low, high = (min(values), max(values)) if values else (None, None)
        mean = float(np.mean(values)) if values else None
        found[f"{name}/{OVER}"] = {"value": mean, "low": low, "high": high, "n": n}
    return found
