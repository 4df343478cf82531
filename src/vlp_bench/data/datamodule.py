"""Prepared data to batches: one DataModule for every method, and one data set for the downstream tasks.

What augmentation draws depends on (seed, epoch, step, rank) alone, so the number of workers changes nothing and a
resumed run sees what an uninterrupted one would have seen.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from vlp_bench.data.store import FORMS, PreparedData, TextForm, refuse_unknown
from vlp_bench.data.tokenization import Pieces, SentencePieces, Tokenizer
from vlp_bench.distributed import rank_and_world
from vlp_bench.errors import UserError
from vlp_bench.types import StudyBatch, Tokens

#: what each choice of the inputs may be, beside those of the text form
CHOICES: dict[str, tuple[str, ...]] = {
    "sample": ("image", "study"),
    "special_cases": ("keep", "drop"),
    "join": ("spaced", "glued"),
    "caption_end": ("kept", "cut"),
}


@dataclass(frozen=True, slots=True)
class Inputs(TextForm):
    """What a method reads: a text form, of which samples, and how.

    Args:
        sample: `image`: one sample per allowed image; `study`: one per study, with up to `views` of its images.
        views: V of the batch.
        frontal_only: leave lateral views out.
        only_view: leave out all images but those of this view, such as AP; None keeps every view.
        min_sentences: leave out reports with fewer sentences.
        special_cases: keep or drop the studies whose report is cut by hand, which MIMIC-CXR's table of sections leaves
            out.
        max_tokens: longest text, [CLS] and [SEP] included.
        join: sentences are tokenised one by one, as if with a blank between (spaced); or, in pre-training, without
            any and all at once as in PRIOR's code (glued, see `assemble_glued`).
        shuffle_sentences: draw the order of the sentences anew each time, in training.
        flip: chance of a left-right flip of image and report, in training.
        sentencepiece: path of a SentencePiece model; the batch then has the report in its pieces, too.
        caption_end: whether those, if too long, keep their end piece (kept), or lose it as in REFERS' code (cut).

    Raises:
        UserError: an unknown choice.
    """

    sample: str = "image"
    views: int = 1
    frontal_only: bool = True
    max_tokens: int = 112
    shuffle_sentences: bool = False
    flip: float = 0.0
    only_view: str | None = None
    min_sentences: int = 0
    special_cases: str = "keep"
    join: str = "spaced"
    sentencepiece: str | None = None
    caption_end: str = "kept"

    def __post_init__(self) -> None:
        refuse_unknown(self, FORMS | CHOICES, "method.inputs.")

    @property
    def form(self) -> TextForm:
        """Which text of a report."""
        return TextForm(**{field.name: getattr(self, field.name) for field in fields(TextForm)})


class BatchKey(NamedTuple):
    """Which samples make a batch, and what its random draws depend on.

    The rank travels along because a loader's process may not know it.
    """

    epoch: int
    step: int
    indices: np.ndarray
    rank: int = 0


#: How many shards a shuffle spans where they are fetched on the way: some 4,000 studies.
SHARDS_AT_ONCE = 16


class EpochBatches(Sampler[BatchKey]):
    """Batches of one rank: a permutation of (seed, epoch), dealt to the ranks in turn.

    `start` leaves out so many batches of the epoch that is set, for a resume in its middle.

    Args:
        size: number of samples.
        batch_size: samples of a batch on this rank.
        rank: this process.
        world: number of processes.
        seed: of the permutation.
        shuffle: whether to permute.
        drop_last: leave out an incomplete last batch; without it, ranks may differ by one sample.
        lengths: of the samples' texts; where given, shuffled batches hold texts of like length.
        window: how many batches are sorted by length together; the more, the less padding.
        shards: of the samples; where given, samples are shuffled among `SHARDS_AT_ONCE` shards, in turn, so that those
            of an epoch can be fetched one after the other.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int,
        world: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        lengths: np.ndarray | None = None,
        window: int = 1,
        shards: np.ndarray | None = None,
    ) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.lengths, self.window, self.shards = lengths, window, shards
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        joined = self.batch_size * self.world
        return self.size // joined if self.drop_last else -(-self.size // joined)

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.arange(self.size)
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.epoch])
            order = rng.permutation(self.size)
            if self.shards is not None:
                turn = rng.permutation(int(self.shards.max(initial=0)) + 1)[self.shards[order]] // SHARDS_AT_ONCE
                order = order[np.argsort(turn, kind="stable")]
            if self.lengths is not None:
                order = self._by_length(order, self.lengths, rng)
        joined = self.batch_size * self.world
        for step in range(self.start, len(self)):
            mine = order[step * joined : (step + 1) * joined][self.rank :: self.world]
            yield BatchKey(self.epoch, step, mine, self.rank)

    def _by_length(self, order: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same samples, sorted within each window and cut into batches, whose order is drawn."""
        joined = self.batch_size * self.world
        whole = len(order) // joined * joined
        window = np.arange(whole) // (joined * self.window)
        batches = order[np.lexsort((lengths[order[:whole]], window))].reshape(-1, joined)
        return np.concatenate([rng.permutation(batches).ravel(), order[whole:]])


def assemble(
    pieces: Pieces,
    rows: np.ndarray,
    tokenizer: Tokenizer,
    max_tokens: int,
    rng: np.random.Generator | None = None,
    end: str = "kept",
) -> Tokens:
    """Word pieces of B texts with [CLS] and [SEP], padded to the longest of the batch.

    Args:
        pieces: of all texts.
        rows: which texts, (B,).
        tokenizer: gives the special tokens.
        max_tokens: length to which a text is cut, special tokens included.
        rng: where given, the order of each text's sentences is drawn from it before the cut.
        end: whether a text that is too long keeps its [SEP] (kept), or is cut with it at its end (cut).
    """
    if end == "cut":
        tokens = assemble(pieces, rows, tokenizer, max_tokens + 1, rng)
        return _narrow(tokens, min(tokens.ids.shape[1], max_tokens), tokenizer.pad)
    starts, lengths = pieces.offsets[rows], np.diff(pieces.offsets)[rows]
    columns = np.arange(max(int(lengths.max(initial=0)), 1))
    inside = columns < lengths[:, None]
    index = np.minimum(starts[:, None] + columns, max(len(pieces.ids) - 1, 0))
    if rng is not None and len(pieces.ids):
        sentence = np.where(inside, pieces.sentence[index], np.iinfo(np.int32).max)
        rank = rng.random((len(rows), int(sentence[inside].max(initial=0)) + 1))
        key = np.where(inside, np.take_along_axis(rank, np.where(inside, sentence, 0), 1), 2.0)
        index = np.take_along_axis(index, np.argsort(key, axis=1, kind="stable"), 1)
    index, inside = index[:, : max_tokens - 2], inside[:, : max_tokens - 2]
    kept = inside.sum(1)

    def framed(values: np.ndarray, cls: int, sep: int, pad: int) -> torch.Tensor:
        out = np.full((len(rows), int(kept.max(initial=0)) + 2), pad, np.int64)
        if len(values):
            body = out[:, 1 : 1 + inside.shape[1]]
            body[inside[:, : body.shape[1]]] = values[index][inside]
        out[:, 0] = cls
        out[np.arange(len(rows)), kept + 1] = sep
        return torch.from_numpy(out)

    ids = framed(pieces.ids, tokenizer.cls, tokenizer.sep, tokenizer.pad)
    mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(kept)[:, None] + 2
    numbers = framed(pieces.sentence, -1, -1, -1)
    return Tokens(ids, mask, framed(pieces.word, -1, -1, -1), numbers, _most(numbers))


def assemble_glued(texts: Sequence[Sequence[str]], tokenizer: Tokenizer, max_tokens: int) -> Tokens:
    """B texts as PRIOR's code reads them: sentences glued together, tokenised once, cut with the [SEP].

    The sentence of a piece is told by counting on as many as each sentence has alone: where two words have fused at a
    seam, all after it belong to a wrong one, and the last sentence may go on behind the text's end or stop before it.
    """
    whole, alone = tokenizer.encode([["".join(text)] for text in texts]), tokenizer.encode(texts)
    rows, uncut = np.arange(len(texts)), 2 + max(len(whole.ids), len(alone.ids))
    tokens, apart = (assemble(pieces, rows, tokenizer, uncut) for pieces in (whole, alone))
    length = min(max(tokens.ids.shape[1], apart.ids.shape[1]), max_tokens)
    tokens, numbers = _narrow(tokens, length, tokenizer.pad), _narrow(apart, length, tokenizer.pad).sentence
    return replace(tokens, sentence=numbers, most_sentences=_most(numbers))


def _narrow(tokens: Tokens, length: int, pad: int) -> Tokens:
    """The first `length` pieces of each text, padded where there are fewer."""

    def fit(values: torch.Tensor, fill: int | bool) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, length - values.shape[1]), value=fill)

    sentence = fit(tokens.sentence, -1)
    return Tokens(fit(tokens.ids, pad), fit(tokens.mask, False), fit(tokens.word, -1), sentence, _most(sentence))


def _most(sentence: torch.Tensor) -> int:
    """The largest number of sentences of a text."""
    starts = (sentence >= 0) & (sentence != sentence.roll(1, dims=1))
    return max(starts.sum(1).tolist(), default=0)


class StudyDataset(Dataset[StudyBatch]):
    """Samples of one split; `dataset[key]` is a whole batch.

    Args:
        store: prepared data.
        tokenizer: of the text encoder.
        inputs: what the method reads.
        split: train, val or test.
        image_size: side of the square that is cut from the stored image.
        seed: of the random draws.
        augment: draw crops, flips and orders; otherwise the centre and the given order.

    Raises:
        UserError: no sample is left, no image is of the view, or the stored images are too small.
    """

    def __init__(
        self,
        store: PreparedData,
        tokenizer: Tokenizer,
        inputs: Inputs,
        split: str,
        image_size: int,
        seed: int,
        augment: bool,
    ) -> None:
        if image_size > store.size:
            raise UserError(
                f"vision.image_size={image_size} is larger than the images in {store.path} ({store.size} px). "
                f"Prepare with data.store_size={image_size} or more, or choose a smaller image size."
            )
        views = sorted(set(store.images["view"]) - {""})
        if inputs.only_view not in (None, *views):
            raise UserError(
                f"method.inputs.only_view={inputs.only_view}: the images in {store.path} are of the views "
                f"{', '.join(views) or 'that nobody named'}."
            )
        self.store, self.tokenizer, self.inputs = store, tokenizer, inputs
        self.image_size, self.seed, self.augment = image_size, seed, augment
        self.caption_tokenizer = SentencePieces(inputs.sentencepiece) if inputs.sentencepiece else None
        self._map_pieces()
        self.views = self._sample_table(split)
        if len(self.views) == 0:
            raise UserError(
                f"{store.path} has no {split} sample for this method (sections={inputs.sections}, "
                f"min_tokens={inputs.min_tokens}, min_sentences={inputs.min_sentences}, "
                f"frontal_only={inputs.frontal_only}, only_view={inputs.only_view})."
            )
        self.study_of_image = store.images["study"].to_numpy()
        self.study_ids = store.studies["study_id"].to_numpy()
        self.labels = store.image_labels

    def __getstate__(self) -> dict[str, Any]:
        """Without the word pieces, which another process maps itself."""
        return {k: v for k, v in self.__dict__.items() if k not in ("plain", "mirrored", "captions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_pieces()

    def _map_pieces(self) -> None:
        form, own = self.inputs.form, self.caption_tokenizer
        self.plain, self.mirrored = self.store.pieces(self.tokenizer, form)
        self.captions = None if own is None else self.store.pieces(own, form)

    def _sample_table(self, split: str) -> np.ndarray:
        """Image rows of each sample, int64 (samples, V), -1 where there is none."""
        images, inputs = self.store.images, self.inputs
        long_enough = self.store.long_enough(self.tokenizer, inputs.form)
        long_enough &= self.plain.sentence_counts >= inputs.min_sentences
        use = self.store.in_split(split) & long_enough[images["study"].to_numpy()]
        if inputs.frontal_only:
            use &= images["frontal"].to_numpy()
        if inputs.only_view is not None:
            use &= (images["view"] == inputs.only_view).to_numpy()
        if inputs.special_cases == "drop":
            use &= ~self.store.studies["special"].to_numpy()[images["study"].to_numpy()]
        rows = np.flatnonzero(use)
        if inputs.sample == "image":
            table = np.full((len(rows), inputs.views), -1, np.int64)
            table[:, 0] = rows
            return table
        frame = (
            images.iloc[rows].assign(row=rows).sort_values(["study", "frontal", "row"], ascending=[True, False, True])
        )
        place = frame.groupby("study").cumcount().to_numpy()
        keep = place < inputs.views
        _, number = np.unique(frame["study"].to_numpy()[keep], return_inverse=True)
        table = np.full((number.max(initial=-1) + 1, inputs.views), -1, np.int64)
        table[number, place[keep]] = frame["row"].to_numpy()[keep]
        return table

    def __len__(self) -> int:
        return len(self.views)

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of each sample's text that are read, int64."""
        pieces = np.diff(self.plain.offsets)[self.study_of_image[self.views[:, 0]]]
        return np.minimum(pieces, self.inputs.max_tokens - 2)

    def __getitem__(self, key: BatchKey) -> StudyBatch:
        # from 1: numpy takes (seed, epoch, 0, 0) for the (seed, epoch) of the permutation
        rng = np.random.default_rng([self.seed, key.epoch, key.step + 1, key.rank])
        rows = self.views[key.indices]
        present = rows >= 0
        study = self.study_of_image[rows[:, 0]]
        flip = rng.random(len(rows)) < self.inputs.flip if self.augment else np.zeros(len(rows), bool)
        image = torch.from_numpy(self._images(rows, present, flip, rng))
        # one number, so that all versions of a report come in the same order
        order = int(rng.integers(2**31)) if self.augment and self.inputs.shuffle_sentences else None
        if self.inputs.join == "glued":
            text = self._glued(study, flip, order)
        else:
            text = self._text((self.plain, self.mirrored), self.tokenizer, study, flip, order)
        caption = None
        if self.captions is not None and self.caption_tokenizer is not None:
            caption = self._text(self.captions, self.caption_tokenizer, study, flip, order, self.inputs.caption_end)
        return StudyBatch(
            image=image,
            view_mask=torch.from_numpy(present),
            flipped=torch.from_numpy(present & flip[:, None]),
            text=text,
            labels=torch.from_numpy(self.labels[rows[:, 0]]),
            study=torch.from_numpy(study.astype(np.int64)),
            study_id=tuple(self.study_ids[study]),
            caption=caption,
        )

    def _images(self, rows: np.ndarray, present: np.ndarray, flip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        chosen = rows[present]
        span, size = self.store.size - self.image_size, self.image_size
        shape = (2, len(chosen))
        corner = rng.integers(0, span + 1, shape) if self.augment else np.full(shape, round(span / 2))
        cut = self.store.crops(chosen, size, corner[0], corner[1])
        mirrored = np.broadcast_to(flip[:, None], rows.shape)[present]
        cut[mirrored] = cut[mirrored][:, :, ::-1]
        out = np.zeros((*rows.shape, 1, size, size), np.uint8)
        out[present, 0] = cut
        return out

    def _text(
        self,
        versions: tuple[Pieces, Pieces],
        tokenizer: Tokenizer,
        study: np.ndarray,
        flip: np.ndarray,
        order: int | None,
        end: str = "kept",
    ) -> Tokens:
        """The reports of the studies; of those that are flipped the second version."""

        def of(pieces: Pieces) -> Tokens:
            draw = None if order is None else np.random.default_rng(order)
            return assemble(pieces, study, tokenizer, self.inputs.max_tokens, draw, end)

        plain = of(versions[0])
        if not flip.any():
            return plain
        return _choose(plain, of(versions[1]), torch.from_numpy(flip), tokenizer.pad)

    def _glued(self, study: np.ndarray, flip: np.ndarray, order: int | None) -> Tokens:
        """The reports of the studies, tokenised anew: what words fuse depends on the order that is drawn."""
        texts = self.store.sentences(self.inputs, study)
        texts = [self.inputs.mirrored(t) if f else t for t, f in zip(texts, flip, strict=True)]
        if order is not None:
            draw = np.random.default_rng(order)
            texts = [[t[i] for i in draw.permutation(len(t))] for t in texts]
        return assemble_glued(texts, self.tokenizer, self.inputs.max_tokens)


def _choose(plain: Tokens, other: Tokens, use_other: torch.Tensor, pad: int) -> Tokens:
    """Rows of `other` where `use_other`, after padding both to one length."""
    length = max(plain.ids.shape[1], other.ids.shape[1])

    def merged(name: str, pad: int | bool) -> torch.Tensor:
        a, b = (
            torch.nn.functional.pad(getattr(t, name), (0, length - t.ids.shape[1]), value=pad) for t in (plain, other)
        )
        return torch.where(use_other[:, None], b, a)

    most = max(t.most_sentences or 0 for t in (plain, other))
    return Tokens(merged("ids", pad), merged("mask", False), merged("word", -1), merged("sentence", -1), most)


class MimicCxrDataModule(LightningDataModule):
    """Images with reports for every method, from prepared data of any source.

    Args:
        store: prepared data.
        tokenizer: of the text encoder.
        inputs: what the method reads.
        image_size: side of the network's input in pixels.
        batch_size: samples a process and step.
        num_workers: loader processes.
        seed: of order and augmentation.
        limit: use only so many samples of each split (for smoke runs); None takes all.
        length_window: so many batches are sorted by the length of their texts together, in training.
    """

    def __init__(
        self,
        store: PreparedData,
        tokenizer: Tokenizer,
        inputs: Inputs,
        *,
        image_size: int,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        length_window: int = 1,
    ) -> None:
        super().__init__()
        self.store, self.tokenizer, self.inputs = store, tokenizer, inputs
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.seed, self.limit, self.length_window = seed, limit, length_window
        self._resume_at = (0, 0)

    def dataset(self, split: str, augment: bool) -> StudyDataset:
        """Samples of one split."""
        return StudyDataset(self.store, self.tokenizer, self.inputs, split, self.image_size, self.seed, augment)

    def prepare_data(self) -> None:
        """Tokenise, if this tokenizer has not been used here before (one process does it)."""
        self.store.pieces(self.tokenizer, self.inputs.form)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training split."""
        loader = self._loader("train", train=True)
        sampler: EpochBatches = loader.sampler  # type: ignore[assignment]
        # Lightning says which epoch it is only after the workers have begun to fetch
        epoch, start = self._resume_at
        sampler.set_epoch(epoch)
        sampler.start = start
        self._resume_at = (0, 0)
        return loader

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split, in order."""
        return self._loader("val", train=False)

    def _loader(self, split: str, train: bool) -> DataLoader:
        data = self.dataset(split, augment=train)
        rank, world = rank_and_world()
        size = min(len(data), self.limit or len(data))
        # contrasts are gathered over ranks and need whole, equal batches; validation makes them smaller if it must
        batch = self.batch_size if train else min(self.batch_size, size // world)
        if batch == 0 or size < batch * world:
            raise UserError(
                f"{self.store.path} has {size} {split} samples, fewer than one batch of {self.batch_size} x {world}. "
                "Lower data.batch_size or the number of devices."
            )
        sampler = EpochBatches(
            size,
            batch,
            rank=rank,
            world=world,
            seed=self.seed,
            shuffle=train,
            drop_last=True,
            lengths=data.lengths if self.length_window > 1 else None,
            window=self.length_window,
            shards=self.store.shard_of(data.views[:size, 0]) if self.store.url else None,
        )
        return batch_loader(data, sampler, self.num_workers)

    @property
    def joined(self) -> int:
        """Samples of a step, of all processes."""
        return self.batch_size * rank_and_world()[1]

    def state_dict(self) -> dict[str, Any]:
        """How far training is, for a resume in the middle of an epoch."""
        if self.trainer is None or not isinstance(self.trainer.num_training_batches, int):
            return {"epoch": 0, "batches_done": 0, "joined": self.joined}
        # `processed`, of all epochs: a checkpoint at the end of a step is written before Lightning counts the step as
        # completed, or the epoch as ended
        steps = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, done = divmod(steps, max(self.trainer.num_training_batches, 1))
        return {"epoch": epoch, "batches_done": done, "joined": self.joined}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were done.

        Raises:
            UserError: they were of another size.
        """
        if state["joined"] != self.joined:
            raise UserError(
                f"The checkpoint was written by a run whose batches, of all processes together, hold {state['joined']} "
                f"samples; this one's hold {self.joined}. Go on with the number of devices it had, or begin again with "
                "resume=never."
            )
        self._resume_at = (state["epoch"], state["batches_done"])


def batch_loader(data: Dataset, sampler: Sampler, num_workers: int) -> DataLoader:
    """A loader whose data set is asked for whole batches."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_unsignalled,
        pin_memory=torch.cuda.is_available(),
    )


def _unsignalled(_: int) -> None:
    """Leave the signals that a whole group of processes gets to the one that trains: it ends its workers when done."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
