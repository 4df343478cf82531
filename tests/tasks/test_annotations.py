"""Which masks and boxes count on which images, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import folder
from vlp_bench.data.store import PreparedData
from vlp_bench.errors import UserError
from vlp_bench.tasks.annotations import UNKNOWN, Annotations, shown
from vlp_bench.tasks.base import Target

BOX = {"label": "Mass", "xywh": [20, 10, 20, 30]}
WIDTH, HEIGHT = 80, 100  # stored in a square of 50: half the size, five columns of black on both sides


@pytest.fixture
def store_of(tmp_path):
    """Prepared data of 80 x 100 px pictures, from (labels, boxes, whether there is a mask), one a patient."""

    def make(*pictures, split=("train", "val", "test"), mask_size=(WIDTH, HEIGHT)):
        raw = tmp_path / "raw"
        raw.mkdir()
        rows = []
        mask = np.zeros(mask_size[::-1], np.uint8)
        mask[40:60, 20:40] = 255
        Image.fromarray(mask).save(raw / "mask.png")
        for n, (labels, boxes, masked) in enumerate(pictures):
            Image.fromarray(np.full((HEIGHT, WIDTH), 90, np.uint8)).save(raw / f"{n}.png")
            masks = [{"label": m, "path": "mask.png"} for m in masked]
            rows.append({"image_path": f"{n}.png", "view": "PA", "labels": labels, "split": split[n % len(split)],
                         "boxes_json": json.dumps(boxes), "masks_json": json.dumps(masks)})  # fmt: skip
        pd.DataFrame(rows).to_csv(raw / "metadata.csv", index=False)
        prepare(folder.read(raw), tmp_path / "prepared", Plan(50), private=False)
        return PreparedData(tmp_path / "prepared")

    return make


def target(store, labels=("Mass",)):
    return Target(store, name="mine", labels=list(labels))


def row_of(store, name):
    return int(np.flatnonzero(store.images["image_id"] == f"{name}.png")[0])


EVERY_SPLIT = [("Mass", [BOX], ["Mass"]), ("Mass", [BOX], ["Mass"]), ("Mass", [BOX], ["Mass"])]


def test_what_is_known_of_an_image(store_of):
    store = store_of(
        *EVERY_SPLIT,
        ("Normal", [], []),  # without the finding: an empty mask
        ("Mass", [], []),  # with it and not outlined: unknown
        ("", [], []),  # without labels: unknown
        ("", [], ["Mass"]),  # outlined without a label: known
        split=("train", "val", "test", "train"),
    )
    truth = Annotations(target(store), "masks")
    assert truth.labels == ["Mass"]
    known = {n: bool(truth.known[row_of(store, n), 0]) for n in range(7)}
    assert known == {0: True, 1: True, 2: True, 3: True, 4: False, 5: False, 6: True}
    assert truth.mask(row_of(store, 3)).max() == 0
    assert (truth.mask(row_of(store, 4)) == UNKNOWN).all()
    assert sorted(truth.rows("train")) == sorted([row_of(store, 0), row_of(store, 3)])


def test_masks_and_boxes_lie_where_they_were_drawn(store_of):
    store = store_of(*EVERY_SPLIT)
    drawn = Annotations(target(store), "masks").mask(0)[0]
    assert np.argwhere(drawn).min(0).tolist() == [20, 15]  # half of (40, 20), five columns to the right
    assert drawn.sum() == 10 * 10
    boxes = Annotations(target(store), None)
    assert boxes.boxes(0).tolist() == [[15.0, 5.0, 25.0, 20.0, 0.0]]
    filled = Annotations(target(store), "boxes").mask(0)[0]
    assert np.argwhere(filled).min(0).tolist() == [5, 15]
    assert np.argwhere(filled).max(0).tolist() == [19, 24]
    assert filled.sum() == 15 * 10


def test_structures_that_are_no_label_are_known_where_they_are_outlined(store_of):
    store = store_of(("Mass", [], ["lung"]), ("", [], ["lung"]), ("", [], ["lung"]), ("Mass", [BOX], []))
    truth = Annotations(target(store), "masks", ["lung"])
    assert truth.known[:, 0].tolist() == [n != row_of(store, 3) for n in range(4)]
    assert [len(truth.rows(s)) for s in ("train", "val", "test")] == [1, 1, 1]


def test_without_labels_in_the_data_structures_can_be_outlined(store_of):
    store = store_of(("", [], ["lung"]), ("", [], ["lung"]), ("", [], ["lung"]))
    truth = Annotations(Target(store, name="mine"), "masks", ["lung"])
    assert truth.known.all()


def test_labels_without_annotations_are_left_out_and_named(store_of):
    store = store_of(*EVERY_SPLIT, ("Nodule", [], []))
    truth = Annotations(target(store, ["Nodule", "Mass"]), "masks")
    assert truth.labels == ["Mass"]
    assert truth.missing == ["Nodule"]
    assert truth.known[:, 0].all()


@pytest.mark.parametrize(
    ("masks", "labels", "message"),
    [
        ("masks", None, r"no masks of Mass among its training images.*boxes of: Mass \(3\).*Use task.masks=boxes"),
        ("masks", ["Mass", "lung"], r"no masks of Mass among.*masks of: lung \(3\)"),
        ("boxes", ["lung"], r"no boxes of lung.*Use task.masks=masks"),
        (None, ["lung"], r"no boxes of lung.*Choose among them with task.labels"),
    ],
)
def test_what_is_missing_is_said_with_what_there_is(store_of, masks, labels, message):
    store = store_of(*[("Mass", [BOX], ["lung"])] * 3)
    with pytest.raises(UserError, match=message):
        Annotations(target(store), masks, labels)


def test_masks_of_another_size_are_not_there(store_of):
    store = store_of(*EVERY_SPLIT, mask_size=(WIDTH + 1, HEIGHT))
    with pytest.raises(UserError, match=r"prepare_report\.json"):
        Annotations(target(store), "masks")


@pytest.mark.parametrize("xywh", [[70, 10, 20, 30], [-9, 10, 20, 30], [20, 80, 20, 30], [300, 300, 10, 10]])
def test_boxes_outside_the_picture_are_refused(store_of, xywh):
    store = store_of(*EVERY_SPLIT, ("Mass", [{"label": "Mass", "xywh": xywh}], []))
    x, y, w, h = xywh
    corners = rf"{x}, {y}, {x + w}, {y + h} on a picture of 80 x 100"
    with pytest.raises(UserError, match=rf"1 boxes of target=mine lie outside.*3\.png \(Mass.*{corners}"):
        Annotations(target(store), None)
    Annotations(target(store), "masks")


def test_boxes_up_to_the_border_are_not_refused(store_of):
    border = {"label": "Mass", "xywh": [0, 0, WIDTH, HEIGHT]}
    store = store_of(*[("Mass", [border], [])] * 3)
    assert Annotations(target(store), None).boxes(0).tolist() == [[5, 0, 45, 50, 0]]


def test_images_and_splits_without_anything_known_are_refused(store_of):
    store = store_of(
        ("Mass|Edema", [BOX, {**BOX, "label": "Edema"}], []), ("Mass|Edema", [BOX], []), ("Normal", [], [])
    )
    truth = Annotations(target(store, ["Mass", "Edema"]), None)
    assert len(truth.rows("val")) == 1
    with pytest.raises(UserError, match="no val image on which each of Mass, Edema is known"):
        truth.rows("val", every=True)
    with pytest.raises(UserError, match="None of the 1 test images"):
        truth.require_positives(truth.rows("test"), "test")


def test_an_unknown_option_is_refused(store_of):
    with pytest.raises(UserError, match=r"task\.masks=mask"):
        Annotations(target(store_of(*EVERY_SPLIT)), "mask")


def test_training_sees_whole_images_too():
    assert [shown(name) for name in ("crop", None, "scale_rotate")] == [None, None, "scale_rotate"]


def test_names_of_masks_are_those_of_the_masks(store):
    assert [set(n) for n in store.mask_labels] == [
        {m["label"] for m in store.masks(i)} for i in range(len(store.images))
    ]


def test_synthetic_findings_have_masks_and_boxes(store):
    synthetic = Target(store, name="synthetic", labels=["Cardiomegaly", "Pneumothorax"])
    masks, boxes = Annotations(synthetic, "masks"), Annotations(synthetic, None)
    assert masks.labels == boxes.labels == ["Cardiomegaly", "Pneumothorax"]
    row = int(np.flatnonzero(masks.positive[:, 0] & boxes.positive[:, 0])[0])
    inside = np.argwhere(masks.mask(row)[0] == 1)
    left, top, right, bottom, _ = boxes.boxes(row)[boxes.boxes(row)[:, 4] == 0][0]
    assert np.abs(inside.min(0) - [top, left]).max() <= 2
    assert np.abs(inside.max(0) + 1 - [bottom, right]).max() <= 2
