import math
from functools import partial

import numpy as np
import pytest
import slow_prior
import torch
from batches import rows_of
from presets import preset, values
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader

from vlp_bench.data.datamodule import assemble
from vlp_bench.encoders import bundle
from vlp_bench.encoders.decoders import ImageDecoder
from vlp_bench.encoders.pooling import SentencePool
from vlp_bench.encoders.prototypes import SentenceBank
from vlp_bench.encoders.sentence_aligner import Sentences, channel_major
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.encoders.vision import VisionBackbone
from vlp_bench.errors import UserError
from vlp_bench.losses import contrastive
from vlp_bench.losses.contrastive import info_nce
from vlp_bench.losses.precision import unit
from vlp_bench.losses.reconstruction import assign, pick
from vlp_bench.losses.siamese import negative_cosine
from vlp_bench.methods import prior
from vlp_bench.methods.prior import PRIOR, Stages, anneal
from vlp_bench.types import StudyBatch, Tokens

REPORTS = [
    ["no effusion", "heart normal", "lungs clear"],
    ["left effusion"],
    ["small nodule", "edema improved", "no pneumothorax", "heart enlarged", "lungs clear"],
    ["heart enlarged", "no edema"],
]
EARLY = {"global": 1.0, "local_image": 1.0, "local_text": 1.0}
LATE = {"image_reconstruction": 1.0, "sentence_generation": 10.0, "prototype_divergence": 1.0, "report_alignment": 1.0}
WEIGHTS = {
    "stage1": EARLY,
    "stage2": EARLY | {"prototype": 10.0},
    "stage3": EARLY | {"global": 10.0, "prototype": 10.0} | LATE,
}
STAGES = {"lengths": [20, 30, 50], "warmup": [1, 1, 5], "lr": [1.0, 1.0, 0.5], "start_lr": [0.01, 0.01, 0.002]}
OPTIONS = {
    "loss_weights": WEIGHTS,
    "stages": STAGES,
    "temperatures": {"reports": 0.1, "sentences": 0.05},
    "gumbel": {"decay": "exponential", "start": 0.9, "end": 0.01},
    "embed_dim": 16,
    "heads": 2,
    "prototypes": 6,
    "queries": 4,
    "decoder": {"layers": 2, "heads": 2, "hidden": 24, "dropout": 0.1},
}


def vision(kind: str) -> VisionBackbone:
    if kind == "cnn":
        return VisionBackbone("test_resnet", image_size=64)
    tiny = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionBackbone("vit_tiny_patch16_224", image_size=64, architecture=tiny)


def build(kind: str = "cnn", **changed) -> PRIOR:
    torch.manual_seed(0)
    architecture = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return PRIOR(vision(kind), TextBackbone("tiny", architecture=architecture), **(OPTIONS | changed))


def make_batch(method: PRIOR, reports: list[list[str]] = REPORTS, padding: int = 0) -> StudyBatch:
    tokenizer, n = method.text.tokenizer, len(reports)
    text = assemble(tokenizer.encode(reports), np.arange(n), tokenizer, 40)
    values = {"ids": tokenizer.pad, "mask": False, "word": -1, "sentence": -1}
    text = Tokens(**{k: torch.nn.functional.pad(getattr(text, k), (0, padding), value=v) for k, v in values.items()})
    generator = torch.Generator().manual_seed(1)
    return StudyBatch(
        image=torch.randint(0, 256, (n, 1, 1, 64, 64), generator=generator, dtype=torch.uint8),
        view_mask=torch.ones(n, 1, dtype=torch.bool),
        flipped=torch.zeros(n, 1, dtype=torch.bool),
        text=text,
        labels=torch.full((n, 2), float("nan")),
        study=torch.arange(n),
        study_id=tuple(map(str, range(n))),
    )


both_variants = pytest.mark.parametrize("variant", ["paper", "official"])
both_encoders = pytest.mark.parametrize("kind", ["vit", "cnn"])
each_stage = pytest.mark.parametrize("stage", [1, 2, 3])


@each_stage
@both_encoders
def test_paper_agrees_with_a_slow_reference(kind, stage):
    method = build(kind, stage=stage).double().eval()
    batch = make_batch(method)
    got = method.losses(batch)
    with torch.no_grad():
        image, text = method.vision(batch.frontal), method.text(batch.text)
        pixels = method.vision.normalise(batch.frontal)[:, 0]
        expected = slow_prior.losses(method, image, text, pixels, stage, method.tau())
    assert got.keys() == expected.keys() == WEIGHTS[f"stage{stage}"].keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@both_variants
@both_encoders
@each_stage
def test_longer_padding_and_the_order_of_the_studies_change_nothing(kind, variant, stage):
    method = build(kind, variant=variant, stage=stage).double().eval()
    plain = method.losses(make_batch(method))
    longer = method.losses(make_batch(method, padding=7))
    other = method.losses(rows_of(make_batch(method), [2, 0, 3, 1]))
    for name in plain:
        torch.testing.assert_close(plain[name], longer[name], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(plain[name], other[name], rtol=1e-8, atol=1e-9)


@both_variants
@both_encoders
@pytest.mark.parametrize("sentence_pool", ["attention", "mean"])
def test_every_trainable_parameter_has_a_finite_gradient_in_some_stage(kind, variant, sentence_pool):
    method, seen = build(kind, variant=variant, sentence_pool=sentence_pool), {}
    for stage in (1, 2, 3):
        method.stage = stage
        method.zero_grad()
        terms = method.losses(make_batch(method))
        sum(terms.values()).backward()
        seen[stage] = {n for n, p in method.named_parameters() if p.grad is not None}
        assert all(x.isfinite() for x in terms.values())
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert seen[3] == {n for n, p in method.named_parameters() if p.requires_grad}
    assert seen[2] - seen[1] == {"heads.bank.vectors"}
    assert {n.split(".")[0] for n in seen[3] - seen[2]} == {"image_decoder", "sentence_decoder"}


@both_variants
@both_encoders
def test_bfloat16_is_finite(kind, variant):
    method = build(kind, variant=variant, stage=3)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(make_batch(method))
        loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_softmax_attention_makes_the_weights_of_a_query_compete():
    sigmoid, softmax = (build(attention=a, stage=3).eval() for a in ("sigmoid", "softmax"))
    patches, sentences = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = softmax.heads.attention(patches, sentences, mask)
    torch.testing.assert_close(found.sentence_to_patch.sum(2), torch.ones(2, 5))
    torch.testing.assert_close(found.patch_to_sentence.sum(2), torch.ones(2, 3))
    other = sigmoid.heads.attention(patches, sentences, mask)
    assert other.patch_to_sentence.sum(2).min() < 0.99 or other.patch_to_sentence.sum(2).max() > 1.01
    for context in (found, other):
        assert torch.all(context.patch_to_sentence[1, :, 2:] == 0)


# Recipes

ADAM = {"_partial_": True, "lr": 1e-5, "betas": [0.9, 0.999]}
#: what the presets say, of paper and supplement and of the authors' code
RECIPE = {
    "method.variant": ("paper", "official"),
    "vision.name": ("resnet50.tv_in1k", "resnet50.tv_in1k"),
    "vision.weights": ("pretrained", "pretrained"),
    "vision.image_size": (224, 224),
    "vision.mean": (0.4755, 0.4755),
    "vision.std": (0.3011, 0.3011),
    "text.name": ("emilyalsentzer/Bio_ClinicalBERT", "emilyalsentzer/Bio_ClinicalBERT"),
    "text.weights": ("pretrained", "pretrained"),
    "data.batch_size": (64, 98),  # on two devices and on six
    "trainer.max_epochs": (100, 150),
    "trainer.precision": ("16-mixed", "16-mixed"),
    "trainer.sync_batchnorm": (True, True),
    "trainer.gradient_clip_val": (None, None),
    "select": ("last", "last"),
    "optimizer": (ADAM | {"_target_": "torch.optim.Adam"}, ADAM | {"_target_": "torch.optim.AdamW"}),
    "method.weight_decay": (1e-6, 1e-6),
    "method.decay_all": (True, True),
    "method.stages.lengths": ([20, 30, 50], [20, 30, 100]),
    "method.stages.warmup": ([1, 1, 5], [1, 1, 5]),
    "method.temperatures": ({"reports": 0.01, "sentences": 0.01},) * 2,
    "method.gumbel.decay": ("exponential", "fixed"),
    "method.gumbel.start": (0.9, 0.9),
    "method.gumbel.end": (0.01, 0.09),
    "method.normalised_prototypes": (True, False),
    "method.prototypes": (512, 512),
    "method.embed_dim": (768, 768),
    "method.heads": (8, 8),
    "method.queries": (16, 16),
    "method.sentence_pool": ("attention", "mean"),
    "method.attention": ("sigmoid", "sigmoid"),
    "method.image_mask": (0.5, 0.5),
    "method.decoder": tuple({"layers": n, "heads": 12, "hidden": 3072, "dropout": 0.1} for n in (6, 8)),
    "method.loss_weights": (WEIGHTS, WEIGHTS),
    "method.inputs.sample": ("study", "study"),
    "method.inputs.frontal_only": (True, True),
    "method.inputs.sections": ("impression_findings", "impression_findings"),
    "method.inputs.min_sentences": (4, 4),
    "method.inputs.max_tokens": (256, 256),
    "method.inputs.shuffle_sentences": (True, True),
    "method.inputs.clean": ("none", "none"),
    "method.inputs.join": ("spaced", "glued"),
    "method.inputs.flip": (0.0, 0.0),
}


@both_variants
def test_the_preset_has_the_recipe(variant):
    cfg = preset(f"prior_{variant}")
    assert values(cfg, RECIPE) == {key: pair[variant == "official"] for key, pair in RECIPE.items()}
    stages = Stages(**values(cfg, ["method.stages"])["method.stages"])
    epochs = sum(stages.lengths)
    rates = [cfg.optimizer.lr * stages.lr_factor(step, 100 * epochs) for step in range(100 * epochs)]
    first, last = [100 * n for n in (0, 20, 50)], 5e-6 if variant == "official" else 1e-5
    assert [rates[i] for i in first] == pytest.approx([1e-7, 1e-7, last / 500])
    assert [max(rates[a:b]) for a, b in zip(first, [*first[1:], None], strict=True)] == pytest.approx(
        [1e-5, 1e-5, last]
    )


def test_all_parameters_decay_alike():
    (group,) = build().parameter_groups()
    assert group["weight_decay"] == 1e-6


# The path of training


def test_stages_follow_their_lengths():
    stages = Stages(**STAGES)
    assert [stages.at(p) for p in (0.0, 0.19, 0.2, 0.49, 0.5, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert stages.at(3 / 7) == 2
    assert [stages.after_first(p) for p in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1])


def test_each_stage_warms_up_anew():
    rates = [Stages(**STAGES).lr_factor(i, 1000) for i in range(1000)]
    assert [rates[i] for i in (0, 200, 500)] == pytest.approx([0.01, 0.01, 0.001])
    assert [rates[i] for i in (9, 209, 549)] == pytest.approx([1, 1, 0.5])
    assert max(rates[i] for i in (199, 499, 999)) < 1e-3


def test_the_temperature_of_the_bank_falls_over_the_stages_that_use_it():
    assert anneal("exponential", 0.9, 0.01, 1.0) == pytest.approx(0.01)
    assert anneal("fixed", 0.9, 0.01, 1.0) == 0.9
    assert [anneal("linear", 0.9, 0.09, f) for f in (0.0, 0.1, 1.0)] == pytest.approx([0.9, 0.819, 0.09])


class Watch(Callback):
    """Stages, learning rates, temperatures and the optimiser's memory, as a step finds them."""

    def __init__(self) -> None:
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        steps = [int(s["step"]) for s in optimizer.state.values()]
        rate = optimizer.param_groups[0]["lr"]
        self.seen.append(
            (pl_module.current_stage(), max(steps, default=0), rate, float(pl_module.heads.bank.temperature))
        )


@pytest.mark.filterwarnings("ignore:The .*_dataloader. does not have many workers")  # Lightning, of a list of batches
def test_training_goes_through_the_stages_with_a_fresh_optimiser_in_each():
    method = build(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    watch, loader = Watch(), DataLoader([make_batch(method)] * 10, batch_size=None)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    assert not method.heads.bank.in_use
    Trainer(accelerator="cpu", max_epochs=1, callbacks=[watch], **quiet).fit(method, loader, loader)
    stages, memory, rates, temperatures = zip(*watch.seen, strict=True)
    assert stages == (1, 1, 2, 2, 2, 3, 3, 3, 3, 3)
    assert memory == (0, 1, 0, 1, 2, 0, 1, 2, 3, 4)
    assert rates == pytest.approx([1e-2 * Stages(**STAGES).lr_factor(i, 10) for i in range(10)])
    assert temperatures[2:] == pytest.approx([0.9 * (0.01 / 0.9) ** (i / 8) for i in range(8)])
    assert method.heads.bank.in_use
    assert not [n for n, p in method.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    logged = method.trainer.logged_metrics.keys()
    assert {"train/top1", "val/top5", "val/loss", "val/loss/report_alignment"} <= logged


def test_validation_always_measures_the_last_objective():
    method = build()
    assert (method.train().current_stage(), method.eval().current_stage()) == (1, 3)
    assert build(stage=2).eval().current_stage() == 2
    assert method.weights(0.0)["global"] == method.weights(0.0)["sentence_generation"] == 10


def test_gumbel_noise_is_drawn_in_training_alone():
    method = build(stage=2)
    x = torch.randn(1, 20000, 16)
    first, second = method.noise(x), method.noise(x)
    assert first.shape == (1, 20000, 6)
    assert not torch.equal(first, second)
    # Mean and variance of Gumbel(0, 1).
    assert float(first.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(first.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert method.eval().noise(x) is None


def test_noise_moves_the_choice_of_prototypes():
    bank = SentenceBank(3, 4, normalised=False)
    noise = torch.tensor([[[0.0, 50.0, 0.0]]])
    torch.testing.assert_close(bank(torch.zeros(1, 1, 4), 0.5, noise)[0, 0], bank.vectors[1])
    torch.testing.assert_close(bank(torch.zeros(1, 1, 4), 0.5)[0, 0], bank.vectors.mean(0))


def test_only_generation_cuts_reports_to_its_queries():
    for stage, counted in ((2, 11), (3, 10)):
        method = build(stage=stage).eval()
        seen = []
        method.sentence_count = lambda mask, seen=seen: seen.append(int(mask.sum())) or mask.sum().float()
        method.losses(make_batch(method))
        assert set(seen) == {counted}


def test_a_report_of_one_sentence_has_nothing_to_tell_it_from():
    method = build(stage=1).eval()
    assert float(method.losses(make_batch(method, [["no effusion"], ["heart normal"]]))["local_text"].detach()) == 0


def test_processes_are_told_that_parameters_wait_for_their_stage():
    method = build()
    method.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
    method.setup("fit")
    assert method.trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_the_sentence_is_the_mean_of_its_pieces():
    x, slots = torch.randn(1, 5, 16), torch.tensor([[-1, 0, 0, 1, -1]])
    vectors, mask = SentencePool("mean", 16)(x, slots, 3)
    torch.testing.assert_close(vectors[0], torch.stack([x[0, 1:3].mean(0), x[0, 3], torch.zeros(16)]))
    assert mask.tolist() == [[True, True, False]]


def test_what_is_predicted_has_no_gradient():
    predicted, target = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8, requires_grad=True)
    negative_cosine(predicted, target).backward()
    assert predicted.grad is not None
    assert target.grad is None


def test_what_was_generated_is_drawn_from_the_bank_anew():
    method, drawn = build(stage=3), []
    method.noise = lambda like: drawn.append(PRIOR.noise(method, like)) or drawn[-1]
    method.losses(make_batch(method))
    assert len(drawn) == 2
    assert not torch.equal(*drawn)


@both_variants
def test_the_image_to_be_drawn_is_whole_and_the_reports_part_of_it_unmasked(variant):
    method, seen = build(variant=variant, stage=3), []
    method.image_decoder.register_forward_hook(lambda _, args, out: seen.append((*args, out)))
    batch = make_batch(method)
    got = method.losses(batch)["image_reconstruction"]
    patches, context, drawn = seen[0]
    assert (patches == 0).float().mean().item() == pytest.approx(0.5, abs=0.3)
    assert not (context == 0).any()
    target = (batch.frontal / 255.0 - method.vision.mean) / method.vision.std
    torch.testing.assert_close(got, (drawn - target[:, :1]).abs().mean())


# What the variants do differently


def test_images_are_compared_across_processes_and_sentences_counted_so_in_the_paper_alone(monkeypatch):
    # two processes, the other of which has other rows, and twice the sentences on average
    monkeypatch.setattr(contrastive, "gather", lambda x: torch.cat([x, x.roll(1, 1)]))
    monkeypatch.setattr(prior, "mean_count", lambda x: 2.0 * x)
    v, t = torch.randn(3, 16), torch.randn(3, 16)
    for variant, count in (("paper", 12), ("official", 6)):
        method = build(variant=variant)
        there, back = (info_nce(unit(a), torch.cat([unit(b), unit(b).roll(1, 1)]), 0.1) for a, b in ((v, t), (t, v)))
        torch.testing.assert_close(method.contrast(v, t), (there + back) / 2)
        assert float(method.sentence_count(torch.ones(2, 3, dtype=torch.bool))) == count


def test_the_learned_temperature_has_no_bounds():
    method = build(variant="official")
    v, t = unit(torch.randn(3, 16)), unit(torch.randn(3, 16))
    for scale in (0.01, 1000.0):
        torch.nn.init.constant_(method.heads.log_scale, math.log(scale))
        expected = (info_nce(v, t, 1 / scale) + info_nce(t, v, 1 / scale)) / 2
        torch.testing.assert_close(method.contrast(v, t), expected, rtol=1e-4, atol=1e-4)


def test_patches_are_cells_or_rows_of_memory():
    paper, official = build(), build(variant="official")
    images = paper.vision.eval()(make_batch(paper).frontal)
    cells = images.tokens.transpose(1, 2).unflatten(2, images.grid)
    raw = cells.contiguous().view(*images.tokens.shape)
    torch.testing.assert_close(channel_major(images.tokens), raw)
    assert not torch.equal(raw, images.tokens)
    torch.testing.assert_close(paper.heads.embed_patches(images), paper.heads.patch(images.tokens))
    torch.testing.assert_close(official.heads.embed_patches(images), official.heads.patch(raw))
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(paper.as_map(x)[:, :, 1, 0], x[:, 2])
    torch.testing.assert_close(official.as_map(x), x.contiguous().view(2, 16, 2, 2))


def test_matched_vectors_are_the_optimal_pairs_or_the_inverse_permutation():
    targets = torch.randn(1, 3, 16)
    generated = targets[:, [1, 2, 0]] + 0.01
    paper, official = build(), build(variant="official")
    column = assign(generated, targets)
    assert column.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(pick(generated, paper.pairing(column)), targets + 0.01)
    torch.testing.assert_close(pick(generated, official.pairing(column)), targets[:, [2, 0, 1]] + 0.01)


@pytest.mark.parametrize("variant, moved", [("paper", [True] * 4), ("official", [False, False, True, True])])
def test_queries_see_all_others_or_those_before(variant, moved):
    decoder = build(variant=variant).sentence_decoder.eval()
    patches = torch.randn(1, 4, 16)
    before = decoder(patches)
    with torch.no_grad():
        decoder.queries[2] = torch.randn(16)
    assert ((decoder(patches) - before).abs().amax(2)[0] > 1e-6).tolist() == moved


def test_projections_temperatures_and_prototypes():
    paper, official = build(), build(variant="official")
    named = dict(official.named_parameters())
    assert not [n for n in named if n.startswith("heads.text.")]
    assert {n for n in named if n.startswith("heads.image.")} == {"heads.image.weight", "heads.image.bias"}
    assert len([n for n, _ in paper.named_parameters() if n.startswith(("heads.text.", "heads.image."))]) == 8
    for method, learned in ((paper, False), (official, True)):
        assert method.heads.log_scale.requires_grad == method.sentence_log_scale.requires_grad == learned
        assert method.heads.log_scale.item() == pytest.approx(math.log(10))
        assert method.sentence_log_scale.item() == pytest.approx(math.log(20))
    normalised = build(normalised_prototypes=True)
    torch.testing.assert_close(normalised.heads.bank.vectors.abs().sum(1), torch.ones(6))
    big = build(prototypes=2000)
    assert big.heads.bank.vectors.std().item() == pytest.approx(1, abs=0.02)


def test_projections_start_from_a_deviation_that_keeps_lengths():
    method = build("vit", variant="official", embed_dim=256, heads=4)
    # inputs of the image, the patches, the words and the predictor's first layer
    layers = {method.heads.image: 16, method.heads.patch: 16, method.heads.word: 12, method.predictor[0]: 256}
    for layer, inputs in layers.items():
        assert layer.in_features == inputs
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.06)


def test_the_mask_takes_cells_or_channels():
    x = torch.ones(8, 16, 2, 2)
    cells = build().masked(x)
    assert torch.all(cells == cells[:, :1])
    assert cells.unique().tolist() == [0, 2]
    channels = build(variant="official").masked(x)
    assert torch.all(channels == channels[:, :, :1, :1])
    assert channels.unique().tolist() == [0, 2]
    assert torch.equal(build().eval().masked(x), x)


def test_batch_norm_follows_or_precedes_the_relu():
    def kinds(method):
        return [type(m).__name__ for m in method.image_decoder.blocks[0]]

    assert kinds(build()) == ["Conv2d", "ReLU", "BatchNorm2d"] * 2
    assert kinds(build(variant="official")) == ["Conv2d", "BatchNorm2d", "ReLU"] * 2


@pytest.mark.parametrize("grid, size, blocks", [((7, 7), 224, 5), ((14, 14), 224, 4), ((10, 10), 299, 4)])
def test_the_image_decoder_ends_at_the_size_of_the_image(grid, size, blocks):
    decoder = ImageDecoder(4, grid, size, norm_last=True)
    assert len(decoder.blocks) == blocks
    assert decoder(torch.zeros(1, 4, *grid), torch.zeros(1, 4, *grid)).shape == (1, 1, size, size)


# Around it


@both_variants
@both_encoders
def test_a_bundle_gives_the_same_scores(tmp_path, kind, variant):
    method = build(kind, variant=variant, stage=2)
    method.losses(make_batch(method))
    method.eval()
    batch = make_batch(method)
    bundle.save(tmp_path / "bundle", method.parts(), {"name": "test"})
    encoders = bundle.load(tmp_path / "bundle")
    assert set(encoders.parts) == {"vision", "text", "aligner", "image_decoder", "sentence_decoder"}
    assert encoders.aligner.bank.in_use
    image, text = encoders.vision(batch.frontal), encoders.text(batch.text)
    assert image.tokens.shape[2] == encoders.vision.spec.token_dim == image.pooled.shape[1]
    own = method.heads
    expected = own.similarity(method.vision(batch.frontal), method.text(batch.text))
    torch.testing.assert_close(encoders.similarity(image, text), expected)
    assert expected.shape == (4, 4)
    x, decoder = torch.randn(2, 4, 16), encoders.parts["sentence_decoder"]
    torch.testing.assert_close(decoder(x), method.sentence_decoder(x))
    local = encoders.aligner.local_similarity(image, text)
    assert (local is None) == (variant == "official")
    if local is not None:
        assert local.shape == image.tokens.shape[:2]
        assert torch.all((local > 0) & (local < 1))


def test_prototypes_are_read_once_they_were_trained():
    method = build().eval()
    text = method.text(make_batch(method).text)
    plain = method.heads.sentences(text)
    torch.testing.assert_close(method.heads.known(text).vectors, plain.vectors)
    method.train().stage = 2
    method.remember()
    expected = method.heads.bank(plain.vectors, method.tau())
    torch.testing.assert_close(method.heads.known(text).vectors, expected)
    assert isinstance(plain, Sentences)


def test_a_text_without_sentences_is_no_nan():
    method = build(attention="softmax").eval()
    images, empty = method.vision(make_batch(method).frontal), method.text(make_batch(method, [[]] * 4).text)
    assert method.heads.similarity(images, empty).isfinite().all()
    assert method.heads.local_similarity(images, empty).isfinite().all()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"stage": 4}, r"method\.stage=4"),
        ({"gumbel": {"decay": "steep", "start": 0.9, "end": 0.1}}, r"method\.gumbel\.decay=steep"),
        ({"stages": STAGES | {"lr": [1.0]}}, r"method\.stages\.lr"),
        ({"sentence_pool": "max"}, r"method\.sentence_pool=max"),
        ({"attention": "relu"}, r"method\.attention=relu"),
        ({"heads": 5}, r"method\.heads=5"),
        ({"decoder": OPTIONS["decoder"] | {"heads": 5}}, r"method\.decoder\.heads=5"),
        ({"variant": "mine"}, "paper or official"),
    ],
)
def test_what_cannot_be_built_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        build(**changed)


def test_a_network_whose_summary_is_wider_than_its_patches_is_refused():
    text = build().text
    with pytest.raises(UserError, match="tf_efficientnet_lite0"):
        PRIOR(VisionBackbone("tf_efficientnet_lite0", image_size=64), text, **OPTIONS)
