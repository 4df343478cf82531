"""Montgomery County tuberculosis set (National Library of Medicine): 138 frontal images with masks of both lungs.

Expected under the raw directory, as downloaded (or one or two folders below it):

    CXR_png/MCUCXR_0001_0.png            the last digit is the label: 0 normal, 1 tuberculosis
    ClinicalReadings/MCUCXR_0001_0.txt   sex, age and findings in free text
    ManualMask/leftMask/MCUCXR_0001_0.png, ManualMask/rightMask/MCUCXR_0001_0.png

or the release on Kaggle: images/images/MCUCXR_0001_0.png and montgomery_metadata.csv (study_id, sex, age, findings).
"""

from pathlib import Path
from typing import Any

from vlp_bench.data.sources import _nlm
from vlp_bench.data.sources._tables import find_below, images
from vlp_bench.data.study import Source

ORIGIN = "It is NLM's NLM-MontgomeryCXRSet.zip: data.raw_dir must be the folder that holds CXR_png."
#: What a mask of each folder shows, as the folders name it.
SIDES = {"Left Lung": "leftMask", "Right Lung": "rightMask"}


def read(raw_dir: Path, lists: str | None = None) -> Source:
    """Index the data set.

    Args:
        raw_dir: holds CXR_png or images.
        lists: a folder with published train, val (or valid) and test lists.

    Raises:
        UserError: no folder of images, or none of this set in it; lists that name none of them.
    """
    sides = {label: _folder(raw_dir, f"ManualMask/{folder}") for label, folder in SIDES.items()}
    joined = _folder(raw_dir, "masks")

    def masks_of(image_id: str) -> tuple[dict[str, Any], ...]:
        known = {label: masks[image_id] for label, masks in sides.items() if image_id in masks}
        whole = list(known.values()) if len(known) == len(SIDES) else joined.get(image_id)
        lungs = [{"label": "Lungs", "path": whole}] if whole else []
        return (*lungs, *({"label": label, "path": path} for label, path in known.items()))

    return _nlm.read_set("montgomery", raw_dir, "MCUCXR", ORIGIN, masks_of, lists=lists)


def _folder(raw_dir: Path, name: str) -> dict[str, str]:
    folder = find_below(raw_dir, name)
    return images(raw_dir, str(folder.relative_to(raw_dir))) if folder else {}
