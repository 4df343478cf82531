"""The Montgomery County tuberculosis set: readings with headings, a mask for each lung."""

from pathlib import Path

from vlp_bench.data.synthetic.layouts.shenzhen import finding, name, split_lungs
from vlp_bench.data.synthetic.world import SyntheticStudy
from vlp_bench.data.synthetic.writing import Job, Rows, draw, save, save_png


def write_study(job: Job, study: SyntheticStudy) -> Rows:
    image = study.frontal
    if image is None:
        return {}
    stem, drawn = name(study, "MCUCXR"), draw(job, image)
    save_png(job.root / "CXR_png" / f"{stem}.png", drawn.picture)
    for side, mask in split_lungs(drawn.masks["Lungs"]).items():
        save_png(job.root / "ManualMask" / f"{side}Mask" / f"{stem}.png", mask)
    reading = f"Patient's Sex: {study.sex} \nPatient's Age: {study.age:03d}Y \n{finding(study)}\n"
    save(job.root / "ClinicalReadings" / f"{stem}.txt", reading.encode())
    return {}


def write_tables(root: Path, tables: Rows) -> None:
    """Write what the set has besides its images."""
    save(root / "NLM-MontgomeryCXRSet-ReadMe.pdf", b"%PDF-1.4\n")
