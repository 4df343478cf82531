import pytest
import slow_medvill
import torch
from batches import rows_of
from presets import preset, values

from vlp_bench.encoders import bundle
from vlp_bench.encoders.joint import ATTENTION, attention_mask, picture, sample_features
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses.masked_language import IGNORE, mask_words
from vlp_bench.losses.matching import choose_reports, label_sets_differ
from vlp_bench.methods.draws import Draws, hashed
from vlp_bench.methods.medvill import MedViLL
from vlp_bench.types import StudyBatch, Tokens

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "left", "lung", "clear", "##er", "ef", "##fusion", "edema"]
REPORTS = [
    "no effusion",
    "left lung clearer no edema edema left",
    "lung clear",
    "left effusion lung clear no edema",
    "no edema",
    "clear",
]
NAN = float("nan")
LABELS = [[1.0, 0.0], [0.0, 1.0], [1.0, NAN], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]
LENGTH = 12


@pytest.fixture
def build(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB))
    architecture = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }

    def method(**changed) -> MedViLL:
        torch.manual_seed(0)
        text = TextBackbone("tiny", vocab=str(tmp_path / "vocab.txt"), architecture=architecture)
        vision = changed.pop("vision", None) or VisionBackbone("test_resnet", image_size=96, mean=0.0, std=1.0)
        return MedViLL(vision, text, **({"loss_weights": {"mlm": 1.0, "irm": 1.0}, "max_tokens": 20} | changed))

    return method


def make_batch(method: MedViLL, length: int = LENGTH, labels: list[list[float]] = LABELS) -> StudyBatch:
    n, size, tokenizer = len(REPORTS), method.vision.spec.image_size, method.text.tokenizer
    pieces = tokenizer.encode([[r] for r in REPORTS])
    ids = torch.zeros(n, length, dtype=torch.long)
    for i, (a, b) in enumerate(zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True)):
        ids[i, : b - a + 2] = torch.tensor([tokenizer.cls, *pieces.ids[a:b], tokenizer.sep])
    generator = torch.Generator().manual_seed(1)
    return StudyBatch(
        image=torch.randint(0, 256, (n, 1, 1, size, size), generator=generator, dtype=torch.uint8),
        view_mask=torch.ones(n, 1, dtype=torch.bool),
        flipped=torch.zeros(n, 1, dtype=torch.bool),
        text=Tokens(ids, ids != tokenizer.pad, ids, ids),
        labels=torch.tensor(labels),
        study=torch.arange(n) + 3,
        study_id=tuple(map(str, range(n))),
    )


both_variants = pytest.mark.parametrize("variant", ["paper", "official"])
every_attention = pytest.mark.parametrize("attention", ATTENTION)


# Recipes

#: what the presets say, of the paper and of the authors' first public code
RECIPE = {
    "method.variant": ("paper", "official"),
    "vision.name": ("resnet50.tv_in1k", "resnet50.tv_in1k"),
    "vision.weights": ("pretrained", "pretrained"),
    "vision.image_size": (512, 512),
    "text.name": ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
    "text.weights": ("pretrained", "none"),
    "text.vocab": ("pretrained", "pretrained"),
    "data.batch_size": (16, 36),  # on eight devices and on one
    "trainer.max_epochs": (50, 50),
    "trainer.gradient_clip_val": (None, None),
    "select": ("last", "last"),
    "optimizer._target_": ("torch.optim.AdamW", "torch.optim.AdamW"),
    "optimizer.lr": (1e-5, 1e-5),
    "optimizer.betas": ([0.9, 0.999],) * 2,
    "method.weight_decay": (0.0, 0.0),
    "method.attention": ("bar", "bar"),
    "method.s2s_share": (0.75, 0.75),
    "method.mask_share": (0.15, 0.15),
    "method.loss_weights": ({"mlm": 1.0, "irm": 1.0},) * 2,
    "method.inputs.sample": ("study", "study"),
    "method.inputs.only_view": ("AP", "AP"),
    "method.inputs.sections": ("longer", "longer"),
    "method.inputs.max_tokens": (253 + 2, 253 + 2),
    "method.inputs.flip": (0.0, 0.0),
}


@both_variants
def test_the_preset_has_the_recipe(variant):
    cfg = preset(f"medvill_{variant}")
    assert values(cfg, RECIPE) == {key: pair[variant == "official"] for key, pair in RECIPE.items()}
    assert round(256 * cfg.method.visual_share) == 180
    assert variant == "paper" or cfg.optimizer.eps == 1e-6


def test_the_rate_is_constant(build):
    cfg = preset("medvill_paper").method
    method = build(warmup=cfg.warmup, final_lr=cfg.final_lr)
    assert {method.lr_factor(step, 100) for step in range(100)} == {1.0}


# Who sees whom


@pytest.mark.parametrize("open_padding", [False, True])
@pytest.mark.parametrize("kind", ["bi", "s2s", "bar", "noncross"])
def test_masks_agree_with_a_slow_reference(kind, open_padding):
    lengths, image_tokens = [1, 3, 6], 4
    real = torch.arange(6) < torch.tensor(lengths)[:, None]
    mask = attention_mask(kind, image_tokens, real, open_padding=open_padding)
    assert mask.shape == (3, 12, 12)
    assert mask.dtype == torch.bool
    assert mask.any(2).all()
    for b, length in enumerate(lengths):
        # What padding sees changes nothing where nothing sees the padding.
        rows = range(12 if open_padding else image_tokens + 2 + length)
        expected = [
            [slow_medvill.sees(kind, q, k, image_tokens, length, open_padding) for k in range(12)] for q in rows
        ]
        assert mask[b, : len(rows)].tolist() == expected


def test_mixed_gives_each_sample_one_of_two_masks():
    real = torch.arange(4) < torch.tensor([[2], [4]])
    mixed = attention_mask("mixed", 2, real, causal=torch.tensor([True, False]))
    assert torch.equal(mixed[0], attention_mask("s2s", 2, real)[0])
    assert torch.equal(mixed[1], attention_mask("bi", 2, real)[1])


def test_a_mask_prints_as_a_picture():
    real = torch.tensor([[True, True, False]])
    assert picture(attention_mask("bar", 1, real)[0]).split() == [*["#####."] * 3, "####..", "#####.", "###..."]
    assert picture(attention_mask("s2s", 1, real)[0]).split()[:3] == ["###..."] * 3
    assert picture(attention_mask("bar", 1, real, open_padding=True)[0]).split()[:3] == ["######"] * 3


# What is drawn


def test_hidden_words_follow_berts_shares():
    generator = torch.Generator().manual_seed(0)
    shape = (400, 50)
    ids = torch.full(shape, 7)
    words = torch.arange(50).expand(shape) < 40
    draw = torch.rand(shape, generator=generator)
    shown, labels = mask_words(ids, words, draw, torch.full(shape, 9), mask_id=4)
    asked = labels != IGNORE
    assert (labels[asked] == 7).all()
    assert not asked[~words].any()
    assert asked.any(1).all()
    assert float(asked[words].float().mean()) == pytest.approx(0.15, abs=0.01)
    shares = [float((shown[asked] == piece).float().mean()) for piece in (4, 9, 7)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert (shown[~asked] == 7).all()


def test_a_text_without_a_hidden_word_hides_its_first_and_an_empty_one_nothing():
    words = torch.tensor([[True, True], [False, False]])
    shown, labels = mask_words(
        torch.tensor([[5, 6], [3, 0]]), words, torch.ones(2, 2) * 0.9, torch.zeros(2, 2).long(), 4
    )
    assert shown.tolist() == [[4, 6], [3, 0]]
    assert labels.tolist() == [[5, IGNORE], [IGNORE, IGNORE]]


def test_the_last_separator_is_never_hidden(build):
    method = build(mask_share=1.0)
    batch, draws = make_batch(method), Draws(torch.arange(6), fresh=True)
    reports = method.pair(batch, draws)
    _, labels = method.hide(reports._replace(aligned=torch.ones(6, dtype=torch.bool)), draws)
    assert ((labels != IGNORE).sum(1) == reports.real.sum(1) - 1).all()
    assert not (labels == method.text.tokenizer.sep).any()


def test_negatives_have_other_labels_and_are_half():
    labels = torch.tensor(LABELS)
    differs = label_sets_differ(labels, labels)
    # Uncertain, absent and unknown are all not positive.
    assert not differs[0, 2]
    assert not differs[1, 4]
    assert differs[0, 1]
    assert differs[5, 0]
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(6)
    aligned_share = 0.0
    for _ in range(200):
        swap = torch.rand(6, generator=generator) < 0.5
        report, aligned = choose_reports(own, differs, torch.rand(6, 6, generator=generator), swap)
        assert torch.equal(aligned, report == own)
        assert differs[own[~aligned], report[~aligned]].all()
        aligned_share += float(aligned.float().mean()) / 200
    assert aligned_share == pytest.approx(0.5, abs=0.04)


def test_an_image_without_a_possible_negative_keeps_its_report():
    report, aligned = choose_reports(
        torch.arange(2), torch.zeros(2, 2, dtype=torch.bool), torch.rand(2, 2), torch.ones(2, dtype=torch.bool)
    )
    assert report.tolist() == [0, 1]
    assert aligned.all()


def test_a_negative_replaces_only_the_text(build):
    method = build()
    batch = make_batch(method)
    reports = method.eval().pair(batch, Draws(batch.study, fresh=False))
    own = (reports.words == batch.text.ids[:, 1:]).all(1)
    assert torch.equal(own, reports.aligned)
    assert 0 < int(reports.aligned.sum()) < len(batch)


@both_variants
def test_half_of_the_images_get_another_report(build, variant):
    method = build(variant=variant)
    batch = make_batch(method)
    share = [method.pair(batch, Draws(batch.study, fresh=True)).aligned.float().mean() for _ in range(300)]
    assert float(torch.stack(share).mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("draw, piece", [(0.0, 0), (0.999, len(VOCAB) - 1)])
def test_any_piece_of_the_vocabulary_may_replace_a_word(build, draw, piece):
    method = build()
    batch = make_batch(method)
    reports = method.pair(batch, Draws(batch.study, fresh=False))
    # a number between eight and nine tenths of the share that is hidden
    numbers = {"hide": 0.85 * method.mask_share, "replacement": draw}

    class Fixed(Draws):
        def __call__(self, purpose: str, columns: torch.Tensor) -> torch.Tensor:
            return torch.full((6, len(columns)), numbers[purpose])

    shown, _ = method.hide(reports, Fixed(batch.study, fresh=True))
    words = torch.nn.functional.pad(reports.real[:, 1:], (0, 1))
    assert (shown[words] == piece).all()
    assert torch.equal(shown[~words], reports.words[~words])


def test_sampled_features_keep_their_order_and_their_places():
    features = torch.arange(12.0).view(1, 6, 2).expand(3, -1, -1)
    kept, positions = sample_features(features, torch.rand(3, 6), 4)
    assert (positions.diff(dim=1) > 0).all()
    assert torch.equal(kept[..., 0], 2 * positions.float())
    everything, positions = sample_features(features, torch.rand(1, 6), 6)
    assert torch.equal(everything, features)
    assert positions.tolist() == [list(range(6))] * 3


def test_draws_of_validation_follow_from_the_study_and_those_of_training_from_the_seed():
    study, places = torch.tensor([5, 9, 5]), torch.arange(2000)
    fixed = Draws(study, fresh=False)
    u = fixed("look", places)
    assert torch.equal(u, Draws(study, fresh=False)("look", places))
    assert torch.equal(u[0], u[2])
    assert not torch.equal(u[0], u[1])
    assert not torch.equal(u, fixed("hide", places))
    assert torch.equal(u[:, :7], fixed("look", places[:7]))
    assert fixed.shared("look", places).shape == (1, 2000)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Draws(study, fresh=True)("look", places)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1)[0], drawn(1)[2])


def test_hashed_numbers_look_uniform():
    u = hashed(torch.arange(100_000))
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert torch.histc(u, 10, 0, 1).tolist() == pytest.approx([10_000] * 10, rel=0.05)
    pairs = torch.stack([u[:-1], u[1:]])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.02


# The method


def recorded(method: MedViLL, batch: StudyBatch, cells: int) -> dict[str, torch.Tensor]:
    draws = Draws(batch.study, fresh=False)
    place = torch.arange(method.max_tokens)
    columns = {"swap": torch.zeros(1).long(), "report": batch.study, "look": torch.arange(cells)}
    return {n: draws(n, columns.get(n, place)) for n in ("swap", "report", "hide", "replacement", "look")}


@every_attention
def test_paper_agrees_with_a_slow_reference(build, attention):
    method = build(attention=attention, visual_share=0.6).double().eval()
    batch = make_batch(method)
    got = method.losses(batch)
    with torch.no_grad():
        features = method.vision(batch.frontal).tokens
        kind = attention
        if attention == "mixed":
            kind = "s2s" if bool(method.causal(Draws(batch.study, fresh=False))[0]) else "bi"
        expected = slow_medvill.losses(method, features, batch, recorded(method, batch, features.shape[1]), kind)
    assert features.shape[1] == 9
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@both_variants
@every_attention
def test_longer_padding_changes_nothing(build, attention, variant):
    method = build(attention=attention, variant=variant).double().eval()
    short, long = (method.losses(make_batch(method, length=n)) for n in (LENGTH, 20))
    for name in short:
        torch.testing.assert_close(short[name], long[name], rtol=1e-9, atol=1e-12)


@both_variants
def test_the_order_of_the_samples_changes_nothing(build, variant):
    method = build(variant=variant).double().eval()
    batch = make_batch(method)
    plain, other = method.losses(batch), method.losses(rows_of(batch, [3, 0, 4, 1, 5, 2]))
    for name in plain:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-9, atol=1e-12)


@both_variants
@every_attention
def test_every_trainable_parameter_has_a_gradient(build, attention, variant):
    method = build(attention=attention, variant=variant)
    sum(method.losses(make_batch(method)).values()).backward()
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@both_variants
@every_attention
def test_bfloat16_is_finite(build, attention, variant):
    method = build(attention=attention, variant=variant)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(make_batch(method))
        loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_a_vision_transformer_reads_its_patches(build):
    tiny = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    method = build(vision=VisionBackbone("vit_tiny_patch16_224", image_size=32, architecture=tiny))
    features, _ = method.look(make_batch(method), Draws(torch.arange(6), fresh=True))
    assert features.shape == (6, round(16 * 180 / 256), 16)


@pytest.mark.parametrize("name, width", [("resnet50", 2048), ("resnet101", 2048), ("densenet121", 1024)])
def test_the_papers_extractors_give_the_cells_of_their_last_stage(build, name, width):
    method = build(vision=VisionBackbone(name, image_size=64))
    assert method.joint.project.in_features == width
    with torch.no_grad():
        features = method.eval().vision(make_batch(method).frontal[:1], pyramid=True)
    assert features.tokens.shape == (1, 4, width)
    assert torch.equal(features.tokens, features.pyramid[-1].flatten(2).transpose(1, 2))


def test_180_of_256_features_are_seen_in_pretraining(build):
    assert round(build().visual_share * 256) == 180


def test_words_are_guessed_only_where_they_are_hidden(build):
    method = build()
    rows = []
    method.joint.transform.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    batch = make_batch(method)
    method.eval().losses(batch)
    draws = Draws(batch.study, fresh=False)
    _, labels = method.hide(method.pair(batch, draws), draws)
    assert rows == [int((labels != IGNORE).sum())]


def test_the_output_weights_are_the_word_embeddings(build):
    method = build()
    assert not [n for n, p in method.joint.named_parameters() if p.shape == (len(VOCAB), 16)]
    hidden = torch.randn(2, 16)
    expected = method.joint.transform(hidden) @ method.text.bert.embeddings.word_embeddings.weight.T
    torch.testing.assert_close(method.joint.predict(method.text, hidden), expected)


def test_two_cls_are_multiplied_without_a_pooler_when_not_crossing(build):
    joint = build(attention="noncross").joint
    assert joint.pooler is None
    hidden = torch.randn(2, 9, 16)
    expected = joint.matching(hidden[:, 0] * hidden[:, 5])
    torch.testing.assert_close(joint.match(hidden, image_tokens=3), expected)


def test_a_bundle_scores_pairs_with_all_features(build, tmp_path):
    method = build().eval()
    batch = make_batch(method)
    assert set(method.parts()) == {"vision", "text", "joint"}
    bundle.save(tmp_path / "bundle", method.parts(), {"name": "joint"})
    encoders = bundle.load(tmp_path / "bundle")
    assert encoders.compares
    assert encoders.text.tokenizer.vocab == VOCAB
    with torch.no_grad():
        images, texts = encoders.vision(batch.frontal), encoders.text(batch.text)
        scores = encoders.joint.similarity(encoders.text, images, texts, pairs=5)
        torch.testing.assert_close(encoders.similarity(images, texts), scores)
        for i, t in ((0, 0), (2, 1), (5, 3)):
            length = int(batch.text.mask[t].sum())
            words, places = batch.text.ids[t, 1 : length - 1].tolist(), list(range(9))
            hidden = slow_medvill.hidden_states(method, images.tokens[i], places, words, "bi")
            logits = method.joint.match(hidden[None], 9)[0]
            torch.testing.assert_close(scores[i, t], logits[1] - logits[0], rtol=1e-4, atol=1e-5)
    assert scores.shape == (6, 6)


def test_the_official_joint_encoder_comes_back_from_a_bundle(build, tmp_path):
    method = build(variant="official").eval()
    batch = make_batch(method)
    bundle.save(tmp_path / "bundle", method.parts(), {"name": "joint"})
    encoders = bundle.load(tmp_path / "bundle")
    with torch.no_grad():
        images, texts = method.vision(batch.frontal), method.text(batch.text)
        expected = method.joint.similarity(method.text, images, texts)
    torch.testing.assert_close(encoders.similarity(images, texts), expected)


def test_a_batch_with_nothing_to_guess_has_a_loss_of_zero(build, monkeypatch):
    method = build()
    monkeypatch.setattr(method, "asked", lambda labels, aligned: torch.full_like(labels, IGNORE))
    terms = method.losses(make_batch(method))
    assert terms["mlm"].tolist() == 0
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"attention": "some"}, r"method\.attention=some"),
        ({"max_tokens": 40}, r"method\.inputs\.max_tokens=40 needs 41"),
        ({"visual_share": 0.0}, r"method\.visual_share"),
        ({"mask_share": 1.5}, r"method\.mask_share"),
    ],
)
def test_what_cannot_be_is_refused(build, changed, message):
    with pytest.raises(UserError, match=message):
        build(**changed)


def test_data_without_labels_and_too_large_images_are_refused(build):
    method = build()
    with pytest.raises(UserError, match="no labels"):
        method.losses(make_batch(method, labels=[[]] * 6))
    method = build(vision=VisionBackbone("test_resnet", image_size=256), visual_share=1.0)
    with pytest.raises(UserError, match=r"64 image tokens.*40 positions"):
        method.losses(make_batch(method))


# What the authors' code does otherwise


def test_paper_trains_the_cnn_and_official_moves_only_its_statistics(build):
    for variant, trained in (("paper", True), ("official", False)):
        method = build(variant=variant)
        assert all(p.requires_grad == trained for p in method.vision.parameters())
        before = {n: b.clone() for n, b in method.vision.named_buffers() if n.endswith("running_mean")}
        method.train().losses(make_batch(method))
        buffers = dict(method.vision.named_buffers())
        assert all(not torch.equal(buffers[n], b) for n, b in before.items())


def test_positions_of_special_tokens_and_text(build):
    assert build().joint.language_positions(3).tolist() == [0, 1, 2, 3, 4]
    assert build(attention="noncross").joint.language_positions(3).tolist() == [0, 1, 0, 1, 2]
    assert build(variant="official").joint.language_positions(3).tolist() == [0, 0, 0, 1, 2]


def test_official_adds_location_and_kind_after_the_projection(build):
    method = build(variant="official")
    joint, tables = method.joint, method.text.bert.embeddings
    assert not hasattr(joint, "location")
    features, positions = torch.randn(1, 2, joint.project.in_features), torch.tensor([[3, 7]])
    got = joint.embed_image(method.text, features, positions)
    for i, place in enumerate((3, 7)):
        x = (
            joint.project(features[0, i])
            + tables.position_embeddings.weight[place]
            + tables.token_type_embeddings.weight[0]
        )
        torch.testing.assert_close(got[0, i], slow_medvill.normalise(tables.LayerNorm, x))


def test_each_image_has_its_own_subset_and_official_one_for_all(build):
    for variant, same in (("paper", False), ("official", True)):
        method = build(variant=variant, visual_share=0.5)
        _, positions = method.look(make_batch(method), Draws(torch.arange(6), fresh=True))
        assert bool((positions == positions[0]).all()) == same
        _, again = method.look(make_batch(method), Draws(torch.arange(6), fresh=True))
        assert not torch.equal(positions, again)


def test_mixed_is_chosen_by_batch_and_officially_by_sample(build):
    draws = Draws(torch.arange(4000), fresh=True)
    official = build(variant="official", attention="mixed").causal(draws)
    assert float(official.float().mean()) == pytest.approx(0.75, abs=0.03)
    paper = [build(attention="mixed").causal(draws)]
    assert all(bool((p == p[0]).all()) for p in paper)
    method = build(attention="mixed")
    share = sum(float(method.causal(draws)[0]) for _ in range(500)) / 500
    assert share == pytest.approx(0.75, abs=0.07)
    assert build().causal(draws) is None


def test_paper_guesses_the_words_of_matching_pairs_and_official_of_all(build):
    aligned = torch.tensor([True, False])
    labels = torch.tensor([[5, IGNORE], [IGNORE, 6]])
    assert build().asked(labels, aligned).tolist() == [[5, IGNORE], [IGNORE, IGNORE]]
    assert build(variant="official").asked(labels, aligned).tolist() == labels.tolist()


def test_official_pads_to_the_longest_report_and_the_image_sees_the_padding(build):
    official = build(variant="official").eval()
    batch = make_batch(official)
    reports = official.pair(batch, Draws(batch.study, fresh=False))
    assert reports.words.shape == (6, 19)
    assert not (reports.words[:, LENGTH - 1 :]).any()
    features, positions = official.look(batch, Draws(batch.study, fresh=False))

    def first(joint, words, real):
        return joint(official.text, features, positions, words, real)[:, 0]

    shorter = reports.words[:, : LENGTH - 1], reports.real[:, : LENGTH - 1]
    assert not torch.allclose(first(official.joint, *reports[:2]), first(official.joint, *shorter), atol=1e-4)
    paper = build().eval()
    torch.testing.assert_close(first(paper.joint, *reports[:2]), first(paper.joint, *shorter))
