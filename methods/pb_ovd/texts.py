"""Names of classes as vectors: of a checkpoint, of a file, or by CLIP's text encoder.

Shapes: K names, P sentences a name, D numbers of an embedding.
Source: docs/papers/pb_ovd.md, sections 3.5 and 6.4.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from methods.pb_ovd.data import read_vectors
from methods.pb_ovd.prompts import class_embeddings, prompts
from shared.data.readers.files import one_line, shortened
from shared.data.readers.model_files import model_folder
from shared.predict.inputs import PredictError

AT_ONCE = (
    256  # sentences, so that a list of thousands of names needs no more memory than a short one
)
MOST_TOLD = 5  # of the names that are not known
ENCODER = "hub:openai/clip-vit-base-patch32, or its folder"

Embedder = Callable[[Sequence[str]], Tensor]
"""From names to (K, D), float32; PredictError of those that it cannot embed."""


def embedder(source: str | None, known: Mapping[str, Tensor], dim: int) -> Embedder:
    """What embeds names for a detector whose texts have `dim` numbers. PredictError or
    CheckpointError of a source that cannot be used.

    Args:
        source: a .json of embedded names; CLIP's text encoder as `hub:NAME`, from the hub's cache,
            or as a folder; None: the `known` names alone.
    """
    if source is not None and not source.endswith(".json"):
        encoder = ClipTexts(source)
        if encoder.dim != dim:
            told = f"its embeddings have {encoder.dim} numbers, those of the detector {dim}"
            raise PredictError(f"{source}: {told}")
        return encoder
    if source is not None:
        known = {name: torch.tensor(vector) for name, vector in read_vectors(source).items()}
        if any(len(vector) != dim for vector in known.values()):
            raise PredictError(f"{source}: not all embeddings have the detector's {dim} numbers")

    def embed(names: Sequence[str]) -> Tensor:
        unknown = [name for name in names if name not in known]
        if unknown:
            told = ", ".join(map(shortened, unknown[:MOST_TOLD]))
            more = f" and {len(unknown) - MOST_TOLD} more" if len(unknown) > MOST_TOLD else ""
            near = get_close_matches(unknown[0], known, 3, cutoff=0.5)
            hint = f"near the first: {', '.join(map(shortened, near))}; " if near else ""
            advice = f"{hint}embed any name by CLIP: {ENCODER}"
            raise PredictError(f"no embedding of {told}{more}, of {len(known)} known; {advice}")
        return torch.stack([known[name].float().cpu() for name in names])

    return embed


class ClipTexts:
    """CLIP's text encoder in Hugging Face's layout, by transformers: the mean of the embeddings of
    63 sentences about a name, of which none is brought to length 1."""

    def __init__(self, source: str) -> None:
        folder = model_folder(source)
        try:
            from transformers import CLIPTextModelWithProjection, CLIPTokenizer
        except ModuleNotFoundError as error:
            advice = "pip install 'tenfold[huggingface]', or give a .json of embedded names"
            raise PredictError(f"{source} needs transformers: {advice}") from error
        given: dict[str, Any] = {"local_files_only": True}
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, **given)
            self._model = CLIPTextModelWithProjection.from_pretrained(folder, **given).eval()
        except Exception as error:  # whatever the first wrong value of its files provokes
            raise PredictError(f"{source} is no text encoder of CLIP: {one_line(error)}") from error
        self.dim: int = self._model.config.projection_dim
        self._longest: int = self._model.config.max_position_embeddings

    @torch.inference_mode()
    def __call__(self, names: Sequence[str]) -> Tensor:
        sentences = [sentence for name in names for sentence in prompts(name)]
        parts = []
        for start in range(0, len(sentences), AT_ONCE):
            some = sentences[start : start + AT_ONCE]
            how: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
            tokens = self._tokenizer(some, max_length=self._longest, **how)
            parts.append(self._model(**tokens).text_embeds.float())
        return class_embeddings(torch.cat(parts).unflatten(0, (len(names), -1)))
