"""Visual question answering: which of the training answers fits an image and a question."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlp_bench.data.store import lies_in
from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.metrics.bootstrap import mean_entries
from vlp_bench.tasks.base import Cell, Outcome, Picture, Target, Task
from vlp_bench.tasks.pictures import radiograph
from vlp_bench.tasks.training import Adapted, TargetImages, fit, predict
from vlp_bench.tasks.words import WordsDataset, joint_vector, pair_vector
from vlp_bench.types import WordsBatch

VECTORS = ("pooled", "cls", "product")
LOSSES = ("softmax", "sigmoid")


class VQA(Task):
    """Accuracy over all questions and over each type (closed, open, ...).

    Answers are those of the training questions. One that was never given there cannot be right; how many these are is
    among the facts. Where questions have scores for several answers, the score of the chosen one counts.

    Args:
        primary: the metric that a table shows.
        clean: `none`, or `published`: punctuation and remarks are taken out of questions as MedViLL's code does.
        vector: what of a joint encoder is classified: `pooled` [CLS], plain `cls`, or the `product` of [CLS] and the
            image's [SEP] (MedViLL's code). Other encoders give the pooled image and question, side by side.
        loss: `softmax`, or `sigmoid`: a binary cross-entropy of each answer (MedViLL's code).
        hidden: width of the classifier; None is twice that of its input.
        train_vision: False keeps the image encoder frozen, whatever the adaptation says (MedViLL's code).
        organ: only questions on this organ, such as chest; None takes them all.
        max_tokens: longest question, special tokens included.
        answers: the vocabulary; None takes the answers of the training questions, the most frequent first.

    Raises:
        UserError: an unknown option.
    """

    def __init__(
        self,
        primary: str,
        clean: str = "none",
        vector: str = "pooled",
        loss: str = "softmax",
        hidden: int | None = None,
        train_vision: bool = True,
        organ: str | None = None,
        max_tokens: int = 40,
        answers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(primary)
        known = {"clean": (clean, ("none", "published")), "vector": (vector, VECTORS), "loss": (loss, LOSSES)}
        for name, (value, allowed) in known.items():
            if value not in allowed:
                raise UserError(f"task.{name}={value}: expected one of {', '.join(allowed)}.")
        self.clean, self.vector, self.binary, self.hidden = clean, vector, loss == "sigmoid", hidden
        self.train_vision, self.organ, self.max_tokens = train_vision, organ, max_tokens
        self.answers = None if answers is None else [normalised(a) for a in answers]

    def run(self, cell: Cell) -> Outcome:
        """Train on the questions of the training subset, measure on those of the split.

        Raises:
            UserError: encoders without a text encoder, no questions, an empty one, `adaptation` that trains nothing.
        """
        require_text(cell.encoders)
        if "lr" not in cell.adaptation:
            raise UserError(f"task=vqa trains a classifier: adaptation={cell.adaptation.get('name')} does not train.")
        asked = questions(cell.target, self.organ)
        parts = {split: _of_split(cell, asked, split) for split in ("train", "val", cell.split)}
        train, test = parts["train"], parts[cell.split]
        answers = _vocabulary(train, self.answers, cell.target.name)
        model = Answerer(cell.encoders, len(answers), self.vector, self.binary, cell.adaptation, self.hidden)
        if not self.train_vision:
            model.parts["vision"].requires_grad_(False)
        facts = fit(cell, model, self._data(cell, train, answers, True), self._data(cell, parts["val"], answers))
        chosen = torch.cat(predict(cell, model, self._data(cell, test, answers))).numpy()
        truth = soft_targets(test["scores"], answers)
        columns = accuracy_columns(truth[np.arange(len(test)), chosen], test["type"])
        common = {t: _most_common(train[train["type"] == t]["scores"]) for t in sorted(set(train["type"]))}
        guesses = [s.get(common.get(t, ""), 0.0) for s, t in zip(test["scores"], test["type"], strict=True)]
        patients = test["patient_id"].to_numpy()
        facts |= {
            "train_questions": len(train),
            "questions": len(test),
            "answers": len(answers),
            "unanswerable_share": float((truth.max(1, initial=0) == 0).mean()),
        }
        if not cell.target.store.private:
            facts["most_frequent_answers"] = common
        return Outcome(
            mean_entries(columns, patients, cell.resamples),
            mean_entries(accuracy_columns(np.array(guesses, np.float32), test["type"]), patients, cell.resamples),
            _predictions(cell, test, [answers[i] for i in chosen], columns),
            [],
            facts,
        )

    def _data(self, cell: Cell, items: pd.DataFrame, answers: Sequence[str], train: bool = False) -> WordsDataset:
        assert cell.encoders.text is not None
        tokenizer: Tokenizer = cell.encoders.text.tokenizer
        texts = [published_question(q) if self.clean == "published" else q for q in items["question"]]
        augment = cell.adaptation["augment"] if train else None
        images = TargetImages(cell.target, items["row"].to_numpy(), cell.image_size, cell.seed, augment)
        pieces, scores = tokenizer.encode([[t] for t in texts]), soft_targets(items["scores"], answers)
        return WordsDataset(images, pieces, np.arange(len(items)), tokenizer, self.max_tokens, scores)

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> Iterable[Picture]:
        """Questions with their radiograph, the answer and the true one."""
        row_of = {name: row for row, name in enumerate(cell.target.store.images["image_id"])}
        for item in outcome.predictions.head(count).itertuples():
            image = radiograph(cell, row_of[item.image_id])
            said = f"{item.question} {item.answered}"
            yield Picture(image, said if item.answered == item.answer else f"{said} (true: {item.answer})", "answers")


def require_text(encoders: Encoders) -> None:
    """Refuse a backbone that cannot read a question.

    Raises:
        NotApplicable: it has no text encoder.
    """
    if encoders.text is None:
        raise NotApplicable(
            f"task=vqa needs a text encoder for the questions, and {encoders.name} has "
            "only an image encoder. Give a bundle of a method that reads reports."
        )


def questions(target: Target, organ: str | None = None) -> pd.DataFrame:
    """All questions of a data set, one row each, from the images' `extra`.

    That is JSON with `questions`, a list of {question, answer, type}. The names of VQA-RAD are read as well
    (`answer_type` CLOSED or OPEN, `image_organ`); `scores` {answer: score} allows several answers. A question that
    several images of a study share is asked of the first, a frontal one where there is. Where an image lies in several
    parts of a published division, a question lies in that of them which its own `split` names.

    Args:
        target: the data set.
        organ: only questions on this one.

    Returns:
        `row` of the image, `image_id`, `study`, `patient_id`, `split`, `question`, `answer`, `type`, `scores`.

    Raises:
        UserError: no question, or one that lacks its text, answer or type.
    """
    images = target.store.images.assign(row=np.arange(len(target.store.images)))
    images = images.sort_values(["study", "frontal", "row"], ascending=[True, False, True])
    found: list[dict[str, Any]] = []
    for image in images[images["extra"].str.contains('"questions"', na=False)].itertuples():
        for number, each in enumerate(json.loads(image.extra)["questions"]):
            item = _question(each, f"target={target.name}: question {number + 1} of image {image.image_id}")
            if organ is None or str(each.get("organ", each.get("image_organ", ""))).strip().lower() == organ.lower():
                same = {k: getattr(image, k) for k in ("row", "image_id", "study", "patient_id", "split")}
                own = str(each.get("split", ""))
                found.append(same | item | ({"split": own} if own in image.split.split() else {}))
    if not found:
        which = f" on organ={organ}" if organ else ""
        raise UserError(
            f"target={target.name} has no questions{which}. They are read from `extra_json` of metadata.csv: "
            '{"questions": [{"question": ..., "answer": ..., "type": "closed"}]}.'
        )
    return pd.DataFrame(found).drop_duplicates(["study", "question", "split"]).reset_index(drop=True)


def _question(each: Mapping[str, Any], where: str) -> dict[str, Any]:
    text = " ".join(str(each.get("question") or "").split())
    kind = str(each.get("type") or each.get("answer_type") or "").strip().lower()
    given = each.get("answer")
    answer = normalised("" if given is None else str(given))
    for name, value in (("question", text), ("answer", answer), ("type", kind)):
        if not value:
            raise UserError(f"{where} has an empty `{name}`. Fill it, or take the question out.")
    scores = {normalised(a): float(s) for a, s in (each.get("scores") or {answer: 1.0}).items()}
    return {"question": text, "answer": answer, "type": kind, "scores": scores}


def normalised(answer: str) -> str:
    """An answer in lower case, without blanks and stops around it.

    >>> normalised(" Left  lung. ")
    'left lung'
    """
    return " ".join(answer.lower().split()).strip(" .")


def published_question(question: str) -> str:
    """A question as MedViLL's code cleans those of VQA-RAD.

    >>> published_question("Is the patient's X ray normal? -yes/no")
    "is the patient 's x-ray normal"
    """
    text = question.lower()
    for remark in ("? -yes/no", "? -open", "? - open"):
        text = text.replace(remark, "")
    text = re.sub(r"[,?.]", "", text)
    return text.replace("'s", " 's").replace("x ray", "x-ray").strip()


def _of_split(cell: Cell, asked: pd.DataFrame, split: str) -> pd.DataFrame:
    items = asked[lies_in(asked["split"], split)]
    if items.empty:
        raise UserError(f"target={cell.target.name} has no {split} question.")
    if split == "train":
        items = items[items["row"].isin(cell.train_rows(np.unique(items["row"].to_numpy())))]
    return items.reset_index(drop=True)


def _vocabulary(train: pd.DataFrame, given: list[str] | None, target: str) -> list[str]:
    """The answers that may be given.

    Raises:
        UserError: a training answer is not in the given vocabulary.
    """
    if given is None:
        return [answer for answer, _ in Counter(a for s in train["scores"] for a in s).most_common()]
    known = train["scores"].map(lambda scores: any(a in given for a in scores))
    if not known.all():
        first = train[~known].iloc[0]
        raise UserError(
            f"target={target}: the answer to a question of image {first['image_id']} is not in the vocabulary of "
            f"{len(given)} (task.answers), nor are those of {int((~known).sum()) - 1} more training questions. "
            "Add them, or take the questions out."
        )
    return given


def soft_targets(scores: Iterable[Mapping[str, float]], answers: Sequence[str]) -> np.ndarray:
    """Score of each of A answers for N questions, float32 (N, A); an unknown answer leaves a row of zeros."""
    place = {answer: i for i, answer in enumerate(answers)}
    listed = list(scores)
    out = np.zeros((len(listed), len(answers)), np.float32)
    for row, each in zip(out, listed, strict=True):
        for answer, score in each.items():
            if answer in place:
                row[place[answer]] = score
    return out


def accuracy_columns(hits: np.ndarray, types: Sequence[str] | pd.Series) -> dict[str, np.ndarray]:
    """Accuracy over all questions and over each type: for each metric a value an item, nan where it does not count."""
    kinds = np.asarray(types)
    each = {f"accuracy/{kind}": np.where(kinds == kind, hits, np.nan) for kind in np.unique(kinds)}
    return {"accuracy": hits.astype(np.float64), **each}


def _most_common(scores: Iterable[Mapping[str, float]]) -> str:
    """The answer with the highest total score; of several the first in the alphabet."""
    total: Counter[str] = Counter()
    for each in scores:
        total.update(each)  # type: ignore[arg-type]
    return min(total, key=lambda answer: (-total[answer], answer)) if total else ""


def _predictions(
    cell: Cell, items: pd.DataFrame, answered: list[str], columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    asked = items[["question", "type", "answer"]].reset_index(drop=True)
    table = cell.items(items["row"].to_numpy()).rename(columns={"item_id": "image_id"}).join(asked)
    table = table.assign(answered=answered)
    number = table.groupby("image_id").cumcount()
    table.insert(0, "item_id", table["image_id"] + "/" + number.astype(str))
    return table.assign(**{f"mean_{name}": values for name, values in columns.items()})


class AnswerHead(nn.Sequential):
    """Scores of A answers from a vector: a hidden layer with ReLU."""

    def __init__(self, width: int, hidden: int, answers: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, answers))


def answer_loss(logits: Float[Tensor, "B A"], answers: Float[Tensor, "B A"], binary: bool) -> Float[Tensor, ""]:
    """Cross-entropy of the answers: of each by itself, averaged over all (MedViLL's code), or of one among all.

    Of one among all, questions that no answer fits do not count.
    """
    if binary:
        return F.binary_cross_entropy_with_logits(logits, answers)
    share = answers / answers.sum(1, keepdim=True).clamp(min=1e-8)
    known = (answers.sum(1) > 0).sum().clamp(min=1)
    return -(share * logits.log_softmax(1)).sum() / known


class Answerer(Adapted):
    """Encoders of image and question with a classifier of answers.

    Args:
        encoders: with a text encoder; a joint encoder is used where there is one.
        answers: A.
        vector: see VQA.
        binary: see `answer_loss`.
        adaptation: see Adapted.
        hidden: see VQA.

    Raises:
        UserError: the vector is not to be had.
    """

    def __init__(
        self,
        encoders: Encoders,
        answers: int,
        vector: str,
        binary: bool,
        adaptation: Mapping[str, Any],
        hidden: int | None = None,
    ) -> None:
        names = ("vision", "text", "joint") if encoders.joint is not None else ("vision", "text")
        text: TextBackbone = encoders.text  # type: ignore[assignment]
        width = text.width if encoders.joint is not None else encoders.vision.spec.pooled_dim + text.width
        parts = {name: encoders.parts[name] for name in names}
        super().__init__(parts, AnswerHead(width, hidden or 2 * width, answers), adaptation)
        self.vector, self.binary = vector, binary
        if encoders.joint is not None and encoders.joint.pooler is None:
            pair_vector(encoders.joint, torch.empty(0, 2, 1), 0, vector)  # refuses before anything is trained

    def forward(self, batch: WordsBatch) -> Float[Tensor, "B A"]:
        """Logits of the answers."""
        vision, text = self.parts["vision"], self.parts["text"]
        if "joint" in self.parts:
            return self.head(joint_vector(vision, text, self.parts["joint"], batch, self.vector))
        return self.head(torch.cat([vision(batch.image).pooled, text(batch.text).pooled], 1))

    def loss(self, batch: WordsBatch) -> Float[Tensor, ""]:
        """See `answer_loss`."""
        return answer_loss(self(batch).float(), batch.answers, self.binary)

    def predict(self, batch: WordsBatch) -> Tensor:
        """Number of the likeliest answer, (B,)."""
        return self(batch).argmax(1)
