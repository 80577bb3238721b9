"""Loads the model of an index. It stands apart, so that nothing else of the tool imports torch."""

from collections.abc import Mapping
from typing import Any

from methods.cascode.search.models import Model, Settings
from methods.cascode.search.store import SearchError


def load(settings: Settings) -> Model:
    """The model, from a checkpoint of ours, a Hugging Face folder or an installed package.

    Raises:
        SearchError: it is not there, or no model for code search.
    """
    from methods.cascode.inference import load_search_model

    arguments: Mapping[str, Any] = {
        "precision": settings.precision,
        "pooling": settings.pooling,
        "normalize": settings.normalize,
    }
    try:
        return load_search_model(settings.source, **arguments)
    except ImportError:
        raise
    except Exception as error:  # a damaged file surfaces as what its first wrong byte provokes
        raise SearchError(f"no usable model: {str(error) or type(error).__name__}") from error
