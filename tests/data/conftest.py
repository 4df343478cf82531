"""Raw data in small: the synthetic world in both layouts, and folders written by hand."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import folder, mimic_cxr
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import SyntheticStudy, sample_studies, write_raw
from vlp_bench.data.tokenization import Tokenizer

#: with this seed every split has some studies
STUDIES, SEED, RAW_SIZE, STORED = 60, 1, 96, 64


@pytest.fixture(scope="session")
def world() -> list[SyntheticStudy]:
    """The truth behind both."""
    return sample_studies(STUDIES, SEED)


@pytest.fixture(scope="session")
def raw_mimic(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "mimic"
    write_raw("mimic_cxr", path, studies=STUDIES, seed=SEED, size=RAW_SIZE)
    return path


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "folder"
    write_raw("folder", path, studies=STUDIES, seed=SEED, size=RAW_SIZE)
    return path


@pytest.fixture(scope="module")
def raw(request, tmp_path_factory) -> Path:
    """The raw layout that a file `test_source_NAME` is about, of its STUDIES, SEED and SIZE."""
    module = request.module
    name = module.__name__.rpartition("test_source_")[2]
    path = tmp_path_factory.mktemp(name) / "raw"
    write_raw(name, path, studies=module.STUDIES, seed=module.SEED, size=module.SIZE)
    return path


@pytest.fixture
def copy(raw, tmp_path) -> Path:
    """One that a test may damage; its path has a space and umlauts."""
    return Path(shutil.copytree(raw, tmp_path / "raw dätä"))


@pytest.fixture
def mimic_copy(raw_mimic, tmp_path) -> Path:
    """A raw MIMIC-CXR that a test may damage; its path has a space and an umlaut."""
    return Path(shutil.copytree(raw_mimic, tmp_path / "raw dätä"))


@pytest.fixture(scope="session")
def mimic_source(raw_mimic):
    return mimic_cxr.read(raw_mimic)


@pytest.fixture(scope="session")
def mimic_store(mimic_source, tmp_path_factory) -> PreparedData:
    path = tmp_path_factory.mktemp("prepared") / "mimic"
    prepare(mimic_source, path, Plan(STORED), private=True)
    return PreparedData(path)


@pytest.fixture(scope="session")
def folder_store(raw_folder, tmp_path_factory) -> PreparedData:
    path = tmp_path_factory.mktemp("prepared") / "folder"
    prepare(folder.read(raw_folder), path, Plan(STORED), private=False)
    return PreparedData(path)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("synthetic")


@pytest.fixture
def own_folder(tmp_path) -> Callable[..., Path]:
    """Make a folder of images from rows of metadata.csv; images that are not there yet are drawn."""

    def make(rows: list[dict], name: str = "own") -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        for row in rows:
            image = path / str(row.get("image_path", "x.png"))
            if str(row.get("image_path", "")) and image.resolve().is_relative_to(path) and not image.exists():
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.arange(80 * 60, dtype=np.uint8).reshape(80, 60)).save(image)
        pd.DataFrame(rows).to_csv(path / "metadata.csv", index=False)
        return path

    return make


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """Real data outside the repository."""
    if not os.environ.get("VLP_BENCH_REAL_DIR"):
        pytest.skip("VLP_BENCH_REAL_DIR is not set: it names the folder with data/cxr_sample and vocab/")
    return Path(os.environ["VLP_BENCH_REAL_DIR"])
