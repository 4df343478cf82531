"""The whole line as a user runs it: smoke plan, then everything one does with what it left."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import only, run_cli, write_fifth_method

import vlp_bench
from vlp_bench.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory in which the smoke plan has run."""
    root = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run_cli("benchmark", "plan=smoke", "runs=runs", "paths.cache=cache") == 0
    return root


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def pretrained(root):
    return only(root, "runs/pretrain/mgca-*")


def test_a_pretraining_run_leaves_everything_that_describes_it(here):
    run = pretrained(here)
    record = json.loads((run / "run.json").read_text())
    assert record["method"] == "mgca"
    assert record["variant"] == "paper"
    assert record["training"]["steps"] == 3
    about = record["provenance"]
    assert {"commit", "command", "config", "config_hash", "versions", "device", "wall_seconds"} <= about.keys()
    assert len(about["data_fingerprint"]) == 16
    curve = pd.read_csv(run / "metrics.csv")
    assert len(curve) == 3
    assert {"train/loss", "train/loss/instance", "train/loss/token", "train/loss/prototype"} <= set(curve)


def test_result_has_every_promised_key_and_predictions_agree_with_it(here):
    for path in here.glob("runs/evaluate/classification-*/result.json"):
        result = json.loads(path.read_text())
        identity = "schema method variant backbone pretrain_seed"
        cell = "task target split protocol label_fraction draw adaptation seed"
        assert {*identity.split(), *cell.split()} <= result.keys()
        assert set(result["metrics"]["auroc"]) == {"value", "low", "high", "n"}
        assert result["metrics"].keys() == result["trivial"].keys()
        table = pd.read_parquet(path.parent / "predictions.parquet")
        assert result["metrics"]["auroc"]["n"] <= table.shape[0] * len(result["labels"])
        assert table["item_id"].is_unique
        from sklearn.metrics import roc_auc_score

        measured = [n for n in result["labels"] if result["metrics"][f"auroc/{n}"]["value"] is not None]
        expected = np.mean([roc_auc_score(table[f"target_{n}"], table[f"score_{n}"]) for n in measured])
        assert result["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)


def test_report_has_each_cell_the_trivial_row_and_no_outside_reference(here):
    page = (here / "runs/report/index.html").read_text()
    assert "mgca resnet18" in page
    assert "random resnet18" in page
    assert "trivial" in page.lower()
    assert 'src="http' not in page
    assert list(here.glob("runs/report/tables/*.csv"))
    assert list(here.glob("runs/report/tables/*.md"))


def test_a_backbone_without_what_a_task_needs_is_a_dash_with_the_reason(here):
    found = [json.loads(p.read_text()) for p in here.glob("runs/evaluate/retrieval-*/result.json")]
    (random,) = [r for r in found if r["method"] == "random"]
    assert random["metrics"] == {"i2t/R@5": {"value": None, "low": None, "high": None, "n": 0}}
    assert "has no aligner" in random["facts"]["not_applicable"]
    assert "no value: This task needs encoders" in (here / "runs/report/index.html").read_text()


def test_pictures_of_synthetic_images_are_drawn(here):
    pictures = only(here, "runs/evaluate/retrieval-*/pictures")
    listed = json.loads((pictures / "index.json").read_text())
    assert listed
    assert all((pictures / p["file"]).stat().st_size > 1000 for p in listed)


def test_the_same_plan_again_does_nothing(here, capsys):
    before = {p: p.stat().st_mtime_ns for p in here.glob("runs/[ep]*/*/*.json")}
    assert run_cli("benchmark", "plan=smoke", "runs=runs", "paths.cache=cache") == 0
    assert {p: p.stat().st_mtime_ns for p in here.glob("runs/[ep]*/*/*.json")} == before


def test_the_same_command_finds_its_own_finished_run(here, capsys):
    command = ["pretrain", "trainer=smoke", "method=mgca", "paths.output_root=runs", "paths.cache=cache", "seed=0"]
    assert run_cli(*command) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run_cli(*command, "trainer.devices=1", "logger=csv") == 0
    assert len(list(here.glob("runs/pretrain/*"))) == 1


def test_load_gives_encoders_with_their_preprocessing(here):
    encoders = vlp_bench.load(pretrained(here))
    image = np.full((300, 200), 90, np.uint8)
    features = encoders.encode_images([image, image])
    texts = encoders.encode_texts(["Small left pleural effusion.", "No acute process."])
    assert features.pooled.shape == (2, encoders.vision.spec.pooled_dim)
    assert encoders.similarity(features, texts).shape == (2, 2)
    torch.testing.assert_close(features.pooled[0], features.pooled[1])


def test_export_and_reload_are_equal(here, tmp_path):
    run = pretrained(here)
    assert run_cli("export", f"backbone={run}", f"out={tmp_path / 'mine'}") == 0
    a, b = vlp_bench.load(run), vlp_bench.load(tmp_path / "mine")
    assert a.hash == b.hash
    for name, part in a.parts.items():
        other = b.parts[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in part.state_dict().items())


def test_a_class_of_an_untrusted_package_is_not_built(here, tmp_path):
    out = tmp_path / "mine"
    assert run_cli("export", f"backbone={pretrained(here)}", f"out={out}") == 0
    facts = json.loads((out / "vision.json").read_text())
    (out / "vision.json").write_text(json.dumps({**facts, "class": "subprocess:Popen"}))
    with pytest.raises(UserError, match="not trusted"):
        vlp_bench.load(out)


def test_embed_writes_features_and_similarities(here, tmp_path):
    from vlp_bench.data.synthetic import write_raw

    write_raw("folder", tmp_path / "mine", studies=6, seed=3, size=80)
    out = tmp_path / "features.parquet"
    arguments = [f"backbone={pretrained(here)}", f"data.raw_dir={tmp_path / 'mine'}", f"out={out}"]
    assert run_cli("embed", *arguments, "sentences=[left pleural effusion]", f"paths.cache={tmp_path}") == 0
    table = pd.read_parquet(out)
    assert len(table) == len(pd.read_csv(tmp_path / "mine/metadata.csv"))
    assert len(table["features"].iloc[0]) == 512
    assert table["similarity/left pleural effusion"].between(-1.01, 1.01).all()


def test_a_method_from_outside_trains_exports_evaluates_and_is_in_the_report(here, tmp_path, monkeypatch):
    conf = write_fifth_method(tmp_path, "somebodys_method")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ["--config-dir", str(conf)]
    shared = ["trainer=smoke", "paths.output_root=outside", "paths.cache=cache"]
    assert run_cli("config", "check", "pretrain", "method=fifth", *mine) == 0
    assert run_cli("pretrain", *mine, "method=fifth", *shared) == 0
    run = only(here, "outside/pretrain/fifth-*")
    assert run_cli("evaluate", f"backbone={run}", "adaptation=probe_cached", *shared) == 0
    assert run_cli("evaluate", f"backbone={run}", "task=retrieval", "adaptation=none", *shared) == 0
    assert run_cli("report", "runs=outside", "out=outside/report") == 0
    assert "fifth resnet18" in (here / "outside/report/index.html").read_text()


@pytest.mark.parametrize("adaptation", ["probe", "finetune"])
def test_trained_adaptations_run(here, adaptation):
    shared = ["trainer=smoke", "paths.output_root=adapt", "paths.cache=cache", "label_fraction=0.5"]
    assert run_cli("evaluate", f"backbone={pretrained(here)}", f"adaptation={adaptation}", *shared) == 0
    result = json.loads(
        (only(here, f"adapt/evaluate/classification-synthetic-{adaptation}-*") / "result.json").read_text()
    )
    assert result["adaptation"] == adaptation
    assert result["label_fraction"] == 0.5


def test_a_timm_backbone_from_a_local_file(here, tmp_path):
    import timm

    torch.manual_seed(0)
    torch.save({"state_dict": timm.create_model("resnet18").state_dict()}, tmp_path / "mine.pth")
    shared = ["trainer=smoke", "paths.output_root=timm", "paths.cache=cache", "adaptation=probe_cached"]
    assert run_cli("evaluate", "backbone=timm:resnet18", f"weights={tmp_path / 'mine.pth'}", *shared) == 0


def test_official_variant_trains(here):
    shared = ["trainer=smoke", "paths.output_root=official", "paths.cache=cache"]
    assert run_cli("pretrain", "method.variant=official", *shared) == 0
    record = json.loads(only(here, "official/pretrain/*/run.json").read_text())
    assert record["variant"] == "official"
    assert not vlp_bench.load(only(here, "official/pretrain/*")).text.positions


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_joint_encoder_trains_and_ranks_whole_pairs(here, variant):
    shared = ["trainer=smoke", f"paths.output_root=joint-{variant}", "paths.cache=cache"]
    assert run_cli("pretrain", "method=medvill", f"method.variant={variant}", "vision=tiny", *shared) == 0
    run = only(here, f"joint-{variant}/pretrain/medvill-*")
    assert set(vlp_bench.load(run).parts) == {"vision", "text", "joint"}
    assert run_cli("evaluate", f"backbone={run}", "adaptation=probe_cached", *shared) == 0
    assert run_cli("evaluate", f"backbone={run}", "task=retrieval", "adaptation=none", *shared) == 0
    scores = pd.read_parquet(only(here, f"joint-{variant}/evaluate/retrieval-*/predictions.parquet"))
    # ranks of pairs that all score the same would all be the last
    assert scores["rank_i2t"].nunique() > 1


def test_a_vision_transformer_trains(here):
    shared = ["trainer=smoke", "paths.output_root=vit", "paths.cache=cache", "vision=vit_ti16"]
    assert run_cli("pretrain", *shared, "+vision.architecture.depth=2") == 0


def test_sweep_runs_each_job_in_its_own_directory(here):
    shared = ["trainer=smoke", "paths.output_root=sweep", "paths.cache=cache", "adaptation=probe_cached"]
    assert run_cli("evaluate", "-m", "hydra/launcher=basic", "backbone=random", "draw=0,1", *shared) == 0
    assert len(list(here.glob("sweep/evaluate/classification-*/result.json"))) == 2


BAD = {
    "unknown method": (["pretrain", "method=nobody"], "Available options in 'method'"),
    "unknown key": (["pretrain", "vision.nmae=x"], "nmae"),
    "unknown verb": (["pretain"], "Unknown verb"),
    "no data directory": (["pretrain", "data=mimic_cxr"], "data.dir=PREPARED"),
    "missing data directory": (["pretrain", "data=mimic_cxr", "data.dir=nowhere"], "No prepared data at nowhere"),
    "seed": (["pretrain", "seed=abc"], "seed=abc"),
    "fraction zero": (["evaluate", "label_fraction=0"], "label_fraction=0"),
    "fraction two": (["evaluate", "label_fraction=2"], "label_fraction=2"),
    "no gpu": (["pretrain", "trainer=gpu"], "trainer=cpu"),
    "no backbone": (["evaluate", "backbone=nowhere"], "backbone=nowhere"),
    "no such timm model": (["evaluate", "backbone=timm:resnet19"], "resnet19"),
    "retrieval without aligner": (["evaluate", "task=retrieval", "adaptation=none", "backbone=random"], "no aligner"),
    "unknown label": (["evaluate", "target.labels=[Gout]"], "no label 'Gout'"),
    "unknown kind": (["evaluate", "target.kind=ordinal"], "target.kind=ordinal"),
    "resume": (["pretrain", "resume=nowhere.ckpt"], "nowhere.ckpt"),
    "export without out": (["export", "backbone=random"], "needs out="),
    "report of nothing": (["report", "runs=empty"], "empty"),
    "prepare without directories": (["prepare", "data=mimic_cxr"], "data.raw_dir=RAW"),
    "variant": (["pretrain", "method.variant=mine"], "method.variant=mine"),
    "empty plan": (["benchmark", "plan.evaluate=null"], "nothing would be measured"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_a_line_with_exit_code_two(here, case, capsys):
    arguments, words = BAD[case]
    (here / "empty").mkdir(exist_ok=True)
    if arguments[0] in ("pretrain", "evaluate") and not any("trainer=" in a for a in arguments):
        arguments = [*arguments, "trainer=smoke"]
    shared = ["paths.output_root=bad", "paths.cache=cache"] if arguments[0] in ("pretrain", "evaluate") else []
    assert run_cli(*arguments, *shared) == 2
    said = capsys.readouterr().err.strip().splitlines()
    mine = [line for line in said if line.startswith("vlp-bench:")]
    assert len(mine) == 1
    assert words in mine[0]
    assert "Traceback" not in "\n".join(said)
    assert not list(here.glob("bad/**/result.json"))
    assert not list(here.glob("bad/**/run.json"))


def test_a_file_that_is_no_checkpoint(here, tmp_path, capsys):
    path = tmp_path / "notes.ckpt"
    path.write_text("no checkpoint at all")
    assert run_cli("evaluate", f"backbone={path}", "trainer=smoke", "paths.cache=cache") == 2
    assert "is not a checkpoint" in capsys.readouterr().err


def test_a_pickle_that_runs_code_is_refused(here, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    arguments = ["backbone=timm:resnet18", f"weights={tmp_path / 'evil.pth'}", "trainer=smoke", "paths.cache=cache"]
    assert run_cli("evaluate", *arguments) == 2
    captured = capsys.readouterr()
    assert "refused" in captured.err
    assert "executed" not in captured.out


def test_a_target_without_positives(here, tmp_path, capsys):
    from vlp_bench.data.synthetic import write_raw

    write_raw("folder", tmp_path / "mine", studies=30, seed=3, size=80)
    table = pd.read_csv(tmp_path / "mine/metadata.csv", keep_default_na=False)
    table["labels"] = "No Finding"
    table.to_csv(tmp_path / "mine/metadata.csv", index=False)
    arguments = ["target=folder", f"target.raw_dir={tmp_path / 'mine'}", f"paths.cache={tmp_path}", "trainer=smoke"]
    assert run_cli("evaluate", *arguments) == 2
    assert "both positives and negatives" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached(here, capsys, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    assert (
        run_cli("pretrain", "text=bioclinicalbert", "trainer=smoke", "paths.cache=cache", "paths.output_root=bad") == 2
    )
    said = capsys.readouterr().err
    assert "text.vocab=PATH" in said


def test_wandb_gets_numbers_and_configuration_but_no_report(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = ["logger=wandb", "trainer=smoke", "paths.cache=cache", f"paths.output_root={tmp_path}"]
    for seed in (0, 1):
        assert run_cli("pretrain", f"seed={seed}", *arguments) == 0
    logs = sorted(tmp_path.glob("pretrain/*/wandb/offline-run-*/run-*.wandb"))
    assert len({log.parents[2] for log in logs}) == 2  # a run of its own for each
    reports = pd.concat(
        pd.read_csv(p, keep_default_na=False) for p in here.glob("cache/raw/*/metadata.csv") if "mimic" not in str(p)
    )["report_text"]
    sentences = {s.strip().encode() for r in reports for s in r.replace("\n", " ").split(".") if len(s.strip()) > 20}
    assert len(sentences) > 20
    for log in logs:
        sent = log.read_bytes()
        assert b"train/loss/instance" in sent
        assert b"max_epochs" in sent
        assert not any(s in sent for s in sentences)
        assert not list(log.parent.glob("files/**/*.png"))
        assert not (log.parent / "files" / "output.log").exists()


def test_a_metric_that_is_not_measured_costs_no_run(here, capsys):
    shared = ["trainer=smoke", "paths.output_root=primary", "paths.cache=cache", "adaptation=probe_cached"]
    assert run_cli("evaluate", "backbone=random", "task.primary=aurocs", *shared) == 0
    assert "task.primary=aurocs is not measured" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((only(here, "primary/evaluate/*") / "result.json").read_text())["primary"] == "auroc"
