"""The prompter: soft labels of what a region shows, from sentences that name entities.

Shapes: B clips, E entities, K templates, L tokens, J joint dimension.
Source: docs/papers/alpro.md, section 3.6; salesforce/ALPRO@4ff6163
`src/modeling/alpro_models.py:Prompter`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.alpro.network import VideoTextContrast, VideoTextEncoders
from shared.data.errors import DataCorruptError
from shared.data.readers.files import read_text
from shared.losses.contrastive import similarity_logits
from shared.nn.heads import unit_norm

SCENES = {
    "video": ("A footage of", "A video of", "A portrait of", "A video footage of"),
    "image": ("A photo of", "A picture of", "A good photo of", "A good picture of"),
}
TEMPLATES = {
    kind: tuple(f"{scene} {article} {{}}." for scene in scenes for article in ("a", "the", "one"))
    for kind, scenes in SCENES.items()
}
"""What is said of the entities in videos and in still pictures."""


def read_entities(path: str | Path, count: int) -> list[str]:
    """The first word of each of the first `count` lines of a file, as of `unigrams.txt`, which
    lists the nouns of the captions by frequency; DataCorruptError where a line has none, or there
    are fewer."""
    lines = read_text(Path(path)).splitlines()[:count]
    if len(lines) < count:
        raise DataCorruptError(
            f"{path} names {len(lines)} entities: lower method.num_entities={count}"
        )
    words = [line.split()[:1] for line in lines]
    if [] in words:
        raise DataCorruptError(f"{path}, line {words.index([]) + 1}: no entity")
    return [word for (word,) in words]


class EntityPrompter(nn.Module):
    """A frozen encoder of videos and texts, which VTC alone has trained, and the features of the
    prompts of E entities. It reads with the text layers below `fusion_layer`, the only ones it
    has, and stays in evaluation mode."""

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], embed_dim: int, entities: int):
        super().__init__()
        self.encoders = VideoTextEncoders(vision, unimodal(text), embed_dim, masked_lm=False)
        self.contrast = VideoTextContrast(temperature=0.07)
        for kind in TEMPLATES:
            self.register_buffer(f"{kind}_prompts", torch.zeros(entities, embed_dim))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EntityPrompter":
        return super().train(False)

    @torch.no_grad()
    def name(self, entities: list[str], tokenizer: Any) -> None:
        """Compute the features of all prompts by `shared.data.text.wordpiece.WordPiece`."""
        for kind, templates in TEMPLATES.items():
            prompts = [template.format(entity) for template in templates for entity in entities]
            ids, mask = (x.to(self.contrast.temp.device) for x in tokenizer.batch(prompts))
            getattr(self, f"{kind}_prompts").copy_(self.prompt_features(ids, mask))

    @torch.no_grad()
    def prompt_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(E, J) means over the templates of the unit-norm features of prompts (K E, L), template
        after template; they are shorter than unit vectors, and stay so."""
        count = len(self.video_prompts)
        parts = zip(ids.split(count), mask.split(count), strict=True)
        features = [self.encoders.encode_text(*part)[1] for part in parts]
        return torch.stack(features).mean(dim=0)

    @torch.no_grad()
    def forward(self, clips: Tensor, kind: str) -> Tensor:
        """(B, E) soft labels of clips (B, T, 3, S, S), "video" or "image" by their `kind`."""
        vision: Any = self.encoders.visual_encoder
        seen = vision.class_token(clips)
        features = unit_norm(self.encoders.vision_proj(seen))
        prompts = getattr(self, f"{kind}_prompts")
        return similarity_logits(features, prompts, self.contrast.temp).softmax(dim=1)


def unimodal(text: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a text transformer that has only the layers below `fusion_layer`."""
    return {**text, "num_layers": text["fusion_layer"]}
