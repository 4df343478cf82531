"""What a run says of its speed, and what the doctor makes of it; times come from clocks that the tests set."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from helpers import only, run_cli
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vlp_bench.engine import pretrain, throughput
from vlp_bench.engine.curves import Curves
from vlp_bench.engine.profile import Profile
from vlp_bench.engine.throughput import Flops, Throughput, _row
from vlp_bench.errors import UserError

COLUMNS = {f"throughput/{k}" for k in ("images_per_s", "tokens_per_s", "data_wait", "memory_gb", "mfu", "step_s")}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# FLOPs ----------------------------------------------------------------------------------------------------------------


def test_flops_of_a_linear_layer_forward_and_backward():
    layer, x = nn.Linear(20, 30), torch.zeros(7, 20)
    with Flops() as count:
        loss = layer(x).sum()
    assert count.total == 2 * 7 * 20 * 30
    with Flops() as count:
        loss.backward()
    # the gradient of the weight alone: nobody wants that of the input
    assert count.total == 2 * 7 * 20 * 30


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups):
    with Flops() as count, torch.no_grad():
        nn.Conv2d(4, 6, 3, padding=1, groups=groups)(torch.zeros(2, 4, 8, 8))
    assert count.total == 2 * 2 * 8 * 8 * 6 * 4 // groups * 9


def test_flops_are_counted_in_a_layer_without_gradient_inside_one_with():
    layer, x = nn.Linear(20, 30), torch.zeros(7, 20, requires_grad=True)
    with Flops() as count:
        y = layer(x)
        with torch.no_grad():
            layer(x[:1])
        y.sum().backward()
    assert count.total == 2 * 20 * 30 * (7 + 1 + 2 * 7)


# The callback ---------------------------------------------------------------------------------------------------------


class SetClock:
    """Time that passes where the test says so."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def settle(self):
        pass

    def seconds(self, begin, end):
        return end - begin


class Slow(LightningModule):
    def __init__(self, clock, seconds):
        super().__init__()
        self.layer, self.clock, self.wait = nn.Linear(4, 1), clock, seconds

    def training_step(self, batch, _):
        self.clock.now += self.wait
        loss = self.layer(batch.image.flatten(1)).mean()
        self.log("train/loss", loss, batch_size=3)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Loader:
    """Batches of 3 images with 5 word pieces each, of which one is padding."""

    def __init__(self, clock, seconds, number):
        self.clock, self.wait, self.number = clock, seconds, number
        mask = torch.tensor([[True, True, True, True, False]] * 3)
        self.batch = SimpleNamespace(image=torch.ones(3, 1, 2, 2), text=SimpleNamespace(mask=mask))

    def __len__(self):
        return self.number

    def __iter__(self):
        for _ in range(self.number):
            self.clock.now += self.wait
            yield self.batch


class Kept(Logger):
    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_, **__):
        pass


def train(folder, fetch, step, *more, number=9, **options):
    clock = SetClock()
    meter = Throughput(folder, clock)
    kept = Kept()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=2, callbacks=[meter, *more],
        logger=[Curves(folder / "metrics.csv"), kept], enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(Slow(clock, step), Loader(clock, fetch, number))
    return meter, kept, trainer


@pytest.mark.parametrize("fetch, step, wait", [(4.0, 1.0, 0.8), (0.0, 1.0, 0.0)])
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_slow_loader_is_waited_for_and_a_slow_model_is_not(fetch, step, wait, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "peak", lambda *_: 960.0)
    meter, kept, trainer = train(tmp_path, fetch, step)
    found = rows(tmp_path / "throughput.csv")
    # the first batch is left out, and the last window has the batches that are left
    assert [row["step"] for row in found] == ["1", "3", "5", "7", "8"]
    for row in found:
        assert float(row["throughput/data_wait"]) == pytest.approx(wait)
        assert float(row["throughput/step_s"]) == pytest.approx(fetch + step)
        assert float(row["throughput/images_per_s"]) == pytest.approx(3 / (fetch + step))
        assert float(row["throughput/tokens_per_s"]) == pytest.approx(12 / (fetch + step))
        # 3 x 4 x 1 products with sums, forward and for the weight
        assert float(row["throughput/mfu"]) == pytest.approx(48 / (fetch + step) / 960)
    assert meter.summary()["data_wait"] == pytest.approx(wait)
    assert [s for s, row in kept.rows if "throughput/mfu" in row] == [1, 3, 5, 7, 8]
    curve = (tmp_path / "metrics.csv").read_text()
    assert "train/loss" in curve
    assert "throughput" not in curve
    assert not isinstance(trainer.profiler, throughput._Overheard)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_batches_whose_gradients_are_gathered_are_steps_of_half_the_number(tmp_path):
    train(tmp_path, 1.0, 1.0, accumulate_grad_batches=2, number=8)
    found = rows(tmp_path / "throughput.csv")
    assert [row["step"] for row in found] == ["1", "3"]
    assert [float(row["throughput/step_s"]) for row in found] == [2.0, 2.0]


class Break(Callback):
    def on_before_backward(self, *_):
        raise UserError("broken")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_first_batch_that_fails_leaves_nothing_that_counts(tmp_path):
    with pytest.raises(UserError, match="broken"):
        train(tmp_path, 1.0, 1.0, Break())
    assert _get_current_dispatch_mode() is None


def test_two_processes_give_their_images_together_and_wait_for_the_slower():
    # seconds, of which waiting, images, tokens, memory, batches
    both = torch.tensor([[10.0, 1.0, 40, 400, 2.0, 5], [8.0, 4.0, 40, 500, 3.0, 5]], dtype=torch.float64)
    row = {k.partition("/")[2]: v for k, v in _row(both, 100, 200.0).items()}
    assert row == pytest.approx(
        {
            "images_per_s": 8.0, "tokens_per_s": 90.0, "data_wait": 0.5, "memory_gb": 3.0, "step_s": 2.0,
            "mfu": 0.25,
        }
    )  # fmt: skip
    assert "throughput/mfu" not in _row(both, 100, 0.0)


@pytest.mark.parametrize(
    "name, dtype, expected",
    [
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.float16, 756e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, 67e12),
        ("NVIDIA A100-SXM4-80GB", torch.float16, 312e12),
        ("NVIDIA L40S", torch.float16, 362e12),
        ("Something else", torch.float32, 0.0),
    ],
)
def test_the_peak_of_a_gpu_goes_by_its_name(name, dtype, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    assert throughput.peak(torch.device("cuda"), dtype) == expected


# Runs -----------------------------------------------------------------------------------------------------------------

RUN = [
    "trainer=smoke", "vision=tiny", "data.studies=48", "data.batch_size=8", "method=convirt", "checkpoint_steps=2",
    "trainer.max_steps=-1", "trainer.max_epochs=2", "paths.cache=../cache",
]  # fmt: skip


class StopAt(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            raise UserError("pulled the plug")


def test_a_run_that_was_interrupted_has_one_curve_and_the_time_of_both_parts(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)
    plain = pretrain._callbacks
    monkeypatch.setattr(pretrain, "_callbacks", lambda *a: [*plain(*a), StopAt()])
    assert run_cli("pretrain", *RUN) == 2
    monkeypatch.setattr(pretrain, "_callbacks", plain)
    last = torch.load(only(folder, "runs/pretrain/*/checkpoints/last.ckpt"), "cpu", weights_only=True)
    before = last["callbacks"]["Throughput"]["wall_seconds"]
    assert before > 0
    # as if the first part had taken long
    last["callbacks"]["Throughput"]["wall_seconds"] = before + 1000
    torch.save(last, only(folder, "runs/pretrain/*/checkpoints/last.ckpt"))
    assert run_cli("pretrain", *RUN) == 0
    run = only(folder, "runs/pretrain/*")
    found = rows(run / "throughput.csv")
    steps = [int(row["step"]) for row in found]
    # the first batch of each part is left out
    assert steps == [s for s in range(steps[-1] + 1) if s not in (0, last["global_step"])]
    assert found[0].keys() >= COLUMNS
    for row in found:
        values = {k: float(row[k]) for k in COLUMNS}
        assert 0 <= values["throughput/data_wait"] <= 1
        assert min(v for k, v in values.items() if k != "throughput/data_wait") > 0
    training = json.loads((run / "run.json").read_text())["training"]
    assert training["wall_seconds"] > before + 1000
    assert training["throughput"].keys() == {k.partition("/")[2] for k in COLUMNS}
    assert "throughput" not in (run / "metrics.csv").read_text()


def test_the_training_of_an_evaluation_says_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["trainer=smoke", "vision=tiny", "adaptation=probe"]
    assert run_cli("evaluate", "backbone=random", *small) == 0
    found = rows(only(tmp_path, "runs/evaluate/*/throughput.csv"))
    assert found
    # these batches have no words
    assert found[0].keys() >= COLUMNS - {"throughput/tokens_per_s"}


# The doctor -----------------------------------------------------------------------------------------------------------


def test_the_doctor_projects_the_time_of_the_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["method=convirt", "trainer=smoke", "vision=tiny", "profile_steps=1", "trainer.devices=2"]
    long = ["trainer.max_steps=-1", "trainer.max_epochs=50"]
    assert run_cli("doctor", "profile=true", "data=mimic_cxr", *small, *long) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("training step", "image encoder alone", "text encoder alone", "data alone, 0 workers"):
        assert part in said
    assert "data=mimic_cxr has no data.dir here: measured on 128 synthetic studies" in said
    assert "MIMIC-CXR (222,758 training studies, one sample each), 50 epochs of batch 16:" in said
    assert "on 2 such devices" in said
    assert f"({222758 // 16 * 50:,} batches of" in said
    assert not list(tmp_path.glob("**/throughput.csv"))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["data=mimic_cxr", "data.dir=nowhere"], "nowhere"),
        (["data.studies=48", "method.inputs.sentencepiece=no.model"], "no.model"),
        (["profile_steps=0"], "profile_steps=0"),
    ],
)
def test_the_doctor_cannot_profile_what_is_not_there(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli("doctor", "profile=true", "trainer=smoke", "vision=tiny", *arguments) == 2
    assert complaint in capsys.readouterr().err


def profile(wait, data, workers, image=0.6):
    return Profile(1.0, wait, 1.0 - wait, {"image encoder": image, "text encoder": 0.1}, data, workers)


def test_the_verdict():
    slow = {0: 2.0, 1: 2.0, 2: 1.0, 4: 0.4, 8: 0.3}
    assert "set data.num_workers=4, which keeps up with the model (now 2)" in profile(0.5, slow, 2).verdict()
    assert "no other number of workers that was tried keeps up" in profile(0.9, slow, 2).verdict()
    # what the main process fetches itself delays every step
    assert "set data.num_workers=0" not in profile(0.5, {0: 0.4, 1: 0.6}, 1).verdict()
    assert "The image encoder bounds the run (61% of a step)" in profile(0.01, {0: 0.1}, 0).verdict()
    assert "more than its encoders (image encoder 20%" in profile(0.0, {0: 0.1}, 0, image=0.2).verdict()
