"""Shenzhen tuberculosis set (National Library of Medicine): 662 frontal images, a label in each file name.

Expected under the raw directory, as downloaded (or one or two folders below it):

    CXR_png/CHNCXR_0001_0.png            the last digit is the label: 0 normal, 1 tuberculosis
    ClinicalReadings/CHNCXR_0001_0.txt   sex, age and findings in free text
    mask/CHNCXR_0001_0_mask.png          lungs of 566 images, from a separate release (mask, masks)

or the release on Kaggle: images/images/CHNCXR_0001_0.png and shenzhen_metadata.csv (study_id, sex, age, findings).
"""

from pathlib import Path
from typing import Any

from vlp_bench.data.divisions import parts
from vlp_bench.data.sources import _nlm
from vlp_bench.data.sources._tables import find, images
from vlp_bench.data.study import Division, Source

ORIGIN = "It is NLM's ChinaSet_AllFiles.zip: data.raw_dir must be the folder that holds CXR_png."


def read(raw_dir: Path, lists: str | None = None) -> Source:
    """Index the data set.

    Args:
        raw_dir: holds CXR_png or images.
        lists: a folder with published train, val (or valid) and test lists.

    Raises:
        UserError: no folder of images, or none of this set in it; lists that name none of them.
    """
    folder = find(raw_dir, "mask", "masks", "*/mask", "*/masks", "*/*/mask", "*/*/masks")
    masks = images(raw_dir, str(folder.relative_to(raw_dir))) if folder else {}

    def masks_of(image_id: str) -> tuple[dict[str, Any], ...]:
        path = masks.get(f"{image_id}_mask") or masks.get(image_id)
        return ({"label": "Lungs", "path": path},) if path else ()

    return _nlm.read_set("shenzhen", raw_dir, "CHNCXR", ORIGIN, masks_of, _divisions, lists)


def _divisions(ids: list[str]) -> list[Division]:
    """The published lists are ranges of numbers, normal images and tuberculosis apart."""
    numbers = {i: n for i in ids if (n := int(i.split("_")[1])) <= 662}
    val = [i for i, n in numbers.items() if 229 <= n <= 261 or 562 <= n <= 595]
    test = [i for i, n in numbers.items() if 262 <= n <= 326 or n >= 596]
    train = [i for i in numbers if i not in {*val, *test}]
    origin = "REFERS' lists (463/67/132), which are ranges of the numbers in the file names"
    return [Division("refers", parts(train, val, test), origin)] if numbers else []
