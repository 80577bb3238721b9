"""What the tool asks of a captioner and a filter, and the one place that makes them.

They must not be one network: the paper's table 4 has a filter that shares its weights with the
captioner drop 8 % of the texts instead of 25 %, because it believes what it wrote itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.origins import origin_of
from shared.data.errors import WorkError
from shared.data.readers.model_files import PACKAGE


class Network(Protocol):
    """Sees images (B, 3, S, S), float32 on the CPU: `size` is S, `mean` and `std` are those that
    values in 0..1 are normalised by, per channel. Transparent images lie `on_white`, or lose their
    alpha, as in the official code. It moves tensors to where it is itself."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    on_white: bool


class Captioner(Network, Protocol):
    """Writes texts. Sampling, lengths and prompt were settled when it was made."""

    def write(self, images: Tensor, keys: NDArray[np.uint64]) -> list[str]:
        """One text for each image (B, 3, S, S), without the prompt.

        All that is random in row b is a function of `keys[b]`, (B,): the j-th token that row b
        draws inverts, at `shared.randomness.key_uniforms(keys, n)[b, j]` in [0, 1), the cumulative
        distribution of the nucleus. So neither other rows nor earlier batches count.
        """


class Filter(Network, Protocol):
    """Judges whether a text belongs to an image."""

    def score(self, images: Tensor, texts: Sequence[str], owners: Tensor) -> Tensor:
        """(T,) match probabilities in 0..1: softmax of the two logits of matching, of class 1.

        Text t belongs to `images[owners[t]]`, owners (T,) int64; each of the images (B, 3, S, S) is
        encoded once. Texts come as they stand in the data, and are cleaned and cut as in training;
        position 0 is [ENC], as in training, while the official `models/blip_itm.py:BLIP_ITM` leaves
        [CLS] there (docs/papers/blip.md).
        """


@dataclass(frozen=True)
class Models:
    """The networks that settings need, and for each its name and SHA-256."""

    captioner: Captioner | None
    filter: Filter | None
    about: dict[str, dict[str, str]]

    def decoder(self, root: str | None, most_pixels: int) -> Decoder:
        """What makes of files the images that the networks see."""
        networks = [network for network in (self.captioner, self.filter) if network is not None]
        if len(grounds := {network.on_white for network in networks}) > 1:
            raise WorkError("one model was trained on transparent images, the other was not")
        sizes = sorted({network.size for network in networks})
        return Decoder(root, tuple(sizes), most_pixels, grounds.pop())


def load_models(
    captioner: str | None, filter: str | None, settings: Settings, device: str
) -> Models:
    """Load what the settings need from checkpoints of ours, official ones or Hugging Face folders;
    WorkError names what is not given or not there. No connection is opened."""
    needed = {"captioner": settings.synthetic, "filter": settings.filtered}
    given = {"captioner": captioner, "filter": filter}
    given = {name: path for name, path in given.items() if needed[name]}
    if missing := [f"--{name}" for name, path in given.items() if not path]:
        kinds = "a checkpoint of ours, an official one or a Hugging Face folder"
        raise WorkError(f"{' and '.join(missing)} not given: {kinds}")
    about = {name: origin_of(Path(path)) for name, path in given.items() if path}
    if settings.vocab and not settings.vocab.startswith(PACKAGE):
        about["vocabulary"] = origin_of(Path(settings.vocab))
    writer: Any = None
    judge: Any = None
    from methods.blip.capfilt.networks import ModuleCaptioner, ModuleFilter

    if path := given.get("captioner"):
        writer = ModuleCaptioner(path, settings, device)
    if path := given.get("filter"):
        judge = ModuleFilter(path, settings, device)
    return Models(writer, judge, about)
