"""Our modules for captioning and retrieval as the tool's captioner and filter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.blip.capfilt.settings import CapFiltError, Settings
from shared.predict.inputs import PredictError, load_predictor
from shared.randomness import key_uniforms

PENALTY = 1.1  # of repetition where captions are sampled, as `BLIP_Decoder.generate` has it
WORDS, TOKENS = 30, 35  # of a text that is judged: salesforce/BLIP@056a169 `configs/retrieval_coco`


class Loaded:
    """A checkpoint of ours whose module has the attribute `part`, and what it sees of images."""

    def __init__(self, path: str, device: str, part: str, task: str) -> None:
        try:
            self.predictor: Any = load_predictor(Path(path), device)
        except (PredictError, FileNotFoundError) as error:
            raise CapFiltError(str(error)) from error
        self.module: Any = self.predictor.module
        self.tokenizer: Any = self.predictor.tokenizer
        if not hasattr(self.module, part) or self.tokenizer is None:
            found = type(self.module).__name__
            raise CapFiltError(f"{path} holds {found}: give a checkpoint of {task}")
        transform = self.predictor.transform
        self.size, self.mean, self.std = transform.size, transform.mean, transform.std
        self.on_white = self.predictor.image_mode == "RGBA"


class ModuleCaptioner(Loaded):
    """Writes with `methods.blip.captioning.Captioning`."""

    def __init__(self, path: str, settings: Settings, device: str) -> None:
        from shared.nn.generation import Generation

        super().__init__(path, device, "captions", "captioning")
        self.prompt = self.tokenizer.opening(settings.prompt).tolist()[1:]
        learned = list(self.module.hparams["prompt_ids"])
        if self.prompt != learned:
            own = self.tokenizer.decode(torch.tensor([learned]))[0]
            raise CapFiltError(f"{path} learned to go on from another prompt: --prompt '{own} '")
        if len(self.prompt) + 1 >= settings.max_length:
            raise CapFiltError(
                f"--max-length {settings.max_length} leaves no room after the prompt"
            )
        self.generation = Generation(
            settings.max_length,
            settings.min_length,
            self.tokenizer.sep_id,
            self.tokenizer.pad_id,
            num_beams=max(1, settings.beams),
            repetition_penalty=1.0 if settings.beams else PENALTY,
            sample=not settings.beams,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )

    def write(self, images: Tensor, keys: NDArray[np.uint64]) -> list[str]:
        module, length = self.module, self.generation.max_length
        draws = torch.from_numpy(key_uniforms(keys, length)).to(module.device)
        context = module.look(images.to(module.device))
        found = module.decoder.write(context, self.prompt, self.generation, draws).sequences
        return self.tokenizer.decode(found[:, 1 + len(self.prompt) :].cpu())


class ModuleFilter(Loaded):
    """Judges with `methods.blip.retrieval.Retrieval`, as `methods.blip.filtering` does."""

    def __init__(self, path: str, device: str) -> None:
        super().__init__(path, device, "matching", "retrieval")

    def score(self, images: Tensor, texts: Sequence[str], owners: Tensor) -> Tensor:
        encoders, device = self.module.encoders, self.module.device
        cleaned = [self.predictor.rules.clean_caption(text, WORDS) for text in texts]
        ids, mask = (part.to(device) for part in self.tokenizer.batch(cleaned, TOKENS))
        ids[:, 0] = encoders.enc_id
        tokens, _ = encoders.encode_image(images.to(device))
        context = [seen.rows(owners.to(device)) for seen in encoders.text_encoder.project(tokens)]
        read = encoders.read_text(ids, mask)
        logits = self.module.matching.quick_logits(encoders.text_encoder, context, read, mask)
        return logits.float().softmax(dim=1)[:, 1]
