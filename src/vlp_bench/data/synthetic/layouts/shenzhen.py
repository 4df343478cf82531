"""The Shenzhen tuberculosis set: palette PNG, readings in free text, lung masks for most images."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save, save_png

#: What stands for tuberculosis in a world that has none.
SIGNS = ("Consolidation", "Lung Lesion", "Lung Opacity")
_SEXES = {"M": ("male", "Male", "male"), "F": ("female", "Female,", "femal")}


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    rng = np.random.default_rng([image.seed, 4])
    stem, drawn = name(study, "CHNCXR"), draw(job, image)
    buffer = io.BytesIO()
    Image.fromarray(drawn.picture).convert("P").save(buffer, "PNG")
    save(job.root / "CXR_png" / f"{stem}.png", buffer.getvalue())
    if rng.random() < 0.85:
        save_png(job.root / "mask" / f"{stem}_mask.png", drawn.masks["Lungs"])
    age = f"{study.age}month" if rng.random() < 0.05 else f"{study.age}yrs"
    sex = _SEXES[study.sex][int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
    reading = f"{sex} {age}\n{finding(study)}\n"
    save(job.root / "ClinicalReadings" / f"{stem}.txt", reading.encode())
    return {}


def name(study: SyntheticStudy, prefix: str) -> str:
    """A file name of the set; seven digits, for the real four would not tell the studies apart."""
    return f"{prefix}_{study.study_id[1:]}_{int(infected(study))}"


def infected(study: SyntheticStudy) -> bool:
    """Whether the study counts as tuberculosis."""
    return any(study.truth[sign] for sign in SIGNS)


def finding(study: SyntheticStudy) -> str:
    """The note of a radiologist."""
    seen = [f for f in study.findings if f.name in SIGNS]
    return "\n".join(f"{f.side} {f.zone} {f.name.lower()}, PTB".strip() for f in seen) or "normal"


def split_lungs(lungs: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """The masks of the left and the right lung; the patient's right is on the left of the image."""
    columns = np.flatnonzero(lungs.any(0))
    middle = int(columns[[0, -1]].mean()) if len(columns) else lungs.shape[1] // 2
    side = np.arange(lungs.shape[1]) < middle
    return {"left": lungs & ~side, "right": lungs & side}


def write_tables(root: Path, tables: Rows) -> None:
    """Write what the set has besides its images."""
    save(root / "NLM-ChinaCXRSet-ReadMe.docx", b"PK\x05\x06" + bytes(18))
