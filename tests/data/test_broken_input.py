"""Whatever is wrong with one file or row: its reason is listed, and nothing else is lost."""

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import folder
from vlp_bench.data.store import PreparedData
from vlp_bench.errors import UserError

WHOLE = 24
RAMP = np.tile(np.arange(60, dtype=np.uint8) * 4, (80, 1))


@dataclass
class Raw:
    """A folder of whole images in which a test breaks the row `bad`."""

    path: Path
    rows: list[dict]

    @property
    def bad(self) -> dict:
        return self.rows[3]

    @property
    def image(self) -> Path:
        return self.path / self.bad["image_path"]

    def save(self, **options) -> None:
        pd.DataFrame(self.rows).to_csv(self.path / "metadata.csv", **{"index": False} | options)


@pytest.fixture
def raw(tmp_path) -> Raw:
    made = Raw(tmp_path / "raw", [])
    (made.path / "images").mkdir(parents=True)
    for n in range(WHOLE):
        Image.fromarray(RAMP).save(made.path / f"images/{n}.png")
        made.rows.append(
            {
                "image_path": f"images/{n}.png",
                "study_id": f"s{n}",
                "patient_id": f"p{n}",
                "view": "PA",
                "report_text": f"FINDINGS: Report number {n}.",
                "labels": "Edema" if n % 2 else "No Finding",
                "boxes_json": "",
                "masks_json": "",
                "split": ("train", "val", "test")[n % 3],
            }
        )
    return made


def built(raw: Raw, out: Path) -> tuple[PreparedData, list[dict]]:
    prepare(folder.read(raw.path), out, Plan(32), private=True, max_bad_fraction=0.2)
    return PreparedData(out), json.loads((out / "prepare_report.json").read_text())["problems"]


def encoded(form: str, image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def named(raw: Raw, name: str, content: bytes) -> None:
    raw.image.unlink()
    raw.bad["image_path"] = name
    (raw.path / name).parent.mkdir(parents=True, exist_ok=True)
    (raw.path / name).write_bytes(content)


def dicom(**attributes) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    shown = {"Rows": 80, "Columns": 60, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    shown |= {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelData": RAMP.tobytes()}
    for name, value in (shown | attributes).items():
        if value is not None:
            setattr(file, name, value)
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


GRAY = Image.fromarray(RAMP)
JPEG = encoded("JPEG", Image.fromarray(np.kron(RAMP, np.ones((8, 8), np.uint8))))


def drop(raw: Raw) -> None:
    raw.image.unlink()


def become_directory(raw: Raw) -> None:
    raw.image.unlink()
    raw.image.mkdir()


def dangle(raw: Raw) -> None:
    raw.image.unlink()
    raw.image.symlink_to(raw.path / "nowhere.png")


def loop(raw: Raw) -> None:
    raw.image.unlink()
    raw.image.symlink_to(raw.image)


def lossless(name: str, content: bytes) -> Callable[[Raw], None]:
    return lambda raw: named(raw, name, content)


#: what is done to the row, and the reason that is listed; the image is lost
LOST: dict[str, tuple[Callable[[Raw], None], str]] = {
    "truncated JPEG": (lossless("images/x.jpg", JPEG[: len(JPEG) // 2]), "truncated"),
    "JPEG cut after its header": (lossless("images/x.jpg", JPEG[:200]), "[Tt]runcated|not an image|broken"),
    "zero bytes": (lossless("images/x.jpg", b""), "not an image"),
    "only zeros": (lossless("images/x.png", b"\0" * 500), "not an image"),
    "a web page": (lossless("images/x.jpg", b"<!DOCTYPE html><p>Sign in"), "not an image"),
    "truncated PNG": (lossless("images/x.png", encoded("PNG", GRAY)[:-80]), "[Tt]runcated|broken"),
    "DICOM without pixels": (lossless("images/x.dcm", dicom(PixelData=None)), "without pixels"),
    "DICOM of no bytes": (lossless("images/x.dcm", b""), "DICOM"),
    "DICOM with too few pixels": (lossless("images/x.dcm", dicom(PixelData=b"\0" * 90)), "DICOM|pixel"),
    "DICOM without rows": (lossless("images/x.dcm", dicom(Rows=None)), "DICOM|Rows"),
    "text called DICOM": (lossless("images/x.dcm", b"hello, I am text " * 20), "DICOM"),
    "no such file": (drop, "no such file"),
    "a directory": (become_directory, "directory"),
    "a link to nothing": (dangle, "no such file"),
    "a link to itself": (loop, "symbolic|links"),
}


@pytest.mark.parametrize("kind", LOST)
def test_the_image_is_lost_and_nothing_else(raw, tmp_path, kind):
    breaks, reason = LOST[kind]
    breaks(raw)
    raw.save()
    store, problems = built(raw, tmp_path / "out")
    lost = [p for p in problems if p["lost"]]
    assert [p["where"] for p in lost] == [raw.bad["image_path"]]
    assert re.search(reason, lost[0]["reason"]), lost[0]["reason"]
    assert sorted(store.images["path"]) == sorted(r["image_path"] for r in raw.rows if r is not raw.bad)
    assert len(store.studies) == WHOLE, "the report stays"


def colour(mode: str) -> bytes:
    return encoded("JPEG" if mode in ("CMYK", "RGB") else "PNG", GRAY.convert(mode))


def deep() -> bytes:
    return encoded("PNG", Image.fromarray(RAMP.astype(np.uint16) * 256))


#: names and contents that look odd and are read all the same
READ: dict[str, tuple[str, bytes]] = {
    "CMYK JPEG": ("images/x.jpg", colour("CMYK")),
    "RGB JPEG": ("images/x.jpg", colour("RGB")),
    "palette PNG": ("images/x.png", colour("P")),
    "PNG with transparency": ("images/x.png", colour("LA")),
    "16-bit PNG": ("images/x.png", deep()),
    "progressive JPEG": ("images/x.jpg", encoded("JPEG", GRAY, progressive=True)),
    "TIFF": ("images/x.tif", encoded("TIFF", GRAY)),
    "upper-case extension": ("images/X.JPG", colour("RGB")),
    "mixed-case DICOM": ("images/x.DcM", dicom()),
    "DICOM without an extension": ("images/x", dicom()),
    "PNG called jpg": ("images/x.jpg", encoded("PNG", GRAY)),
    "blanks in the path": ("my images/chest 1 .png", encoded("PNG", GRAY)),
    "umlauts in the path": ("Röntgen/Müßig.png", encoded("PNG", GRAY)),
    "another alphabet in the path": ("画像/胸部.png", encoded("PNG", GRAY)),
    "a quote and a comma in the path": ("images/a,'b\".png", encoded("PNG", GRAY)),
}


@pytest.mark.parametrize("kind", READ)
def test_an_odd_file_is_read(raw, tmp_path, kind):
    named(raw, *READ[kind])
    raw.save()
    store, problems = built(raw, tmp_path / "out")
    assert not [p for p in problems if p["lost"]]
    row = int(np.flatnonzero(store.images["path"] == raw.bad["image_path"])[0])
    other = int(np.flatnonzero(store.images["path"] == "images/5.png")[0])
    apart = store.pixels(np.array([row, other])).astype(int)
    assert np.abs(apart[0] - apart[1]).mean() < 8


def test_a_link_is_followed(raw, tmp_path):
    raw.image.rename(tmp_path / "elsewhere.png")
    raw.image.symlink_to(tmp_path / "elsewhere.png")
    raw.save()
    assert not [p for p in built(raw, tmp_path / "out")[1] if p["lost"]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(raw, tmp_path):
    raw.image.chmod(0)
    raw.save()
    _, problems = built(raw, tmp_path / "out")
    assert [p["reason"] for p in problems if p["lost"]] == ["Permission denied"]


def boxes(*found) -> str:
    return json.dumps([{"label": "Edema", "xywh": xywh} for xywh in found])


def masks(**mask) -> str:
    return json.dumps([{"label": "Edema"} | mask])


def other_mask(raw: Raw) -> None:
    Image.fromarray(RAMP[:10]).save(raw.path / "mask.png")
    raw.bad["masks_json"] = masks(path="mask.png")


#: what is done to the row, and the kind and the reason that are listed; the image stays without it
KEPT: dict[str, tuple[Callable[[Raw], None], str, str]] = {
    "box of negative width": (lambda r: r.bad.update(boxes_json=boxes([5, 5, -4, 9])), "broken box", "xywh"),
    "box of no height": (lambda r: r.bad.update(boxes_json=boxes([5, 5, 4, 0])), "broken box", "xywh"),
    "box of three numbers": (lambda r: r.bad.update(boxes_json=boxes([5, 5, 4])), "broken box", "xywh"),
    "box of words": (lambda r: r.bad.update(boxes_json=boxes(list("abcd"))), "broken box", "xywh"),
    "box that is not a number": (
        lambda r: r.bad.update(boxes_json=boxes([5, float("nan"), 4, 4])),
        "broken box",
        "xywh",
    ),
    "boxes that are no JSON": (lambda r: r.bad.update(boxes_json="[{"), "boxes_json", "not a JSON list"),
    "boxes that are no list": (lambda r: r.bad.update(boxes_json='"x"'), "boxes_json", "not a JSON list"),
    "mask of another size": (other_mask, "broken mask", "a mask of"),
    "mask that is not there": (lambda r: r.bad.update(masks_json=masks(path="no.png")), "broken mask", "no such file"),
    "runs beyond the image": (lambda r: r.bad.update(masks_json=masks(rle="4790 50")), "broken mask", "a run ends at"),
    "runs that are negative": (lambda r: r.bad.update(masks_json=masks(rle="4 -5")), "broken mask", "none negative"),
    "an odd number of runs": (lambda r: r.bad.update(masks_json=masks(rle="4 5 6")), "broken mask", "pairs"),
    "runs of words": (lambda r: r.bad.update(masks_json=masks(rle="a b")), "broken mask", "invalid|pairs"),
    "mask that is neither": (lambda r: r.bad.update(masks_json=masks()), "broken mask", "path, rle or polygon"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_the_image_stays_without_its_broken_annotation(raw, tmp_path, kind):
    breaks, said, reason = KEPT[kind]
    breaks(raw)
    raw.save()
    store, problems = built(raw, tmp_path / "out")
    assert len(store.images) == len(store.studies) == WHOLE
    assert [p["kind"] for p in problems] == [said]
    assert not problems[0]["lost"]
    assert re.search(reason, problems[0]["reason"]), problems[0]["reason"]


def semicolons(raw: Raw) -> None:
    raw.save(sep=";")


def tabs(raw: Raw) -> None:
    raw.save(sep="\t")


def mark(raw: Raw) -> None:
    raw.save(encoding="utf-8-sig")


def blanks(raw: Raw) -> None:
    table = pd.DataFrame(raw.rows)
    table.columns = [f" {c} " for c in table.columns]
    table.to_csv(raw.path / "metadata.csv", index=False)


def index_column(raw: Raw) -> None:
    raw.save(index=True)


@pytest.mark.parametrize("write", [semicolons, tabs, mark, blanks, index_column])
def test_a_table_as_some_program_writes_it(raw, tmp_path, write):
    write(raw)
    store, problems = built(raw, tmp_path / "out")
    assert len(store.images) == WHOLE
    assert not [p for p in problems if p["lost"]]
    assert set(store.labels) == {"Edema", "No Finding"}


@pytest.mark.parametrize("column", ["labels", "view", "report_text", "split", "study_id", "patient_id"])
@pytest.mark.parametrize("value", ["", "nan", "NaN"])
def test_nothing_where_something_should_be(raw, tmp_path, column, value):
    for row in raw.rows:
        row[column] = value
    raw.save()
    store, problems = built(raw, tmp_path / "out")
    assert len(store.images) == WHOLE
    assert not [p for p in problems if p["lost"]]
    assert store.images["patient_id"].nunique() == WHOLE


def test_ids_that_come_twice(raw, tmp_path):
    raw.bad["image_path"] = "images/5.png"
    raw.save()
    store, problems = built(raw, tmp_path / "out")
    assert len(store.images) == WHOLE - 1
    assert [p["reason"] for p in problems if p["lost"]] == ["the image has a row already; the first counts"]


def test_a_full_disk_leaves_nothing_half_written_and_the_next_call_goes_on(raw, tmp_path, monkeypatch):
    raw.save()
    monkeypatch.setattr("vlp_bench.data.prepare.STUDIES_PER_SHARD", 4)
    whole, _ = built(raw, tmp_path / "whole")
    real, written = os.replace, []

    def full(source, target):
        if len(written) == 9:
            raise OSError(28, "No space left on device")
        written.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        built(raw, tmp_path / "out")
    monkeypatch.setattr(os, "replace", real)
    assert built(raw, tmp_path / "out")[0].fingerprint == whole.fingerprint
