"""Prepared data, opened: images by row, studies by number, word pieces by tokenizer."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from vlp_bench.data.prepare import VERSION
from vlp_bench.data.reports import clean_alphanumeric, select_text, split_sentences, swap_laterality
from vlp_bench.data.study import FRONTAL
from vlp_bench.data.tokenization import Pieces, Tokenizer
from vlp_bench.errors import UserError
from vlp_bench.files import digest, read_json, whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextForm:
    """Which text of a report a method reads.

    `sections`: impression_findings, findings, impression or longer. `clean`: alphanumeric (MGCA supplement A.1) or
    none. Reports with fewer than `min_tokens` words are left out.
    """

    sections: str = "impression_findings"
    clean: str = "alphanumeric"
    min_tokens: int = 3

    def sentences(self, study: Mapping[str, str]) -> list[str]:
        """The sentences of one report."""
        text = select_text(study, self.sections)
        return clean_alphanumeric(text) if self.clean == "alphanumeric" else split_sentences(text)


class PreparedData:
    """A prepared directory.

    Raises:
        UserError: there is none at `path`, it is unfinished, of another version, or not the expected one.
    """

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        self.path = Path(path)
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
        if fingerprint and fingerprint != self.fingerprint:
            raise UserError(
                f"{self.path} has the fingerprint {self.fingerprint}, expected {fingerprint}: it is other data."
            )

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

    def _shards(self, kind: str) -> list[Path]:
        return [self.path / "shards" / f"{n:05d}.{kind}.arrow" for n in range(self.manifest["shards"])]

    @cached_property
    def _images(self) -> Any:
        from datasets import Dataset, concatenate_datasets

        parts = [Dataset.from_file(str(p)) for p in self._shards("images")]
        return concatenate_datasets(parts).with_format("arrow") if len(parts) > 1 else parts[0].with_format("arrow")

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Stored grey pixels, uint8 (N, size, size), of N image rows."""
        column = self._images[rows.tolist()]["pixels"]
        flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return flat.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.size, self.size)

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row an image, all but pixels and masks; `patient_id` and `split` joined; `frontal` computed."""
        columns = ["image_id", "path", "view", "study", "width", "height", "labels", "boxes", "extra"]
        table = pa.concat_tables(_read(p).select(columns) for p in self._shards("images")).to_pandas()
        studies = self.studies
        table["patient_id"] = studies["patient_id"].to_numpy()[table["study"]]
        table["split"] = studies["split"].to_numpy()[table["study"]]
        table["frontal"] = table["view"].isin(FRONTAL)
        return table

    @cached_property
    def studies(self) -> pd.DataFrame:
        """One row a study: ids, split, report sections."""
        return pa.concat_tables(_read(p).drop(["labels"]) for p in self._shards("studies")).to_pandas()

    @cached_property
    def study_labels(self) -> np.ndarray:
        """float32 (studies, L): 1, 0, -1 uncertain, nan unknown."""
        return _label_matrix([x for p in self._shards("studies") for x in _read(p)["labels"].to_pylist()], self.labels)

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

    def pieces(self, tokenizer: Tokenizer, form: TextForm) -> tuple[Pieces, Pieces]:
        """Word pieces of every study, as written and with left and right swapped; made once and kept.

        Raises:
            UserError: the directory cannot be written.
        """
        key = digest([tokenizer.fingerprint, form.sections, form.clean])
        folder = self.path / "tokens" / key
        if not folder.is_dir():
            log.info("tokenising %d reports once, into %s", len(self.studies), folder)
            records = self.studies[["findings", "impression"]].to_dict("records")
            texts = [form.sentences(r) for r in records]
            mirrored = [[swap_laterality(s) for s in t] for t in texts]
            with whole(folder) as temporary:
                temporary.mkdir()
                for name, version in (("plain", texts), ("mirrored", mirrored)):
                    pieces = tokenizer.encode(version)
                    for part in ("ids", "word", "sentence", "offsets"):
                        np.save(temporary / f"{name}.{part}.npy", getattr(pieces, part))
        plain, mirrored_pieces = (_load_pieces(folder, name) for name in ("plain", "mirrored"))
        return plain, mirrored_pieces


def _load_pieces(folder: Path, name: str) -> Pieces:
    parts = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in ("ids", "word", "sentence", "offsets"))
    return Pieces(*parts)


def _read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _label_matrix(rows: Sequence[Sequence[float | None]], labels: Sequence[str]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(labels))
