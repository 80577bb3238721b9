"""ALBEF's RandAugment variant on uint8 images (H, W, 3): no operations meant to change colours.

Captions name colours. Ten operations are left, two drawn with replacement, each applied with
probability 0.5 at level 7 of ten; no cutout. All are among CoMatch's in
`shared.data.views.randaugment`, with the same magnitudes (docs/papers/albef.md, section 5.2;
salesforce/ALBEF@b9727e4 dataset/randaugment.py; BLIP's are equal, at level 5). Two are corrected
here: `OFFICIAL` has them as the official code does.
"""

from functools import partial

import numpy as np

from shared.data.views import randaugment
from shared.data.views.randaugment import Entry, Picture, enhance, sharpness

LEVEL = 7
auto_contrast = partial(randaugment.auto_contrast, whole=True)

# In the order of the official list.
OFFICIAL: dict[str, Entry] = {
    name: randaugment.OPERATIONS[name]
    for name in (
        "Identity",
        "AutoContrast",  # whitens a channel that has no zero
        *("Equalize", "Brightness"),
        "Sharpness",  # wraps around
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    )
}
OPERATIONS: dict[str, Entry] = OFFICIAL | {
    "AutoContrast": (auto_contrast, None, False),
    "Sharpness": (partial(sharpness, clip=True), enhance, False),
}


def rand_augment(
    image: Picture,
    generator: np.random.Generator,
    count: int = 2,
    level: float = LEVEL,
    probability: float = 0.5,
    official: bool = False,
) -> Picture:
    """Apply `count` random operations, each with `probability`; `official`: with their oddities."""
    known = OFFICIAL if official else OPERATIONS
    return randaugment.random_operations(image, generator, count, level, probability, known)
