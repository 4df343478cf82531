"""Pixels from files: DICOM as archives have it, and masks from files, runs and polygons."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlp_bench.data.decode import read_gray, read_mask, reason, run_lengths
from vlp_bench.data.images import to_square
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.study import ImageRef, Source, Study
from vlp_bench.data.synthetic.writing import save_dicom, save_png

HEIGHT, WIDTH = 48, 40
#: grey levels 0 to 4095 that rise along the rows
DEEP = np.linspace(0, 4095, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(np.uint16)
EIGHT = (DEEP // 16).astype(np.uint8)


@pytest.fixture
def dicom(tmp_path):
    """Write a picture with attributes and read it again."""

    def through(picture: np.ndarray, window: str = "voi", size: int = 4096, **attributes) -> np.ndarray:
        save_dicom(tmp_path / "x.dcm", picture, **attributes)
        gray, (width, height) = read_gray(tmp_path / "x.dcm", size, window)
        assert gray.dtype == np.uint8
        assert gray.ndim == 2
        if size >= 4096:
            assert gray.shape == (height, width)
        return gray

    return through


def linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Grey of values between black and white, by hand."""
    return np.rint(np.clip((values.astype(float) - float(low)) / (float(high) - float(low)), 0, 1) * 255).astype(int)


def close(one: np.ndarray, other: np.ndarray, by: int = 1) -> bool:
    return bool(np.abs(one.astype(int) - other).max() <= by)


# Grey levels ----------------------------------------------------------------------------------------------------------


def test_eight_bits_stay_as_they_are(dicom):
    part = EIGHT // 2 + 40
    assert (dicom(part) == part).all()
    assert (dicom(part, RescaleSlope=1, RescaleIntercept=0) == part).all()
    assert (dicom(part, PhotometricInterpretation="MONOCHROME1") == 255 - part).all()


def test_eight_bits_where_another_window_is_asked_for(dicom):
    part = EIGHT // 2 + 40
    assert close(dicom(part, "minmax"), linear(part, part.min(), part.max()), 0)
    assert close(dicom(part, "max"), linear(part, 0, part.max()), 0)
    # as MGCA: turned round first, then from 0 to the greatest
    turned = (int(part.max()) - part.astype(int)) / part.max() * 255
    assert close(dicom(part, "max", PhotometricInterpretation="MONOCHROME1"), turned)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_more_bits(dicom, bits, signed):
    values = DEEP.astype(np.int32) * (15 if bits == 16 else 1) // 2 * 2 + (7 if bits == 16 else 0)
    stored = (values - 1000).astype(np.int16) if signed and bits == 12 else values.astype(np.uint16)
    if signed and bits == 16:
        stored = (values - 2**15).astype(np.int16)
    tags = {"BitsStored": 16 if signed else bits, "HighBit": (16 if signed else bits) - 1}
    assert close(dicom(stored, **tags), linear(stored, stored.min(), stored.max()), 0)
    assert close(dicom(stored, "minmax", **tags), linear(stored, stored.min(), stored.max()), 0)
    assert close(dicom(stored, "max", **tags), linear(stored, 0, max(int(stored.max()), 1)), 0)
    inverted = dicom(stored, PhotometricInterpretation="MONOCHROME1", **tags)
    assert (inverted == 255 - dicom(stored, **tags)).all()


def test_a_window_is_black_to_white_whether_or_not_the_picture_fills_it(dicom):
    tags = {"BitsStored": 12, "HighBit": 11}
    inner = dicom(DEEP, WindowCenter=2000.5, WindowWidth=1001, **tags)
    assert close(inner, linear(DEEP, 1500, 2500))
    wide = dicom(DEEP // 4 + 500, WindowCenter=2048.5, WindowWidth=4097, **tags)
    assert close(wide, linear(DEEP // 4 + 500, 0, 4096))
    assert wide.min() > 20, "not stretched to the picture's own range"
    assert close(dicom(DEEP, "minmax", WindowCenter=2000.5, WindowWidth=1001, **tags), linear(DEEP, 0, 4095), 0)


def test_the_first_of_several_windows(dicom):
    several = dicom(DEEP, WindowCenter=[2000.5, 100], WindowWidth=[1001, 50], BitsStored=12, HighBit=11)
    assert close(several, linear(DEEP, 1500, 2500))


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": 2000}, {"WindowCenter": 2000, "WindowWidth": 0}, {"WindowWidth": 10}, {}]
)
def test_half_a_window_is_none(dicom, tags):
    assert close(dicom(DEEP, BitsStored=12, HighBit=11, **tags), linear(DEEP, 0, 4095), 0)


def test_a_window_about_zero(dicom):
    signed = (DEEP.astype(int) - 2048).astype(np.int16)
    assert close(dicom(signed, WindowCenter=0.5, WindowWidth=1001), linear(signed, -500, 500))


def test_window_of_eight_bits(dicom):
    assert close(dicom(EIGHT, WindowCenter=100.5, WindowWidth=101), linear(EIGHT, 50, 150))


def test_rescaling_comes_before_the_window(dicom):
    tags = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 0.5, "RescaleIntercept": -300}
    physical = DEEP * 0.5 - 300
    assert close(dicom(DEEP, WindowCenter=500.5, WindowWidth=1001, **tags), linear(physical, 0, 1000))
    assert close(dicom(DEEP, **tags), linear(physical, physical.min(), physical.max()))
    assert close(dicom(DEEP, "max", **tags), linear(physical, 0, physical.max()))


def test_a_negative_slope_turns_the_picture_round(dicom):
    gray = dicom(DEEP, BitsStored=12, HighBit=11, RescaleSlope=-1, RescaleIntercept=4095)
    assert close(gray, 255 - linear(DEEP, 0, 4095))


def test_a_sigmoid(dicom):
    gray = dicom(DEEP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID", BitsStored=12, HighBit=11)
    assert close(gray, 255 / (1 + np.exp(-4 * (DEEP.astype(float) - 2048) / 1000)))


def test_a_voi_table(dicom):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    curve = (np.linspace(0, 1, 4096) ** 2 * 65535).astype(np.uint16)
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "US", curve.tolist())
    gray = dicom(DEEP, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([item]))
    assert close(gray, (DEEP / 4095.0) ** 2 * 255)


def test_a_constant_picture(dicom):
    assert dicom(np.full((8, 8), 900, np.uint16)).max() == 0
    assert (dicom(np.full((8, 8), 77, np.uint8)) == 77).all()


@given(st.data())
def test_levels_are_looked_up_right(tmp_path_factory, data):
    """Against the same mapping of each pixel, without a table."""
    from pydicom.dataset import Dataset

    from vlp_bench.data.decode import _levels, _mapped

    low = data.draw(st.integers(-(2**15), 2**15 - 1))
    high = data.draw(st.integers(low, 2**15 - 1))
    values = np.array(data.draw(st.lists(st.integers(low, high), min_size=4, max_size=4)), np.int16).reshape(2, 2)
    file = Dataset()
    file.BitsStored, file.PixelRepresentation, file.PhotometricInterpretation = 16, 1, "MONOCHROME2"
    file.RescaleSlope, file.RescaleIntercept = data.draw(st.sampled_from([1, 2, -1])), data.draw(st.integers(-50, 50))
    if data.draw(st.booleans()):
        file.WindowCenter, file.WindowWidth = data.draw(st.integers(-1000, 1000)), data.draw(st.integers(1, 5000))
    window = data.draw(st.sampled_from(["voi", "minmax", "max"]))
    plain = _levels(values.ravel(), file, window).reshape(2, 2)
    assert close(_mapped(values, file, window), plain)


# Files ----------------------------------------------------------------------------------------------------------------


def smooth(height: int = 600, width: int = 500) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (height // 25, width // 25)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("turned", [False, True])
def test_jpeg_is_decoded_at_the_scale_that_is_wanted(dicom, tmp_path, turned):
    picture = smooth()
    tags = {"PhotometricInterpretation": "MONOCHROME1"} if turned else {}
    full = dicom(picture, encoding="jpeg", quality=95, **tags)
    shown = 255 - picture if turned else picture
    assert full.shape == picture.shape
    assert np.abs(full.astype(int) - shown).mean() < 2
    small, size = read_gray(tmp_path / "x.dcm", 64)
    assert size == (500, 600)
    assert 64 <= min(small.shape) < 200
    apart = to_square(small, 64)[0].astype(int) - to_square(shown, 64)[0]
    assert np.abs(apart).mean() < 2


def test_jpeg_with_a_window_is_decoded_whole(dicom):
    gray = dicom(smooth(), encoding="jpeg", size=64, WindowCenter=128, WindowWidth=100)
    assert gray.shape == (600, 500)
    assert (np.abs(gray.astype(int) - linear(smooth(), 78, 177)) < 20).mean() > 0.9


def test_colour(dicom):
    colour = np.stack([EIGHT, 255 - EIGHT, np.full_like(EIGHT, 9)], -1)
    grey = colour @ np.array([0.299, 0.587, 0.114])
    assert close(dicom(colour), grey)
    assert np.abs(dicom(colour, encoding="jpeg", quality=95, PhotometricInterpretation="YBR_FULL") - grey).mean() < 6
    assert dicom(colour.astype(np.uint16) * 257).shape == EIGHT.shape


def test_the_first_of_several_frames(dicom):
    assert (dicom(np.stack([EIGHT, 255 - EIGHT])) == EIGHT).all()
    deep = dicom(np.stack([DEEP, DEEP[::-1]]), BitsStored=12, HighBit=11)
    assert close(deep, linear(DEEP, 0, 4095), 0)


def test_jpeg_2000(dicom):
    pytest.importorskip("openjpeg")
    assert (dicom(EIGHT, encoding="jpeg2000") == EIGHT).all()
    assert close(dicom(DEEP, encoding="jpeg2000", BitsStored=12, HighBit=11), linear(DEEP, 0, 4095), 0)


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 2000, "WindowWidth": 3000}, {"RescaleIntercept": -1024}])
def test_jpeg_2000_is_decoded_at_the_scale_that_is_wanted(tmp_path, tags):
    pytest.importorskip("openjpeg")
    ys, xs = np.mgrid[:512, :400]
    picture = (2000 + 1200 * np.sin(xs / 40) + 800 * np.cos(ys / 55)).astype(np.uint16)
    path = tmp_path / "x.dcm"
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        shown = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": photometric} | tags
        save_dicom(path, picture, encoding="jpeg2000", **shown)
        small, size = read_gray(path, 64)
        whole, _ = read_gray(path, 4096)
        assert size == (400, 512)
        assert small.shape == (128, 100)
        assert whole.shape == (512, 400)
        apart = to_square(small, 64)[0].astype(int) - to_square(whole, 64)[0]
        assert np.abs(apart).mean() < 2
        # the extremes of the whole picture count
        assert read_gray(path, 64, "minmax")[0].shape == (512, 400)


def test_palette(dicom):
    entries = np.arange(256, dtype=np.uint16) * 257
    tables = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    tables |= {f"{c}PaletteColorLookupTableData": entries.tobytes() for c in ("Red", "Green", "Blue")}
    assert close(dicom(EIGHT, PhotometricInterpretation="PALETTE COLOR", **tables), EIGHT)


@pytest.mark.parametrize(
    "tag",
    ["SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "HighBit", "BitsStored", "SOPClassUID",
     "Modality"],
)  # fmt: skip
def test_tags_that_archives_leave_out(dicom, tag):
    assert (dicom(EIGHT, **{tag: None}) == EIGHT).all()


@pytest.mark.parametrize("picture", [EIGHT, DEEP], ids=["8", "16"])
def test_without_preamble_and_without_meta(dicom, tmp_path, picture):
    import pydicom

    wanted = dicom(picture)
    file = pydicom.dcmread(tmp_path / "x.dcm")
    bare = pydicom.Dataset()
    for element in file:
        bare.add(element)
    for implicit in (True, False):
        # the data set alone, as the first archives had it
        buffer = io.BytesIO()
        with pydicom.filewriter.DicomIO(buffer) as out:
            out.is_little_endian, out.is_implicit_VR = True, implicit
            pydicom.filewriter.write_dataset(out, bare)
            (tmp_path / "bare.dcm").write_bytes(buffer.getvalue())
        assert (read_gray(tmp_path / "bare.dcm", 4096)[0] == wanted).all()


def test_names_that_end_in_a_number(dicom, tmp_path):
    dicom(EIGHT)
    uid = tmp_path / "1.2.276.0.7230010.3.1.4.8323329.2000.1517875170.639029"
    (tmp_path / "x.dcm").rename(uid)
    assert (read_gray(uid, 4096)[0] == EIGHT).all()
    save_png(tmp_path / "1.2.3.png", EIGHT)
    (tmp_path / "1.2.3.png").rename(tmp_path / "1.2.3")
    assert (read_gray(tmp_path / "1.2.3", 4096)[0] == EIGHT).all()


def test_a_real_file(real_dir):
    path = real_dir / "data" / "dicom" / "RG1_J2KI.dcm"
    if not path.is_file():
        pytest.skip("no data/dicom/RG1_J2KI.dcm")
    pytest.importorskip("openjpeg")
    gray, (width, height) = read_gray(path, 256)
    assert gray.shape == (height, width)
    assert gray.std() > 20
    # a radiograph: the air around is dark when shown
    assert min(height, width) > 500


def broken() -> dict[str, dict]:
    return {
        "no pixels": {"picture": EIGHT, "PixelData": None},
        "no rows": {"picture": EIGHT, "Rows": None},
        "too many rows": {"picture": EIGHT, "Rows": 5000},
        "rows of a JPEG": {"picture": smooth(), "encoding": "jpeg", "Rows": 20},
        "no bits": {"picture": EIGHT, "BitsAllocated": None},
        "seven bits": {"picture": EIGHT, "BitsAllocated": 7},
        "frames that are not there": {"picture": EIGHT, "NumberOfFrames": 9},
        "photometric nonsense": {"picture": EIGHT, "SamplesPerPixel": 4},
    }


@pytest.mark.parametrize("kind", broken())
def test_what_cannot_be_decoded(tmp_path, kind):
    tags = dict(broken()[kind])
    path = tmp_path / "x.dcm"
    save_dicom(path, tags.pop("picture"), **{k: v for k, v in tags.items() if k != "PixelData"})
    if "PixelData" in tags:
        import pydicom

        file = pydicom.dcmread(path)
        del file.PixelData
        file.save_as(path)
    with pytest.raises((ValueError, OSError)) as found:
        read_gray(path, 64)
    assert reason(found.value)
    assert str(tmp_path) not in reason(found.value)


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "jpeg2000"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_truncated(tmp_path, encoding, kept):
    if encoding == "jpeg2000":
        pytest.importorskip("openjpeg")
    path = tmp_path / "x.dcm"
    save_dicom(path, smooth(), encoding=encoding)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises((ValueError, OSError)):
        read_gray(path, 64)


@given(st.data())
def test_no_damage_brings_the_reader_down(tmp_path_factory, data):
    """Bytes put anywhere into a file: a picture, or an error that preparation lists."""
    encoding = data.draw(st.sampled_from(["raw", "jpeg"]))
    path = tmp_path_factory.getbasetemp() / f"damaged-{encoding}.dcm"
    save_dicom(path, EIGHT, encoding=encoding, WindowCenter=100, WindowWidth=50)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        gray, _ = read_gray(path, 32)
    except (ValueError, OSError):
        return
    assert gray.dtype == np.uint8
    assert gray.ndim == 2


def test_preparation_lists_what_cannot_be_decoded(tmp_path):
    import json

    save_dicom(tmp_path / "0.dcm", EIGHT)
    save_dicom(tmp_path / "1.dcm", EIGHT, Rows=None)
    (tmp_path / "2.dcm").write_bytes(b"\0" * 900)
    studies = tuple(Study(str(n), str(n), "train", (ImageRef(str(n), f"{n}.dcm"),)) for n in range(3))
    out = tmp_path / "out"
    prepare(Source("x", tmp_path, studies, ()), out, Plan(32), private=True, max_bad_fraction=1.0)
    problems = json.loads((out / "prepare_report.json").read_text())["problems"]
    assert sorted(p["where"] for p in problems if p["kind"] == "broken image") == ["1.dcm", "2.dcm"]
    assert all("DICOM" in p["reason"] for p in problems if p["kind"] == "broken image")


def test_equal_pictures_give_equal_files(tmp_path):
    for folder in ("a", "b"):
        for encoding in ("raw", "jpeg"):
            save_dicom(tmp_path / folder / f"{encoding}.dcm", EIGHT, encoding=encoding, PatientID="7", Modality="OT")
    for encoding in ("raw", "jpeg"):
        one, two = (tmp_path / folder / f"{encoding}.dcm" for folder in ("a", "b"))
        assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="encoding='gif'"):
        save_dicom(tmp_path / "x.dcm", EIGHT, encoding="gif")


# Masks ----------------------------------------------------------------------------------------------------------------


def test_runs_by_hand():
    # 3 columns of 4: from 1, two long; then from 2 after it, three long
    drawn = run_lengths("1 2 2 3", (3, 4))
    assert (drawn.T.ravel() > 0).tolist() == [False, True, True, False, False, True, True, True] + [False] * 4
    assert set(np.unique(drawn)) == {0, 255}
    assert run_lengths("", (3, 4)).max() == 0
    assert run_lengths([0, 12], (3, 4)).min() == 255


def looped(numbers: list[int], width: int, height: int) -> np.ndarray:
    """An independent decoder: pixel by pixel."""
    flat, at = [0] * (width * height), 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        at += start
        for _ in range(length):
            flat[at] = 255
            at += 1
    return np.array([[flat[x * height + y] for x in range(width)] for y in range(height)], np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_runs_by_an_independent_loop(width, height, pairs):
    numbers = [n for pair in pairs for n in pair]
    if sum(numbers) <= width * height:
        assert (run_lengths(" ".join(map(str, numbers)), (width, height)) == looped(numbers, width, height)).all()
    else:
        with pytest.raises(ValueError, match="run"):
            run_lengths(numbers, (width, height))


@pytest.mark.parametrize(
    "text", ["1", "1 2 3", "-1", "-1 5", "a b", "1.5 2", "99999999999999 1", "9223372036854775807 5"]
)
def test_runs_that_are_none(text):
    with pytest.raises(ValueError):
        run_lengths(text, (10, 10))


def test_polygons():
    square = read_mask(Path(), {"polygon": [2, 3, 7, 3, 7, 6, 2, 6]}, (10, 8))
    wanted = np.zeros((8, 10), np.uint8)
    wanted[3:7, 2:8] = 255
    assert (square == wanted).all()
    for bad in ([1, 2, 3], [1, 2, 3, 4], [0, 0, 5, float("nan"), 5, 5], []):
        with pytest.raises(ValueError):
            read_mask(Path(), {"polygon": bad}, (10, 8))


def test_masks_of_several_files(tmp_path):
    left, right = np.zeros((8, 10), np.uint8), np.zeros((8, 10), np.uint8)
    left[:, :3], right[2:4, 6:] = 255, 1
    save_png(tmp_path / "l.png", left)
    save_png(tmp_path / "r.png", right)
    save_png(tmp_path / "none.png", np.zeros_like(left))
    save_png(tmp_path / "deep.png", right.astype(np.uint16) * 65535)
    both = read_mask(tmp_path, {"path": ["l.png", "r.png", "none.png"]}, (10, 8))
    assert (both == np.where(left | right, 255, 0)).all()
    assert (read_mask(tmp_path, {"path": "deep.png"}, (10, 8)) == right * 255).all()
    with pytest.raises(ValueError, match="a mask of"):
        read_mask(tmp_path, {"path": "l.png"}, (8, 10))
    with pytest.raises(OSError):
        read_mask(tmp_path, {"path": ["l.png", "absent.png"]}, (10, 8))


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_masks_in_other_colours(tmp_path, mode):
    drawn = np.zeros((8, 10), np.uint8)
    drawn[2:5, 3:] = 255
    image = Image.fromarray(drawn)
    (image.convert(mode) if mode != "P" else image.quantize(2)).save(tmp_path / "m.png")
    found = read_mask(tmp_path, {"path": "m.png"}, (10, 8))
    assert found.shape == drawn.shape
    if mode != "P":
        assert (found == drawn).all()
