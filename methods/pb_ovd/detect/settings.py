"""What decides a result of labelling: equal settings, teacher, proposals and input, equal bytes."""

from dataclasses import dataclass

from methods.pb_ovd.pseudo_boxes import AREA_EXPONENT, THRESHOLD


@dataclass(frozen=True)
class Settings:
    """Settings of the official code where it has one (docs/papers/pb_ovd.md, sections 3.1 to 3.5).

    `official` does what it does and a data set is better without: words that the teacher does not
    know match any such word, an object's map leaks into that of a later one which begins with the
    same word piece, and an object for which no proposal qualifies gets the box 0, 0, 0, 0.
    """

    layer: int | None = None  # of the text stack, from 0; None: the third with cross-attention
    threshold: float = THRESHOLD
    exponent: float = AREA_EXPONENT
    most: int = 100  # proposals of an image, the best of a detector or the first of a file
    every_caption: bool = False  # of an entry with several; else one by lot
    official: bool = False
    batch_size: int = 16
    seed: int = 0
    limit: int | None = None  # entries that are read
    max_pixels: int = 1 << 26  # of an image
    licence: str = ""  # of the data, as the user states it
