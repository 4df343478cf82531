"""Text to word pieces, with the word and the sentence that each piece belongs to. No torch here."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer

from vlp_bench.errors import UserError

#: texts that are tokenised at once: each piece costs some hundred bytes until it is an integer
TEXTS_AT_ONCE = 2048
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Word pieces of many texts laid end to end, without special tokens.

    `offsets` (N + 1,) int64 says where each text begins; `ids`, `word`, `sentence` are int32; `word` and `sentence`
    count from 0 within a text.
    """

    ids: np.ndarray
    word: np.ndarray
    sentence: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sentence_counts(self) -> np.ndarray:
        """How many sentences each text has, int64 (N,)."""
        counts = np.zeros(len(self), np.int64)
        filled = np.diff(self.offsets) > 0
        counts[filled] = self.sentence[self.offsets[1:][filled] - 1] + 1
        return counts


class Tokenizer:
    """WordPiece over a BERT vocabulary.

    Args:
        vocab: the word pieces, in the order of their ids.
        lowercase: lower the case and strip accents first, as uncased BERT does.

    Raises:
        UserError: a special token is missing from the vocabulary.
    """

    def __init__(self, vocab: Sequence[str], lowercase: bool) -> None:
        self.vocab, self.lowercase = list(vocab), lowercase
        index = {piece: i for i, piece in enumerate(self.vocab)}
        if missing := [s for s in SPECIAL if s not in index]:
            raise UserError(f"The vocabulary lacks {', '.join(missing)}: a BERT vocab.txt has them.")
        self.pad, self.unk, self.cls, self.sep, self.mask = (index[s] for s in SPECIAL)
        self._tokenizer = BertWordPieceTokenizer(index, lowercase=lowercase)

    @classmethod
    def load(cls, vocab: str, name: str = "", lowercase: bool = True) -> "Tokenizer":
        """Read a vocabulary: `synthetic` (the one that ships), `pretrained` (of hub model `name`), or a path.

        Raises:
            UserError: the file is missing or the hub cannot be reached.
        """
        if vocab == "synthetic":
            text = (files("vlp_bench.data") / "assets" / "vocab.txt").read_text("utf-8")
            return cls(_lines(text), lowercase)
        path = Path(_hub_vocabulary(name)) if vocab == "pretrained" else Path(vocab)
        if not path.is_file():
            raise UserError(f"text.vocab={vocab}: no such file. Give the vocab.txt of a BERT model, or synthetic.")
        try:
            return cls(_lines(path.read_text("utf-8")), lowercase)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text.vocab={vocab}: cannot be read as a BERT vocab.txt ({error}).") from error

    def __len__(self) -> int:
        return len(self.vocab)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with the vocabulary or its case."""
        text = "\n".join([str(self.lowercase), *self.vocab])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def encode(self, texts: Sequence[Sequence[str]]) -> Pieces:
        """Tokenise texts given as lists of sentences.

        Args:
            texts: N texts, each a list of sentences in order.

        Returns:
            the pieces of all N, without special tokens.
        """
        parts = [self._encode(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, max(len(texts), 1), TEXTS_AT_ONCE)]
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        ids, word, sentence = (np.concatenate([getattr(p, k) for p in parts]) for k in ("ids", "word", "sentence"))
        return Pieces(ids, word, sentence, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def decode(self, ids: np.ndarray) -> list[str]:
        """Texts of word pieces (N, T), each up to its first [SEP] or padding, without special tokens."""
        return [self._join([i for i in row if i not in (self.cls, self.mask)]) for row in self._until_end(ids)]

    def _until_end(self, ids: np.ndarray) -> list[list[int]]:
        over = np.maximum.accumulate((ids == self.sep) | (ids == self.pad), axis=1)
        return [row[~end].tolist() for row, end in zip(ids, over, strict=True)]

    def _join(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _split(self, sentences: Sequence[str]) -> Sequence[Any]:
        """For each sentence the `ids` of its pieces, and in `word_ids` the word that each is part of."""
        return self._tokenizer.encode_batch(sentences, add_special_tokens=False)

    def _encode(self, texts: Sequence[Sequence[str]]) -> Pieces:
        owner = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
        number = np.concatenate([np.arange(len(t)) for t in texts] or [np.zeros(0, int)])
        encoded = self._split([s for t in texts for s in t])
        lengths = np.array([len(e.ids) for e in encoded], dtype=np.int64)
        ids = np.fromiter((i for e in encoded for i in e.ids), np.int32, lengths.sum())
        text_of = np.repeat(owner, lengths)
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.bincount(text_of, minlength=len(texts)), out=offsets[1:])
        first = np.ones(len(ids), bool)
        inside = (w is not None and w == p for e in encoded for p, w in pairwise([None, *e.word_ids]))
        first[np.fromiter(inside, bool, len(ids))] = False
        words = np.cumsum(first) - 1
        starts = words[np.minimum(offsets[:-1], max(len(ids) - 1, 0))] if len(ids) else np.zeros(len(texts), int)
        word = (words - np.repeat(starts, np.diff(offsets))).astype(np.int32)
        return Pieces(ids, word, np.repeat(number, lengths).astype(np.int32), offsets)


class SentencePieces(Tokenizer):
    """Pieces of a SentencePiece model, over lower-case text without accents, as REFERS' decoder reads them.

    The number of the unknown piece is that of padding, too, as in the authors' model.

    Args:
        model: path of the `.model` file, with [SOS] and [EOS], or begin and end of its own.

    Raises:
        UserError: no such file, no model, no begin or end, or the package sentencepiece is not installed.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError("SentencePiece models need a package: pip install 'vlp-bench[sentencepiece]'.") from error
        if not Path(model).is_file():
            raise UserError(f"method.inputs.sentencepiece={model}: no such file. Give a SentencePiece model, or null.")
        try:
            self._processor = SentencePieceProcessor(model_file=model)
        except (OSError, RuntimeError) as error:
            raise UserError(f"method.inputs.sentencepiece={model}: no SentencePiece model ({error}).") from error
        self.vocab = [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]
        index = {piece: i for i, piece in enumerate(self.vocab)}
        self.pad = self.unk = self._processor.unk_id()
        self.cls, self.sep = index.get("[SOS]", self._processor.bos_id()), index.get("[EOS]", self._processor.eos_id())
        self.mask = index.get("[MASK]", self.unk)
        if min(self.cls, self.sep) < 0:
            raise UserError(f"method.inputs.sentencepiece={model}: the model has no pieces for begin and end.")

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with the model."""
        return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()[:12]

    def _join(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _split(self, sentences: Sequence[str]) -> Sequence[Any]:
        found = self._processor.encode([without_accents(s) for s in sentences])
        begins = np.array([piece.startswith("\u2581") for piece in self.vocab])
        return [SimpleNamespace(ids=ids, word_ids=np.cumsum(begins[ids]).tolist() if ids else []) for ids in found]


def without_accents(text: str) -> str:
    """In lower case, decomposed (NFKD), without combining marks.

    >>> without_accents("Caf\u00e9-au-lait")
    'cafe-au-lait'
    """
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


def _lines(text: str) -> list[str]:
    """Lines by line feed alone: a vocabulary may hold characters at which `splitlines` splits, too."""
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def _hub_vocabulary(name: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(name, "vocab.txt")
    except Exception as error:
        raise UserError(
            f"The vocabulary of {name} is not in the local cache and the model hub cannot be reached "
            f"({type(error).__name__}). Download its vocab.txt elsewhere and give text.vocab=PATH, or use text=tiny."
        ) from error
