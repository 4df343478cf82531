"""Maps point where a bright box was planted; what has no map, or no box, is refused with a way out."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlp_bench.config import compose_verb, plain
from vlp_bench.encoders.aligner import Aligner
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.engine.data import ensure
from vlp_bench.errors import UserError
from vlp_bench.tasks.base import Target
from vlp_bench.tasks.class_maps import seen
from vlp_bench.tasks.grounding import Grounding, boxed_items, boxed_labels
from vlp_bench.types import ImageFeatures

SIDE = 64
#: Of `planted`: a box that lies on the grid of the cells below, in pixels of a 64 px image.
BOX = 16


class Brightness(VisionBackbone):
    """Cells of 8 px that say how bright the image is there."""

    def __init__(self):
        nn.Module.__init__(self)
        self.is_vit = False
        self.spec = SimpleNamespace(image_size=SIDE)

    def forward(self, image, *, pyramid=False, saliency=False):
        x = F.avg_pool2d(image.float() / 255, 8)
        tokens = x.flatten(2).transpose(1, 2)
        kept = (x,) * 4 if pyramid else ()
        return ImageFeatures(x.mean((2, 3)), tokens, (8, 8), tokens[..., 0] if saliency else None, kept)


class Brightest(Aligner):
    """Every text is about what is bright."""

    def embed_images(self, images):
        return images.pooled

    def embed_texts(self, texts):
        return texts.pooled[:, :1]

    def local_similarity(self, images, texts):
        return images.tokens[..., 0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory, cache):
    """80 dark images, every other one with a bright square somewhere and a box around it."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    rows = []
    for n in range(80):
        image = rng.integers(0, 40, (SIDE, SIDE), np.uint8)
        boxes = []
        if n % 2 == 0:
            x, y = rng.integers(0, SIDE // 8 - 1, 2) * 8
            image[y : y + BOX, x : x + BOX] = 250
            boxes = [{"label": "Spot", "xywh": [int(x), int(y), BOX, BOX]}]
        cv2.imwrite(str(folder / f"{n}.png"), image)
        split = ("train", "val", "test", "test")[n // 2 % 4]
        labels = "Spot" if boxes else "No Finding"
        rows.append((f"{n}.png", f"p{n}", "PA", labels, split, json.dumps(boxes), "a spot is seen in the lung"))
    names = ["image_path", "patient_id", "view", "labels", "split", "boxes_json", "report_text"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "metadata.csv", index=False)
    section = compose_verb("evaluate", ["target=folder", f"target.raw_dir={folder}"]).target
    return Target(ensure(plain(section), cache, 74), name="planted", labels=["Spot"])


@pytest.fixture(scope="module")
def bright(pretrained):
    text = pretrained("mgca").text
    return Encoders({"vision": Brightness(), "text": text, "aligner": Brightest()}, {"name": "bright"})


@pytest.mark.parametrize("kind", ["local", "attention", "cam"])
def test_maps_point_at_the_planted_box(kind, bright, planted, cell_of):
    cell = cell_of(bright, "task=grounding", "adaptation=probe_cached", target=planted)
    outcome = Grounding("pointing", map=kind).run(cell)
    value = {name: entry["value"] for name, entry in outcome.metrics.items()}
    assert value["pointing"] == value["pointing/Spot"] == value["pointing/macro"] == 1
    assert value["box_iou@0.5"] == 1
    assert value["iou"] > 0.6
    assert value["cnr"] > 2
    assert outcome.metrics["pointing"]["n"] == len(outcome.predictions) == 20
    assert outcome.metrics.keys() == outcome.trivial.keys()
    for name in ("pointing", "cnr", "box_iou@0.3"):
        assert outcome.predictions[f"mean_{name}"].mean() == pytest.approx(value[name])


def test_what_points_away_is_worse_than_a_random_point(bright, planted, cell_of, monkeypatch):
    monkeypatch.setattr(Brightest, "local_similarity", lambda self, images, texts: -images.tokens[..., 0])
    outcome = Grounding("pointing").run(cell_of(bright, "task=grounding", "adaptation=none", target=planted))
    assert outcome.metrics["pointing"]["value"] == 0
    assert outcome.metrics["cnr"]["value"] < -2
    floors = outcome.facts["floors"]
    assert floors["random point"]["pointing"] == pytest.approx((BOX / SIDE) ** 2, rel=0.05)
    assert outcome.trivial["pointing"]["value"] == max(floor["pointing"] for floor in floors.values())


def test_the_usual_place_is_where_boxes_usually_are(bright, planted, cell_of, monkeypatch):
    always = np.array([[8.0, 8, 24, 24]])
    monkeypatch.setattr(
        "vlp_bench.tasks.grounding.boxed_items",
        lambda *args: (items := boxed_items(*args))._replace(boxes=[always] * len(items.boxes)),
    )
    outcome = Grounding("pointing").run(cell_of(bright, "task=grounding", "adaptation=none", target=planted))
    assert outcome.facts["floors"]["usual place"]["pointing"] == outcome.trivial["pointing"]["value"] == 1
    assert outcome.trivial["iou"]["value"] == 1


def test_pictures_show_the_box_that_was_found(bright, planted, cell_of):
    cell, task = cell_of(bright, "task=grounding", "adaptation=none", target=planted), Grounding("pointing")
    outcome = task.run(cell)
    pictures = task.pictures(cell, outcome, 3)
    assert len(pictures) == 3
    assert task.pictures(cell, outcome, 0) == []
    for picture in pictures:
        assert picture.image.dtype == np.uint8
        assert picture.caption.startswith("Spot: IoU of the boxes")
        blue = (picture.image == np.array([250, 130, 60])).all(2)
        assert blue.any()


def test_the_whole_image_is_seen(bright, planted, cell_of):
    """Boxes at the border would be cut off by the centre crop of other tasks."""
    cell = cell_of(bright, "task=grounding", "adaptation=none", "adaptation.batch_size=3", target=planted)
    items = boxed_items(planted, "test", ["Spot"])
    assert min(b.min() for b in items.boxes) == 0
    rows = items.rows[:7]
    found = torch.cat([features.tokens[..., 0] for _, features in seen(cell, rows)]).unflatten(1, (8, 8))
    small = [cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in planted.store.pixels(rows)]
    cells = np.stack(small).reshape(-1, 8, 8, 8, 8).mean((2, 4)) / 255
    np.testing.assert_allclose(found.numpy(), cells, atol=1e-5)


def test_bundles_of_every_kind(pretrained, cell_of):
    for method in ("mgca", "gloria", "prior", "medvill"):
        cell = cell_of(pretrained(method), "task=grounding", "adaptation=none")
        outcome = Grounding("pointing", prompt="{label} is seen").run(cell)
        assert 0 <= outcome.metrics["pointing/macro"]["value"] <= 1, method
        assert outcome.facts["prompts"]["Pneumothorax"] == "pneumothorax is seen"


@pytest.mark.parametrize("kind", ["attention", "cam"])
def test_a_vit_has_the_attention_of_its_cls_and_classes_of_its_patches(kind, pretrained, cell_of):
    cell = cell_of(pretrained("mgca", "vit"), "task=grounding", "adaptation=probe_cached")
    outcome = Grounding("pointing", map=kind).run(cell)
    assert outcome.labels == cell.target.labels
    assert outcome.facts["read"].endswith({"cam": "patches of a ViT", "attention": "same for every label"}[kind])


def test_class_maps_average_to_the_logit(pretrained, cell_of):
    from vlp_bench.tasks.class_maps import class_maps, last_map
    from vlp_bench.tasks.classification import linear_probe

    encoders = pretrained("mgca")
    cell = cell_of(encoders, "adaptation=probe_cached")
    rows = {"train": cell.train_rows()[:60], "val": cell.target.rows("val")}
    probe = linear_probe(cell, {k: cell.features(r) for k, r in rows.items()}, rows)
    found = encoders.vision(cell.pixels(rows["val"][:3]), pyramid=True)
    torch.testing.assert_close(last_map(encoders.vision, found).mean((1, 2)), found.pooled)
    image, label = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 1, 0])
    maps = class_maps(encoders.vision, probe, [2, 3])(found, image, label)
    logits = probe(found.pooled.double())[image, torch.tensor([3, 2, 3, 2])]
    torch.testing.assert_close(maps.mean((1, 2)), logits)


def test_refusals(pretrained, cell_of):
    def run(method, *overrides, **options):
        return Grounding("pointing", **options).run(cell_of(pretrained(method), "task=grounding", *overrides))

    with pytest.raises(UserError, match=r"task\.map=saliency: expected one of local, attention, cam"):
        Grounding("pointing", map="saliency")
    with pytest.raises(UserError, match=r"refers tiny has no maps of task\.map=local: .*aligns no patches"):
        run("refers", "adaptation=none")
    with pytest.raises(UserError, match=r"only networks with a \[CLS\]"):
        run("mgca", "adaptation=none", map="attention")
    with pytest.raises(UserError, match=r"has no \{label\}: every label would have the same map"):
        run("mgca", "adaptation=none", prompt="a finding")
    with pytest.raises(UserError, match="needs encoders that compare"):
        run("moco", "adaptation=none")
    with pytest.raises(UserError, match="use adaptation=probe_cached"):
        run("moco", "adaptation=none", map="cam")
    with pytest.raises(UserError, match=r"no boxes of Nodule on its test images. Boxes there: .*Pleural Effusion \("):
        run("mgca", "adaptation=none", labels=["Nodule", "Edema"])
    with pytest.raises(UserError, match=r"target\.labels lacks Edema"):
        run("mgca", "adaptation=probe_cached", map="cam", labels=["Edema"])


def test_a_target_without_boxes_is_refused(store, monkeypatch):
    monkeypatch.setattr(type(store), "boxes", lambda self, row: [])
    with pytest.raises(UserError, match=r"has no boxes of Edema on its test images\. Boxes there: none"):
        boxed_labels(Target(store, name="bare", labels=["Edema"]), "test", None)
