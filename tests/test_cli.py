"""The command line itself: what it prints without torch, and the configuration verbs."""

import os
import subprocess
import sys

import pytest
from helpers import run_cli, write_fifth_method

from vlp_bench.config import check, compose_verb, groups, quoted, run_name, shadowed, verbs
from vlp_bench.errors import UserError


def test_help_and_config_list_do_not_import_torch():
    code = (
        "import sys; from vlp_bench.cli import main\n"
        "assert main(['--help']) == 0 and main(['config', 'list']) == 0 and main(['--version']) == 0\n"
        "assert not {'torch', 'pytorch_lightning', 'transformers', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
    assert "resnet50" in done.stdout


def test_every_verb_composes_and_checks():
    found = verbs()
    assert len(found) >= 10
    for verb in found:
        assert check(compose_verb(verb)) == []


OPTIONS = [(g, o) for g, options in groups().items() for o in options]


def test_the_tree_has_the_promised_options():
    assert len(OPTIONS) >= 35
    assert {"mgca"} <= set(groups()["method"])
    assert {"resnet18", "resnet50", "resnet101", "densenet121", "vit_ti16", "vit_s16", "vit_b16"} <= set(
        groups()["vision"]
    )
    assert {"tiny", "bioclinicalbert", "bert_base"} <= set(groups()["text"])


@pytest.mark.parametrize("group, option", OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_composes_and_checks(group, option):
    homes = dict.fromkeys(("target", "task", "adaptation", "protocol"), "evaluate") | {"plan": "benchmark"}
    home = homes.get(group, "pretrain")
    override = f"+{group}={option}" if group in ("debug",) else f"{group}={option}"
    assert check(compose_verb(home, [override])) == []


def test_check_finds_a_wrong_target_a_wrong_keyword_and_a_wrong_trainer_flag():
    faults = check(compose_verb("pretrain", ["method._target_=vlp_bench.methods.mgca.MCGA"]))
    assert any("method._target_" in f for f in faults)
    assert any("method.width" in f for f in check(compose_verb("pretrain", ["+method.width=3"])))
    assert any("trainer.max_epoch:" in f for f in check(compose_verb("pretrain", ["+trainer.max_epoch=3"])))
    with pytest.raises(UserError, match="method/nobody"):
        compose_verb("pretrain", ["method=nobody"])


def test_check_names_a_file_that_a_shipped_one_shadows(tmp_path, capsys, monkeypatch):
    conf = write_fifth_method(tmp_path, "a_fifth_method")
    monkeypatch.syspath_prepend(str(tmp_path))
    (conf / "method" / "mgca.yaml").write_text("name: mine\n")
    assert len(shadowed(conf)) == 1
    assert run_cli("config", "check", "pretrain", "method=fifth", "--config-dir", str(conf)) == 2
    assert "never read" in capsys.readouterr().err


def test_config_show_and_copy(tmp_path, capsys):
    assert run_cli("config", "show", "method/mgca") == 0
    assert "vlp_bench.methods.mgca.MGCA" in capsys.readouterr().out
    assert run_cli("config", "show", "pretrain", "vision=vit_b16") == 0
    assert "vit_base_patch16_224" in capsys.readouterr().out
    assert run_cli("config", "copy", "method/mgca", str(tmp_path / "mine.yaml")) == 0
    assert "_target_" in (tmp_path / "mine.yaml").read_text()
    assert run_cli("config", "copy", "method/mgca", str(tmp_path / "mine.yaml")) == 2


def test_hydra_shows_the_configuration(capsys):
    assert run_cli("pretrain", "--cfg", "job", "vision=resnet50") == 0
    assert "name: resnet50" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["source == 'nih'", "view != 'LATERAL'", 'note == "it\'s (a) b"'])
def test_an_expression_needs_no_quotes_beyond_the_shells(where):
    cfg = compose_verb("evaluate", ["target=folder", f"target.where={where}"])
    assert cfg.target.where == where


@pytest.mark.parametrize(
    "argument",
    ["draw=0,1,2", "label_fraction=0.1", "-m", "a=[1,2", "out='x y'", "name=two words"],
)
def test_what_hydra_reads_or_should_refuse_is_left_alone(argument):
    assert quoted([argument]) == [argument]


@pytest.mark.parametrize(
    "line, offered",
    [
        ("vlp-bench pre", {"prepare", "pretrain"}),
        ("vlp-bench pretrain meth", {"method=", "method."}),
        ("vlp-bench pretrain vision=tin", {"vision=tiny"}),
        ("vlp-bench evaluate label_fr", {"label_fraction="}),
        ("vlp-bench nothing met", set()),
    ],
)
def test_the_shell_completes_verbs_groups_and_keys(line, offered, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert run_cli("-sc", "query=bash") == 0
    assert set(capsys.readouterr().out.split()) == offered


def test_completion_installs_for_the_program(capsys):
    assert run_cli("-sc", "install=bash") == 0
    assert "hydra_bash_completion vlp-bench" in capsys.readouterr().out


def test_options_may_stand_between_overrides(tmp_path, capsys):
    folder = write_fifth_method(tmp_path, "between")
    assert run_cli("pretrain", "method=fifth", "--config-dir", str(folder), "seed=3", "--cfg", "job") == 0
    shown = capsys.readouterr().out
    assert "between.Fifth" in shown
    assert "seed: 3" in shown


def test_a_run_is_named_after_what_it_is_not_where_it_is(tmp_path):
    def name(*overrides):
        return run_name(compose_verb("pretrain", overrides))

    base = name()
    assert name("paths.output_root=/elsewhere", "trainer.devices=2", "logger=wandb", "data.num_workers=7") == base
    assert name("seed=1") != base
    assert name("optimizer.lr=0.1") != base
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        content = "one" if folder != "c" else "two"
        (tmp_path / folder / "manifest.json").write_text(f'{{"fingerprint": "{content}"}}')
    a, b, c = (name("data=mimic_cxr", f"data.dir={tmp_path / x}") for x in "abc")
    assert a == b != c


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`vlp-bench doctor data=NAME | head`: the pipe is closed while the output comes."""
    here, there = os.pipe()
    os.close(here)
    command = [sys.executable, "-m", "vlp_bench", "doctor", "data=covidx"]
    done = subprocess.run(command, stdout=there, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(there)
    assert (done.returncode, done.stderr) == (0, "")
