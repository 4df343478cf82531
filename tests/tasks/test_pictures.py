"""What is drawn: what the parts of a bundle allow, and nothing of private data unless somebody says so."""

import json
import time

import cv2
import numpy as np
import pytest
import torch

from vlp_bench.config import compose_verb
from vlp_bench.data.datamodule import assemble
from vlp_bench.data.store import PreparedData
from vlp_bench.engine import evaluate
from vlp_bench.tasks.classification import Classification
from vlp_bench.tasks.pictures import attention, boxed, heated, side_by_side
from vlp_bench.tasks.retrieval import Retrieval
from vlp_bench.tasks.sentence_pictures import about, prototypes, reconstructions
from vlp_bench.tasks.text_pictures import important_words, retrieved, words_of

YELLOW, BLUE = [90, 200, 250], [250, 130, 60]


@pytest.fixture(scope="module")
def told(pretrained):
    """A bundle with prototypes that are in use, and with a decoder that a batch went through."""
    encoders = pretrained("prior")
    encoders.parts["aligner"].bank.in_use.fill_(True)
    decoder = encoders.parts["image_decoder"]
    for name, value in decoder.named_buffers():
        if name.endswith("num_batches_tracked"):
            value.fill_(3)
    return encoders


def of_retrieval(encoders, cell_of, count=8):
    cell = cell_of(encoders, "task=retrieval", "adaptation=none")
    return Retrieval("i2t/R@5").pictures(cell, None, count)


def headings(pictures):
    return {p.group.partition(": ")[2] for p in pictures}


WORDS, FOUND = "the ten words that weigh most", "reports that an image finds"


@pytest.mark.parametrize(
    ("method", "vision", "expected"),
    [
        ("mgca", "tiny", {"similarity with the report, patch by patch", WORDS, FOUND}),
        ("convirt", "vit", {"attention of [CLS]", WORDS, FOUND}),
        ("refers", "tiny", {WORDS, FOUND}),
        ("medvill", "tiny", {"attention of the report's words, patch by patch", FOUND}),
    ],
)
def test_retrieval_shows_what_the_parts_allow(method, vision, expected, pretrained, cell_of):
    pictures = of_retrieval(pretrained(method, vision), cell_of)
    assert headings(pictures) == expected
    assert len(pictures) <= 8
    assert all(p.image.dtype == np.uint8 and p.image.shape[2] == 3 and p.image.std() > 0 for p in pictures)
    assert of_retrieval(pretrained(method, vision), cell_of, 0) == []


def test_a_bank_and_a_decoder_are_shown_once_they_were_trained(told, pretrained, cell_of, monkeypatch):
    monkeypatch.setattr("vlp_bench.tasks.sentence_pictures.LAID_OUT", 30)
    shown = {
        "what sentences query",
        "sentences with and without prototypes",
        "images drawn from their patches and reports",
    }
    assert shown <= headings(of_retrieval(told, cell_of))
    assert not shown & headings(of_retrieval(pretrained("prior"), cell_of))


def test_a_reconstruction_is_what_the_decoder_says(told, cell_of, monkeypatch):
    cell = cell_of(told, "task=retrieval", "adaptation=none")
    decoder, vision = told.parts["image_decoder"], told.vision
    white = (1 - vision.mean[:, :1]) / vision.std[:, :1]
    monkeypatch.setattr(decoder, "forward", lambda patches, context: white.expand(len(patches), 1, 64, 64))
    pictures = reconstructions(cell)
    assert len(pictures) == 4
    side = pictures[0].image.shape[0]
    assert (pictures[0].image[:, -side:] == 255).all()
    assert (pictures[0].image[:, :side] < 255).any()


def test_what_a_sentence_takes_is_what_the_bank_gives_it(told, cell_of, monkeypatch):
    seen = {}
    monkeypatch.setattr("vlp_bench.tasks.sentence_pictures.LAID_OUT", 30)
    monkeypatch.setattr(
        "vlp_bench.tasks.sentence_pictures._queries",
        lambda sentences, weights: seen.update(zip(sentences, weights, strict=True)) or np.zeros((2, 2, 3), np.uint8),
    )
    aligner = told.aligner
    cell = cell_of(told, "task=retrieval", "adaptation=none")
    assert len(prototypes(cell)) == 2
    for sentence, weights in seen.items():
        vector = aligner.sentences(told.encode_texts([sentence])).vectors[:, :1]
        mixture = aligner.bank(vector, aligner.bank.temperature)[0, 0]
        torch.testing.assert_close(torch.from_numpy(weights) @ aligner.bank.vectors, mixture, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("no evidence of pneumothorax", ("pneumothorax", False)),
        ("The heart is enlarged.", ("heart", True)),
        ("Heart size is within usual limits", ("heart", False)),
        ("Effusion and a nodule", ("effusion", True)),
        ("Comparison is made", None),
    ],
)
def test_what_a_sentence_is_about(sentence, says):
    assert about(sentence) == says


def test_words_are_put_together_again(pretrained):
    encoders = pretrained("mgca")
    tokenizer = encoders.text.tokenizer
    sentences = ["small left pleural effusion", "xylophonic cardiomegaly"]
    tokens = assemble(tokenizer.encode([sentences]), np.arange(1), tokenizer, 64)
    words = words_of(tokenizer, tokens, 0)
    assert words.names[:4] == ["small", "left", "pleural", "effusion"]
    assert len(words.names) == 6
    ones = np.ones(tokens.ids.shape[1])
    assert words.sums(ones).sum() == (tokens.word >= 0).sum()
    assert words.sums(ones)[0] == (tokens.word[0] == 0).sum()


@pytest.mark.parametrize("method", ["mgca", "gloria", "medvill"])
def test_patch_scores_of_a_report_are_the_mean_of_those_of_its_words(method, pretrained, cell_of):
    encoders = pretrained(method)
    images = encoders.vision(cell_of(encoders).pixels(np.arange(2)))
    texts = encoders.encode_texts(["small left pleural effusion", "the heart is enlarged"])
    each, whole = encoders.token_similarity(images, texts), encoders.local_similarity(images, texts)
    inner = texts.index.word >= 0
    assert (each[~inner] == 0).all()
    mean = each.sum(1) / inner.sum(1, keepdim=True)
    if method == "gloria":  # unit length of the mean word: the same but for a factor
        mean, whole = (torch.nn.functional.normalize(x, dim=1) for x in (mean, whole))
    torch.testing.assert_close(mean, whole, atol=2e-5, rtol=1e-4)
    if method == "medvill":
        assert (each.sum(2)[inner] < 1).all()
        assert (each >= 0).all()


def test_words_of_an_encoder_that_does_not_cross_see_no_image(pretrained, cell_of):
    encoders = pretrained("medvill", "tiny", "method.attention=noncross")
    assert attention(cell_of(encoders, "task=retrieval", "adaptation=none"), 2) == []


def test_the_own_report_is_marked_at_its_place(pretrained, cell_of, monkeypatch):
    cell = cell_of(pretrained("mgca"), "task=retrieval", "adaptation=none")
    marked = []
    monkeypatch.setattr(
        "vlp_bench.tasks.text_pictures._retrieved_picture",
        lambda gray, own, found, place: marked.append((own, found, place)) or np.zeros((2, 2, 3), np.uint8),
    )
    pictures = retrieved(cell, 5)
    for picture, (own, found, place) in zip(pictures, marked, strict=True):
        assert picture.caption.startswith(f"own report at place {place} of ")
        assert [mine for _, _, mine in found] == [n == place for n in (1, 2, 3)]
        assert all(text == own for text, _, mine in found if mine)
        assert [score for _, score, _ in found] == sorted((score for _, score, _ in found), reverse=True)


def test_words_that_weigh_most_are_those_of_the_attention(pretrained, cell_of, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vlp_bench.tasks.text_pictures._words_picture",
        lambda gray, names, weights, maps: drawn.append((names, weights, maps)) or np.zeros((2, 2, 3), np.uint8),
    )
    important_words(cell_of(pretrained("mgca"), "task=retrieval", "adaptation=none"), 3)
    for names, weights, maps in drawn:
        assert len(names) == len(weights) == len(maps)
        # [CLS] and [SEP] keep the rest
        assert 0 < weights.sum() < 1
        assert (weights > 0).all()


def test_class_activation_of_each_label_in_turn(pretrained, cell_of):
    cell, task = cell_of(pretrained("mgca"), "adaptation=probe_cached"), Classification("auroc")
    outcome = task.run(cell)
    pictures = task.pictures(cell, outcome, 6)
    names = [p.caption.partition(":")[0] for p in pictures]
    assert len(set(names[:4])) == 4
    assert len(set(names[4:])) == 2
    for picture in pictures:
        assert (picture.image == YELLOW).all(2).any()
        assert (picture.image == BLUE).all(2).any()


def test_a_vit_without_texts_shows_the_attention_of_its_cls(pretrained, cell_of):
    pictures = Classification("auroc").pictures(cell_of(pretrained("moco", "vit")), None, 2)
    assert headings(pictures) == {"attention of [CLS]"}
    assert len(pictures) == 2


def test_the_probe_of_a_trained_head_gives_its_logits(pretrained, cell_of):
    from vlp_bench.tasks.classification import Classifier

    cell = cell_of(pretrained("mgca"), "adaptation=probe")
    scale = torch.rand(2, 96) + 0.5
    vision = cell.encoders.vision
    form = (vision.spec.pooled_dim, 4, False, cell.adaptation, None)
    model = Classifier({"vision": vision}, *form, *scale).eval()
    pooled = cell.encoders.vision(cell.pixels(np.arange(3))).pooled
    torch.testing.assert_close(
        model.probe()(pooled.double()).float(), model.head((pooled - scale[0]) / scale[1]), atol=1e-4, rtol=1e-4
    )


def test_boxes_and_heat_lie_where_they_should():
    gray = np.zeros((32, 32), np.uint8)
    drawn = boxed(gray, np.array([[8.0, 4, 16, 12]]), np.zeros((0, 4)))
    y, x = np.nonzero((drawn == YELLOW).all(2))
    assert (x.min(), y.min(), x.max(), y.max()) == (56, 28, 111, 83)
    grid = np.zeros((4, 4))
    grid[1, 2] = 1
    hot = heated(gray, grid).sum(2)
    assert np.unravel_index(hot.argmax(), hot.shape)[0] in range(56, 112)
    assert np.unravel_index(hot.argmax(), hot.shape)[1] in range(112, 168)
    assert (heated(gray, np.ones((4, 4))) == 0).all()
    assert side_by_side(drawn, drawn).shape == (224, 2 * 224 + 4, 3)


@pytest.fixture
def evaluated(store, cache, tmp_path):
    """Runs an evaluation of a random network on the target of these tests."""

    def run(*overrides):
        common = ["backbone=random", "vision=tiny", "trainer=cpu", "target.studies=200", "adaptation=probe_cached"]
        cfg = compose_verb("evaluate", [*common, f"paths.cache={cache}", "resamples=0", "pictures=2", *overrides])
        return evaluate.run(cfg, tmp_path / "run")

    return run


def test_private_data_leaves_no_picture_unless_allowed(evaluated, monkeypatch):
    monkeypatch.setattr(PreparedData, "private", True)
    out = evaluated()
    assert (out / "result.json").exists()
    assert not list(out.rglob("*.png"))
    out = evaluated("privacy.allow_media=true", "overwrite=true")
    assert len(list(out.rglob("*.png"))) == 2


def test_overwriting_replaces_the_pictures(evaluated):
    out = evaluated()
    first = json.loads((out / "pictures" / "index.json").read_text())
    assert [cv2.imread(str(out / "pictures" / p["file"])).shape for p in first] == [(224, 452, 3)] * 2
    evaluated("overwrite=true", "pictures=1")
    assert len(list(out.rglob("*.png"))) == 1
    evaluated("overwrite=true", "pictures=0")
    assert not (out / "pictures").exists()


@pytest.mark.parametrize("private", [False, True])
def test_wandb_gets_numbers_and_only_pictures_that_may_be_kept(private, evaluated, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(PreparedData, "private", private)
    out = evaluated("logger=wandb")
    (log,) = out.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):  # its own process writes the file, and may do so after the run is over
        sent = log.read_bytes()
        if b"trivial/auroc" in sent:
            break
        time.sleep(0.1)
    assert b"test/auroc" in sent
    assert b"trivial/auroc" in sent
    assert len(list(log.parent.glob("files/**/*.png"))) == (0 if private else 2)


def test_without_a_logger_nothing_is_sent(evaluated):
    assert not (evaluated() / "wandb").exists()
