"""Prepared data, opened: images by row, studies by number, word pieces by tokenizer."""

import io
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from vlp_bench.data.persons import persons
from vlp_bench.data.prepare import DIVISION, ROWS_PER_PIECE, SECTIONS, VERSION, read_arrow
from vlp_bench.data.remote import fetch
from vlp_bench.data.reports import (
    SELECTIONS,
    SWAPS,
    clean_alphanumeric,
    count_words,
    drop_marks,
    select_text,
    split_sentences,
    swap_laterality,
)
from vlp_bench.data.study import FRONTAL
from vlp_bench.data.tokenization import Pieces, Tokenizer
from vlp_bench.errors import UserError
from vlp_bench.files import alone, digest, read_json, whole

log = logging.getLogger(__name__)

#: what each choice of a text form may be

FORMS: dict[str, tuple[str, ...]] = {
    "sections": tuple(SELECTIONS),
    "fallback": ("none", "last_paragraph"),
    "clean": ("alphanumeric", "none"),
    "marks": ("keep", "drop"),
    "swap": SWAPS,
}


@dataclass(frozen=True, slots=True)
class TextForm:
    """Which text of a report a method reads.

    Args:
        sections: impression_findings, findings_impression (both, in that order), findings, impression or longer.
        fallback: what is read where that is nothing: none, or the last_paragraph of a report without either section.
        clean: alphanumeric (MGCA supplement A.1) or none, which keeps case and punctuation.
        marks: keep or drop the marks of what was taken out of public reports, see `reports.drop_marks`.
        swap: what is swapped in a mirrored report: words, or substrings as in REFERS' code.
        min_tokens: reports with fewer words are left out.

    Raises:
        UserError: an unknown choice.
    """

    sections: str = "impression_findings"
    clean: str = "alphanumeric"
    min_tokens: int = 3
    fallback: str = "none"
    marks: str = "keep"
    swap: str = "words"

    def __post_init__(self) -> None:
        refuse_unknown(self, FORMS)

    def sentences(self, study: Mapping[str, str]) -> list[str]:
        """The sentences of one report."""
        return self.cut(select_text(study, self.sections, self.fallback))

    def cut(self, text: str, shortest: int = 2) -> list[str]:
        """The sentences of a text that was chosen already; those of fewer words than `shortest` may be dropped."""
        text = drop_marks(text) if self.marks == "drop" else text
        return clean_alphanumeric(text, shortest) if self.clean == "alphanumeric" else split_sentences(text)

    def mirrored(self, sentences: Sequence[str]) -> list[str]:
        """Sentences with left and right swapped."""
        return [swap_laterality(s, self.swap) for s in sentences]

    @property
    def words(self) -> dict[str, str]:
        """What the words of a report depend on: all but how many there must be."""
        return {name: getattr(self, name) for name in FORMS}


def refuse_unknown(options: object, choices: Mapping[str, Sequence[str]], section: str = "") -> None:
    """Check the attributes that are a choice; `section` is what stands before their names in a configuration.

    Raises:
        UserError: one is none of its choices.
    """
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise UserError(f"{section}{name}={getattr(options, name)}: expected one of {', '.join(allowed)}.")


class PreparedData:
    """A prepared directory.

    Args:
        path: the directory.
        fingerprint: the expected one; None takes any.
        url: where the shards come from that `path` does not have yet (see `remote`).
        split: the division that says what is train, val and test; None takes the one that it was prepared for.

    Raises:
        UserError: there is none at `path`, it is unfinished or damaged, of another version, not the expected one, or
            without that division.
    """

    def __init__(
        self, path: Path, fingerprint: str | None = None, split: str | None = None, url: str | None = None
    ) -> None:
        self.path, self.url = Path(path), url
        if not (self.path / "manifest.json").is_file():
            state = "unfinished: run the same prepare command again" if (self.path / "plan.json").exists() else "absent"
            raise UserError(
                f"No prepared data at {self.path} ({state}). Make it with: "
                f"vlp-bench prepare data=NAME data.raw_dir=RAW data.dir={self.path}"
            )
        self.manifest: dict[str, Any] = read_json(self.path / "manifest.json", "a manifest")
        if self.manifest.get("version") != VERSION:
            raise UserError(
                f"{self.path} was prepared by another version ({self.manifest.get('version')}, this one writes "
                f"{VERSION}). Prepare it anew into another data.dir."
            )
        missing = [p for p in (self.path / "images.arrow", self.path / "studies.arrow") if not p.is_file()]
        if url is None:
            missing += [p for n in range(self.manifest["shards"]) if not (p := self.path / _shard(n)).is_file()]
        if missing:
            raise UserError(
                f"{missing[0]} is missing, and {len(missing) - 1} more: {self.path} is damaged. "
                "Remove it and prepare anew."
            )
        if fingerprint and fingerprint != self.fingerprint:
            raise UserError(
                f"{self.path} has the fingerprint {self.fingerprint}, expected {fingerprint}: it is other data."
            )
        self.split = split or self.manifest["split"]
        if self.split and self.split not in self.manifest["divisions"]:
            raise UserError(
                f"{self.path} has no split {self.split}. It has: "
                f"{', '.join(self.manifest['divisions']) or 'only its own, which split=null takes'}."
            )
        leaking = self.manifest["divisions"][self.split]["leaks"] if self.split else {}
        if leaking:
            found = " and ".join(f"{number} {kind}" for kind, number in leaking.items())
            log.warning("%s: the split %s has %s in more than one part, as it was published", path, self.split, found)

    def __getstate__(self) -> dict[str, Any]:
        """The path without the data: another process maps the files itself."""
        return {k: getattr(self, k) for k in ("path", "manifest", "split", "url")}

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any text, label or pixel."""
        return str(self.manifest["fingerprint"])

    @property
    def private(self) -> bool:
        """Whether texts and pixels must not leave the machine."""
        return bool(self.manifest["private"])

    @property
    def size(self) -> int:
        """Side of the stored images in pixels."""
        return int(self.manifest["plan"]["size"])

    @property
    def labels(self) -> list[str]:
        """Names of the labels, in the order of the label arrays."""
        return list(self.manifest["labels"])

    @cached_property
    def _ends(self) -> np.ndarray:
        """Image rows up to the end of each shard."""
        return np.cumsum(self.manifest["shard_images"])

    @cached_property
    def _opened(self) -> dict[int, tuple[pa.Table, list[np.ndarray]]]:
        return {}

    def _open(self, numbers: Iterable[int]) -> None:
        """Map shards that are not open yet; fetch those that are not here yet."""
        new = [n for n in numbers if n not in self._opened]
        if self.url and new:
            fetch(self.url, self.path, map(_shard, new))
        for n in new:
            table = read_arrow(self.path / _shard(n))
            chunks = [c for c in table.column("pixels").chunks if len(c)]
            flat = [c.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.size, self.size) for c in chunks]
            self._opened[n] = table, flat

    def shard_of(self, rows: np.ndarray) -> np.ndarray:
        """The shard in which each of N image rows lies, int64 (N,)."""
        return np.searchsorted(self._ends, rows, side="right")

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Stored grey pixels, uint8 (N, size, size), of N image rows."""
        corner = np.zeros(len(rows), np.int64)
        return self.crops(rows, self.size, corner, corner)

    def crops(self, rows: np.ndarray, size: int, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """A square of each of N images, uint8 (N, size, size), its corner at (tops[n], lefts[n]).

        Read straight from the mapped files: only the bytes of the square are touched, and they are copied once.
        """
        shard = self.shard_of(rows)
        self._open(np.unique(shard).tolist())
        piece, row = np.divmod(rows - np.concatenate([[0], self._ends])[shard], ROWS_PER_PIECE)
        out = np.empty((len(rows), size, size), np.uint8)
        places = zip(shard.tolist(), piece.tolist(), row.tolist(), tops.tolist(), lefts.tolist(), strict=True)
        for n, (s, p, r, top, left) in enumerate(places):
            out[n] = self._opened[s][1][p][r, top : top + size, left : left + size]
        return out

    @cached_property
    def _index(self) -> pd.DataFrame:
        return read_arrow(self.path / "images.arrow").to_pandas()

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row an image, all but pixels and masks; `patient_id`, `split` and `frontal` are joined."""
        table = self._index[[c for c in self._index if not c.startswith(DIVISION)]].copy()
        studies, study = self._studies, table["study"]
        table["patient_id"] = studies["patient_id"].to_numpy()[study]
        own = studies["split"].to_numpy()[study]
        table["split"] = self._index[DIVISION + self.split].to_numpy() if self.split else own
        table["frontal"] = table["view"].isin(FRONTAL)
        return table

    @cached_property
    def persons(self) -> pd.DataFrame:
        """One row an image: `view`, `sex` (F or M), `age` (years); empty or nan where the source did not say."""
        return persons(self.images["extra"]).assign(view=self.images["view"])

    @cached_property
    def _studies(self) -> pd.DataFrame:
        return read_arrow(self.path / "studies.arrow").drop(["labels"]).to_pandas()

    @cached_property
    def studies(self) -> pd.DataFrame:
        """One row a study: ids, split, report sections. By a division, a study lies where its images lie."""
        if not self.split:
            return self._studies
        found = self.images[["study", "split"]].drop_duplicates()
        several = found["study"].duplicated(keep=False)
        # as a rule the images of a study lie together
        joined = found[~several].set_index("study")["split"]
        mixed = (
            found[several].groupby("study")["split"].agg(lambda parts: " ".join(sorted(set(" ".join(parts).split()))))
        )
        where = pd.concat([joined, mixed]).reindex(range(len(self._studies)), fill_value="")
        return self._studies.assign(split=where.to_numpy())

    def in_split(self, part: str) -> np.ndarray:
        """Images of train, val or test, bool (images,); an image may lie in several parts of a published division."""
        return lies_in(self.images["split"], part)

    @cached_property
    def study_labels(self) -> np.ndarray:
        """float32 (studies, L): 1, 0, -1 uncertain, nan unknown."""
        rows = read_arrow(self.path / "studies.arrow")["labels"].to_pylist()
        return _label_matrix(rows, self.labels)

    @cached_property
    def image_labels(self) -> np.ndarray:
        """float32 (images, L): an image's own labels, or those of its study."""
        own = self.images["labels"]
        matrix = self.study_labels[self.images["study"].to_numpy()].copy()
        has = own.notna().to_numpy()
        if has.any():
            matrix[has] = _label_matrix([list(x) for x in own[has]], self.labels)
        return matrix

    def boxes(self, row: int) -> list[dict[str, Any]]:
        """Boxes of one image, xyxy in stored pixels."""
        return json.loads(self.images["boxes"].iloc[row])

    @cached_property
    def mask_labels(self) -> list[frozenset[str]]:
        """What each image has masks of; no mask is decoded for it."""
        return [frozenset(names) for names in self.images["mask_labels"]]

    def masks(self, row: int) -> list[dict[str, Any]]:
        """Masks of one image, {label, mask: bool (size, size)}, in stored pixels."""
        shard = int(self.shard_of(np.array([row]))[0])
        self._open([shard])
        local = row - int(self._ends[shard - 1] if shard else 0)
        stored = self._opened[shard][0].column("masks")[local].as_py() or []
        return [{"label": m["label"], "mask": np.asarray(Image.open(io.BytesIO(m["png"])))} for m in stored]

    def sentences(self, form: TextForm, studies: np.ndarray | slice = slice(None)) -> list[list[str]]:
        """What is read of the reports of some studies, or of all."""
        return [form.sentences(r) for r in self._studies.iloc[studies][list(SECTIONS)].to_dict("records")]

    def pieces(self, tokenizer: Tokenizer, form: TextForm) -> tuple[Pieces, Pieces]:
        """Word pieces of every study, as written and with left and right swapped; made once and kept.

        Raises:
            UserError: the directory cannot be written.
        """
        folder = self._tokens(tokenizer, form)
        plain, mirrored = (_load_pieces(folder, name) for name in ("plain", "mirrored"))
        return plain, mirrored

    def long_enough(self, tokenizer: Tokenizer, form: TextForm) -> np.ndarray:
        """Studies whose text has `form.min_tokens` words or more, bool (studies,)."""
        return np.load(self._tokens(tokenizer, form) / "words.npy") >= form.min_tokens

    def _tokens(self, tokenizer: Tokenizer, form: TextForm) -> Path:
        """Where the tokenised reports lie; tokenised here, by one process, if nobody has."""
        folder = self.path / "tokens" / digest([tokenizer.fingerprint, form.words])
        if not folder.is_dir():
            with alone(folder.parent / ".lock"):
                # another process may have made it while this one waited
                if not folder.is_dir():
                    self._tokenize(tokenizer, form, folder)
        return folder

    def _tokenize(self, tokenizer: Tokenizer, form: TextForm, folder: Path) -> None:
        log.info("tokenising %d reports once, into %s", len(self.studies), folder)
        texts = self.sentences(form)
        mirrored = [form.mirrored(t) for t in texts]
        for left in folder.parent.glob(".*.*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        with whole(folder) as temporary:
            temporary.mkdir()
            np.save(temporary / "words.npy", np.array([count_words(t) for t in texts], np.int64))
            for name, version in (("plain", texts), ("mirrored", mirrored)):
                pieces = tokenizer.encode(version)
                for part in ("ids", "word", "sentence", "offsets"):
                    np.save(temporary / f"{name}.{part}.npy", getattr(pieces, part))


def _shard(number: int) -> str:
    return f"shards/{number:05d}.images.arrow"


def lies_in(splits: pd.Series, part: str) -> np.ndarray:
    """Which rows lie in train, val or test, bool, by a column of parts with a blank between."""
    where = {value: part in value.split() for value in splits.unique()}
    return splits.map(where).to_numpy(bool)


def _load_pieces(folder: Path, name: str) -> Pieces:
    parts = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("ids", "word", "sentence", "offsets"))
    return Pieces(*parts)


def _label_matrix(rows: Sequence[Sequence[float | None]], labels: Sequence[str]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(labels))
