"""Report generation: what encoders that can write, or a decoder on top of the others, say of an image."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlp_bench.data.datamodule import assemble
from vlp_bench.data.reports import select_text
from vlp_bench.data.store import TextForm
from vlp_bench.encoders.bundle import on_device
from vlp_bench.errors import NotApplicable, UserError
from vlp_bench.metrics.bootstrap import Entry
from vlp_bench.metrics.labeler import Labeler, build_labeler
from vlp_bench.metrics.labels import label_metrics, published_label_metrics
from vlp_bench.metrics.language import PUBLISHED_WEIGHTS, WEIGHTS, language_metrics, perplexity_metrics, rouge_l, words
from vlp_bench.tasks.authors import Author, author, true_words
from vlp_bench.tasks.base import Cell, Outcome, Picture, Task
from vlp_bench.tasks.pictures import radiograph
from vlp_bench.tasks.training import Adapted, TargetImages, fit
from vlp_bench.tasks.words import WordsDataset, batches
from vlp_bench.types import WordsBatch

#: sizes of a decoder for encoders that have none
DECODER = {"width": 256, "heads": 4, "feedforward": 1024, "layers": 2, "dropout": 0.1}


class ReportGeneration(Task):
    """Perplexity of the true reports; BLEU, ROUGE-L and the findings of the written ones.

    A bundle with a decoder of reports or a joint encoder writes with it (`adaptation=none` without any training); other
    backbones get a small decoder that is trained on their image tokens. What writes is always trained, the image
    encoder as the adaptation says. One image stands for a study: its first frontal one.

    Args:
        primary: the metric that a table shows.
        sections: the text that is written, see TextForm.
        clean: see TextForm; `none` keeps sentence ends, which the labeler needs.
        max_tokens: longest report, special tokens included; true ones are cut for the perplexity alone.
        own: write with what the bundle has; False gives every backbone a new decoder, so that they can be compared.
        decoder: sizes of a new one.
        vocab: its word pieces: `synthetic`, or the path of a vocab.txt; None takes those of the text encoder.
        beams: of the search; 1 takes the likeliest word each time.
        labeler: `rules`, `chexbert`, or a function; see metrics/labeler.py.
        hide: how a joint encoder learns to write, see JointAuthor.
        published: decode and measure as MedViLL's code does: the true words are read in writing, BLEU splits reports as
            they are at blanks, labels count as one of four values.

    Raises:
        UserError: an unknown option, a package that is not installed.
    """

    def __init__(
        self,
        primary: str,
        sections: str = "longer",
        clean: str = "none",
        max_tokens: int = 100,
        own: bool = True,
        decoder: Mapping[str, Any] | None = None,
        vocab: str | None = None,
        beams: int = 1,
        labeler: str | Labeler = "rules",
        hide: Mapping[str, Any] | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(primary)
        if beams < 1 or max_tokens < 3:
            raise UserError(f"task.beams={beams}, task.max_tokens={max_tokens}: expected at least 1, and at least 3.")
        self.form = TextForm(sections, clean, min_tokens=1)
        self.max_tokens, self.own, self.vocab, self.hide = max_tokens, own, vocab, hide
        self.decoder = {**DECODER, **(decoder or {})}
        self.beams, self.labeler, self.published = beams, build_labeler(labeler), published

    def run(self, cell: Cell) -> Outcome:
        """Train what writes, write the reports of the split, measure them.

        Raises:
            UserError: no reports, a decoder that does not fit, nothing that has learnt to write.
        """
        encoders = cell.encoders
        made = author(
            encoders,
            own=self.own,
            decoder=self.decoder,
            vocab=self.vocab,
            max_tokens=self.max_tokens,
            hide=self.hide,
        )
        rows = {split: self._rows(cell, made, split) for split in ("train", "val", cell.split)}
        train, test = cell.train_rows(rows["train"]), rows[cell.split]
        # Before training: the features that are kept are those of the bundle.
        nearest = _nearest(cell, train, test)
        facts: dict[str, Any] = {"train_reports": len(train), "reports": len(test), "vocabulary": len(made.tokenizer)}
        if "lr" in cell.adaptation:
            model = Reporter(made, cell.adaptation)
            augment = cell.adaptation["augment"]
            facts |= fit(cell, model, self._data(cell, made, train, augment), self._data(cell, made, rows["val"], None))
        elif made.new:
            raise NotApplicable(
                f"adaptation={cell.adaptation.get('name')} trains nothing, and "
                f"{encoders.name} has nothing that has learnt to write. "
                "Use adaptation=probe or finetune."
            )
        loss, count, written = self._write(cell, made, test)
        patients = cell.target.patients(test)
        measured = _Measure(self, [self._true(cell, row) for row in test], patients, cell.resamples)
        before = [self._true(cell, row) for row in train]
        return Outcome(
            perplexity_metrics(loss, count, patients, resamples=cell.resamples) | measured(written),
            perplexity_metrics(self._unigram(cell, made, train, test), count, patients, resamples=cell.resamples)
            | measured([Counter(before).most_common(1)[0][0]] * len(test)),
            self._predictions(cell, test, written, measured.true, loss / count),
            [],
            facts | {"baselines": {"nearest training report": measured([before[i] for i in nearest])}},
        )

    def _rows(self, cell: Cell, made: Author, split: str) -> np.ndarray:
        """First frontal image row of each study of a split that has a report."""
        store = cell.target.store
        use = store.long_enough(made.tokenizer, self.form)[store.images["study"].to_numpy()]
        images = store.images[use & store.in_split(split) & store.images["frontal"].to_numpy()]
        if images.empty:
            raise UserError(
                f"target={cell.target.name} has no {split} study with a frontal image and a report "
                f"(task.sections={self.form.sections})."
            )
        return images.groupby("study").head(1).index.to_numpy()

    def _data(self, cell: Cell, made: Author, rows: np.ndarray, augment: str | None) -> WordsDataset:
        store = cell.target.store
        images = TargetImages(cell.target, rows, cell.image_size, cell.seed, augment)
        pieces, _ = store.pieces(made.tokenizer, self.form)
        return WordsDataset(images, pieces, store.images["study"].to_numpy()[rows], made.tokenizer, made.max_tokens)

    @torch.inference_mode()
    def _write(self, cell: Cell, made: Author, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Loss and number of words of each true report, and the written ones."""
        modules = [*made.seeing.values(), made.writing]
        loss, count, written = [], [], []
        with on_device(*(module.eval() for module in modules)) as device:
            for batch in batches(cell, self._data(cell, made, rows, None), device):
                each, number = made.losses(batch)
                loss.append(each.cpu().numpy())
                count.append(number.cpu().numpy())
                written += made.tokenizer.decode(made.write(batch, self.beams, self.published).cpu().numpy())
        return np.concatenate(loss).astype(np.float64), np.concatenate(count), written

    def _true(self, cell: Cell, row: int) -> str:
        """The report of an image row, in the form that is written; as it is where `published`."""
        store = cell.target.store
        record = store.studies.iloc[int(store.images["study"].iloc[row])].to_dict()
        return select_text(record, self.form.sections) if self.published else " ".join(self.form.sentences(record))

    def _unigram(self, cell: Cell, made: Author, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Loss of each test report under the frequencies of words in training, each counted once more than it is."""
        study = cell.target.store.images["study"].to_numpy()
        pieces, _ = cell.target.store.pieces(made.tokenizer, self.form)
        seen, asked = (
            true_words(assemble(pieces, study[rows], made.tokenizer, made.max_tokens)) for rows in (train, test)
        )
        times = torch.bincount(seen[0][seen[1]], minlength=len(made.tokenizer)).double() + 1
        cost = -(times / times.sum()).log()
        return (cost[asked[0]] * asked[1]).sum(1).numpy()

    def _predictions(
        self, cell: Cell, rows: np.ndarray, written: list[str], true: list[str], loss: np.ndarray
    ) -> pd.DataFrame:
        return cell.items(rows).assign(
            generated=written,
            true=true,
            mean_perplexity_per_report=np.exp(loss),
            mean_rouge_l=rouge_l([words(t) for t in true], [words(t) for t in written]),
        )

    def pictures(self, cell: Cell, outcome: Outcome, count: int) -> Iterable[Picture]:
        """Radiographs with the written and the true report."""
        row_of = {name: row for row, name in enumerate(cell.target.store.images["image_id"])}
        for item in outcome.predictions.head(count).itertuples():
            image = radiograph(cell, row_of[item.item_id])
            yield Picture(image, f"written: {item.generated}\n\ntrue: {item.true}", "reports")


class Reporter(Adapted):
    """An author in training: what it sees with is trained as the adaptation says, what it writes with always.

    Args:
        made: the author.
        adaptation: see Adapted.
    """

    def __init__(self, made: Author, adaptation: Mapping[str, Any]) -> None:
        made.writing.requires_grad_(True)
        super().__init__(made.seeing, made.writing, adaptation)
        self.author = made

    def loss(self, batch: WordsBatch) -> Float[Tensor, ""]:
        """That of the author."""
        return self.author.loss(batch)


class _Measure:
    """Measures written reports against the same true ones."""

    def __init__(self, task: ReportGeneration, true: list[str], patients: np.ndarray, resamples: int) -> None:
        self.task, self.true, self.patients, self.resamples = task, true, patients, resamples
        self.labels = task.labeler(true)

    def __call__(self, written: list[str]) -> dict[str, Entry]:
        published, common = self.task.published, {"resamples": self.resamples}
        split = (lambda text: text.split(" ")) if published else words
        language = language_metrics(
            [split(t) for t in self.true],
            [split(t) for t in written],
            self.patients,
            weights=PUBLISHED_WEIGHTS if published else WEIGHTS,
            nltk=published,
            **common,
        )
        labels = self.task.labeler(written)
        if not published:
            return language | label_metrics(labels, self.labels, self.patients, **common)
        found = published_label_metrics(labels, self.labels)
        values = {k: None if np.isnan(v) else v for k, v in found.items()}
        return language | {
            f"label_{k}": {"value": v, "low": None, "high": None, "n": len(written)} for k, v in values.items()
        }


def _nearest(cell: Cell, train: np.ndarray, test: np.ndarray) -> Sequence[int]:
    """For each test image the training image with the most similar pooled feature, as pre-trained."""
    known, asked = (torch.nn.functional.normalize(torch.from_numpy(cell.features(r)), dim=1) for r in (train, test))
    return torch.cat([(part @ known.T).argmax(1) for part in asked.split(1024)]).tolist()
