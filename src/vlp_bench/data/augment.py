"""Random changes of downstream images that masks and boxes go through, too; what the papers use, by name."""

from typing import Any

import albumentations as A
import cv2
import numpy as np

from vlp_bench.errors import UserError

#: Share of a box that must stay in sight.
VISIBLE = 0.25


def _recipes(size: int) -> dict[str, list[Any]]:
    crop = A.RandomCrop(size, size)
    return {
        "none": [A.Resize(size, size, interpolation=cv2.INTER_AREA)],
        "crop": [crop],
        "crop_flip": [crop, A.HorizontalFlip(p=0.5)],
        # MoCo v2 without its change of size, as MGCA's fine-tuning of CheXpert
        "moco": [
            crop,
            A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
            A.HorizontalFlip(p=0.5),
        ],
        # MGCA's segmentation
        "scale_rotate": [
            A.Resize(size, size, interpolation=cv2.INTER_AREA),
            A.Affine(scale=(0.9, 1.1), rotate=(-10, 10), border_mode=cv2.BORDER_CONSTANT, p=0.5),
        ],
        # the fine-tuning of REFERS and of BenchX' NIH
        "resized_crop_flip": [A.RandomResizedCrop((size, size), scale=(0.08, 1.0)), A.HorizontalFlip(p=0.5)],
    }


def augmentation(name: str, size: int) -> A.Compose:
    """A transform of one uint8 grey image with its masks and boxes.

    Args:
        name: none (the whole image, made smaller), crop, crop_flip, moco, scale_rotate or resized_crop_flip.
        size: side of the result in pixels.

    Returns:
        To be called with `image` (H, W, 1), `masks` (list of (H, W)), `bboxes` (xyxy) and `classes`.

    Raises:
        UserError: an unknown name.
    """
    recipes = _recipes(size)
    if name not in recipes:
        raise UserError(f"adaptation.augment={name}: expected one of {', '.join(recipes)}.")
    boxes = A.BboxParams("pascal_voc", label_fields=["classes"], min_visibility=VISIBLE, clip=True)
    return A.Compose(recipes[name], bbox_params=boxes)


def apply(
    transform: A.Compose, image: np.ndarray, masks: np.ndarray | None, boxes: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Change one image with what belongs to it, with random numbers of `seed` alone.

    Args:
        transform: of `augmentation`.
        image: uint8 (H, W).
        masks: uint8 (L, H, W).
        boxes: float (N, 5): xyxy in pixels, class.
        seed: of all draws.

    Returns:
        The same three, changed; boxes that are nearly out of sight are gone.
    """
    transform.set_random_seed(seed)
    found = transform(
        image=image[..., None],
        masks=[] if masks is None else list(masks),
        bboxes=np.zeros((0, 4)) if boxes is None else boxes[:, :4],
        classes=[] if boxes is None else boxes[:, 4].tolist(),
    )
    kept = None
    if boxes is not None:
        kept = np.concatenate([np.reshape(found["bboxes"], (-1, 4)), np.reshape(found["classes"], (-1, 1))], axis=1)
    return found["image"][..., 0], None if masks is None else np.stack(found["masks"]), kept
