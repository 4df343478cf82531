"""Planted sentences of private reports are looked for in everything that a run prints, logs, draws and writes."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import only, run_cli

from vlp_bench.data.synthetic import write_raw

SENTENCE = "Zanzibarian xylophone beneath the carina."
QUESTION, ANSWER = "is the quokkafish unicorn present?", "heffalump"
PLANTED = ("zanzibar", "xylophone", "quokkafish", "heffalump")
EVALUATE = ["trainer=smoke", "vision=tiny", "paths.cache=cache", "paths.output_root=runs", "logger=wandb"]
RUN = [*EVALUATE, "text=tiny"]
TARGET = ["target=folder", "target.raw_dir=raw"]
#: What may hold texts: the data as they came, and as they were prepared.
DATA = ("raw", "cache")


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """A folder of synthetic images whose reports and questions are marked, and everything done with it."""
    root = tmp_path_factory.mktemp("private")
    write_raw("folder", root / "raw", studies=90, seed=2, size=80)
    table = pd.read_csv(root / "raw" / "metadata.csv", dtype=str, keep_default_na=False)
    table["report_text"] = table["report_text"].str.rstrip() + f" {SENTENCE}\n"

    def planted(text: str) -> str:
        extra = json.loads(text)
        extra["questions"].append({"question": QUESTION, "answer": ANSWER, "type": "open"})
        return json.dumps(extra)

    table["extra_json"] = table["extra_json"].map(planted)
    # a row that is broken, for the messages about it
    table.loc[3, "image_path"] = "images/none.jpg"
    table.to_csv(root / "raw" / "metadata.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        assert run_cli("pretrain", "method=medvill", "data=folder", "data.raw_dir=raw", *RUN) == 0
        yield root


def searched(root) -> tuple[list, list]:
    """Files outside the data that hold a planted word, and all that were looked at."""
    files = [p for p in root.rglob("*") if p.is_file() and p.relative_to(root).parts[0] not in DATA]
    found = []
    for path in files:
        content = path.read_bytes().lower()
        if path.suffix == ".parquet":
            content = pd.read_parquet(path).to_json().encode().lower()
        if any(word.encode() in content for word in PLANTED):
            found.append(path.relative_to(root))
    return found, files


def everything(*options: str) -> None:
    backbone = f"backbone={only(Path('runs/pretrain'), '*')}"
    for task, adaptation in (
        ("retrieval", "none"), ("report_generation", "none"), ("vqa", "frozen"), ("classification", "probe"),
        ("segmentation", "frozen"), ("detection", "frozen"),
    ):  # fmt: skip
        done = run_cli("evaluate", backbone, f"task={task}", f"adaptation={adaptation}", *TARGET, *EVALUATE, *options)
        assert done == 0, task
    assert run_cli("report", "runs=runs", "out=report") == 0


@pytest.mark.slow
def test_nothing_private_is_printed_logged_drawn_or_written(private, capfd, caplog):
    everything()
    found, files = searched(private)
    text = "".join(capfd.readouterr()) + caplog.text
    assert not [word for word in PLANTED if word in text.lower()]
    assert not [p for p in found if p.suffix != ".parquet"]
    assert not [p for p in files if p.suffix.lower() in (".png", ".jpg", ".jpeg") or b"image/png" in p.read_bytes()]
    assert any(p.suffix == ".wandb" for p in files)
    assert any(p.suffix == ".html" for p in files)


@pytest.mark.slow
def test_it_is_when_the_user_says_so(private, capfd):
    """The same search finds what it should not find above."""
    everything("privacy.allow_media=true", "overwrite=true")
    found, files = searched(private)
    assert any(p.suffix == ".png" for p in files)
    assert any(p.suffix == ".html" for p in found)


@pytest.mark.slow
def test_errors_do_not_quote_private_texts(private, capfd):
    table = pd.read_csv("raw/metadata.csv", dtype=str, keep_default_na=False)
    cases = {
        "questions": table.assign(extra_json=json.dumps({"questions": [{"question": QUESTION, "answer": ""}]})),
        "no JSON": table.assign(extra_json="{" + QUESTION),
        "boxes": table.assign(boxes_json=QUESTION),
        "labels": table.assign(view=""),
    }
    for name, broken in cases.items():
        shutil.rmtree("raw2", ignore_errors=True)
        shutil.copytree("raw", "raw2")
        broken.to_csv("raw2/metadata.csv", index=False)
        run_cli(
            "evaluate",
            f"backbone={only(Path('runs/pretrain'), '*')}",
            "task=vqa",
            "adaptation=frozen",
            "target=folder",
            "target.raw_dir=raw2",
            *EVALUATE,
        )
        run_cli("doctor", "data=folder", "data.raw_dir=raw2", "paths.cache=cache")
        text = "".join(capfd.readouterr()).lower()
        assert "vlp-bench: " in text or name in ("labels", "boxes")
        assert not [word for word in PLANTED if word in text], f"{name}: {text}"
    shutil.rmtree("raw2")
