"""Sentences that name a class, and what becomes of their embeddings.

Source: docs/papers/pb_ovd.md, sections 3.5 and 6.4; salesforce/PB-OVD@f62bdfc
`prepare_clip_embedding_for_open_vocab.py`.
"""

from torch import Tensor

SCENES = (
    "There is a {} in the scene.",
    "There is the {} in the scene.",
    "a photo of a {} in the scene.",
    "a photo of the {} in the scene.",
    "a photo of one {} in the scene.",
)
DETERMINERS = (
    *(f"itap of {word} {{}}." for word in ("a", "my", "the")),
    *(f"a photo of {word} {{}}." for word in ("a", "my", "the", "one", "many")),
)
PHOTOS = tuple(  # "good photo of a ...", and so on
    f"a {adjective} photo of {word} {{}}." for adjective in ("good", "bad") for word in ("a", "the")
)
OBJECTS = tuple(
    f"a photo of {word} {adjective} {{}}."
    for adjective in ("nice", "cool", "weird", "small", "large", "clean", "dirty")
    for word in ("a", "the")
)
LIGHT = tuple(
    f"a {adjective} photo of {word} {{}}."
    for adjective in ("bright", "dark")
    for word in ("a", "the")
)
HARD = tuple(f"a photo of {word} hard to see {{}}." for word in ("a", "the"))
QUALITY = tuple(
    f"a {adjective} photo of {word} {{}}."
    for adjective in (
        "low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated",
    )
    for word in ("a", "the")
)  # fmt: skip
# The last one has no full stop, as in the official code.
MONOCHROME = ("a black and white photo of the {}.", "a black and white photo of a {}")
MATERIALS = (
    *(f"{word} {kind} {{}}." for kind in ("plastic", "toy", "plushie", "cartoon")
      for word in ("a", "the")),
    "an embroidered {}.", "the embroidered {}.", "a painting of the {}.", "a painting of a {}.",
)  # fmt: skip
TEMPLATES = (
    *SCENES, *DETERMINERS, *PHOTOS, *OBJECTS, *LIGHT, *HARD, *QUALITY, *MONOCHROME, *MATERIALS,
)  # fmt: skip


def prompts(name: str) -> list[str]:
    """The 63 sentences that name a class."""
    readable = name.replace("_", " ").lower()
    return [template.format(readable) for template in TEMPLATES]


def class_embeddings(prompt_embeddings: Tensor) -> Tensor:
    """(K, D) means over the prompts of (K, P, D); the length of neither is changed."""
    return prompt_embeddings.mean(dim=1)
