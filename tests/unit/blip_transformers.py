"""What transformers' port of BLIP computes: tiny models of its three classes, and their outputs.

    PYTHONPATH=.:SITE python -m tests.unit.blip_transformers tests/fixtures/blip

records them with the transformers in SITE: KIND/config.json and KIND/model.safetensors as
`save_pretrained` writes them, KIND/outputs.safetensors with inputs and what came of them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.unit.blip_toy import BOS, ENC, PAD, SEP, TEXT, VISION, WORDS, batch

WIDTH = TEXT["hidden_size"]  # of images, too, as the port's answering needs it
SQUARE = VISION | {"width": WIDTH}
PROMPT, LONGEST, SHORTEST, SMOOTHING = [5, 6], 10, 5, 0.1
ANSWERS = {"a": [5], "b": [6, 7], "c": [8], "d": [9, 10, 11]}
KINDS = ("captioning", "retrieval", "vqa")
CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
}


def model(kind: str, seed: int) -> Any:
    """A random model in eval mode, whose weights are large enough to tell inputs apart."""
    import transformers

    vision = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "image_size": SQUARE["image_size"],
        "patch_size": SQUARE["patch_size"], "num_hidden_layers": SQUARE["depth"],
        "num_attention_heads": SQUARE["heads"], "layer_norm_eps": 1e-6,
    }  # fmt: skip
    text = {
        "hidden_size": WIDTH, "intermediate_size": TEXT["intermediate_size"], "vocab_size": WORDS,
        "num_hidden_layers": TEXT["num_layers"], "num_attention_heads": TEXT["num_heads"],
        "max_position_embeddings": TEXT["max_positions"], "bos_token_id": BOS, "sep_token_id": SEP,
        "eos_token_id": SEP, "pad_token_id": PAD, "label_smoothing": SMOOTHING,
    }  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=6, label_smoothing=SMOOTHING
    )
    torch.manual_seed(seed)
    made = getattr(transformers, CLASSES[kind])(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.9)
        for name, parameter in made.named_parameters():
            if name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                parameter.add_(1)
            if "position_embeddings" in name or "crossattention.output.dense.w" in name:
                parameter.mul_(4)  # so that words neither repeat for ever nor forget the image
    return made


def inputs(seed: int) -> dict[str, Tensor]:
    """Pictures, texts that begin with [CLS] and with [ENC], answers that begin with [DEC]."""
    made = batch(seed)
    ids = made["input_ids"]
    grounded, written = ids.clone(), ids.clone()
    grounded[:, 0], written[:, 0] = ENC, BOS
    longest = max(map(len, ANSWERS.values())) + 2
    answers = torch.full((len(ANSWERS), longest), PAD)
    for row, words in zip(answers, ANSWERS.values(), strict=True):
        row[: len(words) + 2] = torch.tensor([BOS, *words, SEP])
    return {
        "images": made["images"].double(),
        "mask": made["attention_mask"],
        "ids": ids,
        "grounded": grounded,
        "written": written,
        "answers": answers,
    }


def ended(ids: Tensor) -> Tensor:
    """Texts (B, n) -> (B, LONGEST), with padding behind the first [SEP]: releases of transformers
    fill with different tokens there."""
    after = ((ids == SEP).cumsum(dim=1) - (ids == SEP).long()) > 0
    return torch.nn.functional.pad(ids.masked_fill(after, PAD), (0, LONGEST - ids.shape[1]))


@torch.no_grad()
def outputs(kind: str, port: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the port makes of the inputs, in float64, so that rounding hides nothing."""
    port = port.double()
    return {"captioning": captions, "retrieval": scores, "vqa": answers}[kind](port, given)


def captions(port: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    images, mask = given["images"], given["mask"]
    start = torch.tensor([[BOS, *PROMPT, SEP]]).expand(len(images), -1)  # its last is cut off
    lengths = {"max_length": LONGEST, "min_length": SHORTEST, "do_sample": False}

    def write(**settings: Any) -> Any:
        return port.generate(images, input_ids=start.clone(), **lengths, **settings)

    beams = write(num_beams=3, return_dict_in_generate=True, output_scores=True)
    return {
        "logits": port(images, given["written"], attention_mask=mask).logits,
        "greedy": ended(write(num_beams=1)),
        "beams_of_sums": ended(write(num_beams=3, length_penalty=0.0)),
        "beams": ended(beams.sequences),
        "beam_scores": beams.sequences_scores,
    }


def scores(port: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    images, mask = given["images"], given["mask"]
    return {
        "enc": port(given["grounded"], images, attention_mask=mask).itm_score,
        "cls": port(given["ids"], images, attention_mask=mask).itm_score,
        "cosines": port(given["ids"], images, attention_mask=mask, use_itm_head=False).itm_score,
    }


def answers(port: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    images, mask, candidates = given["images"], given["mask"], given["answers"]
    seen = port.vision_model(images)[0]
    read = port.text_encoder(given["grounded"], mask, encoder_hidden_states=seen)[0]
    questions, number = len(images), len(candidates)
    rows = torch.arange(questions).repeat_interleave(number)
    ids = candidates.repeat(questions, 1)
    told = port.text_decoder(
        ids,
        attention_mask=(ids != PAD).long(),
        encoder_hidden_states=read[rows],
        encoder_attention_mask=mask[rows],
        labels=ids.masked_fill(ids == PAD, -100),
        reduction="none",
    )
    lengths = {"max_length": LONGEST, "min_length": 3, "do_sample": False}
    written = port.generate(given["grounded"], images, attention_mask=mask, num_beams=3, **lengths)
    return {
        "logits": told.logits.view(questions, number, *told.logits.shape[1:]),
        "losses": told.loss.view(questions, number),
        "written": ended(written),
    }


def record(folder: Path, seed: int) -> None:
    """Write models, inputs and outputs of each kind below `folder`."""
    for kind in KINDS:
        port, given = model(kind, seed), inputs(seed)
        port.save_pretrained(folder / kind)
        (folder / kind / "generation_config.json").unlink(missing_ok=True)
        found = {f"out/{key}": value for key, value in outputs(kind, port, given).items()}
        both = {key: value.contiguous() for key, value in (given | found).items()}
        save_file(both, folder / kind / "outputs.safetensors")


if __name__ == "__main__":
    record(Path(sys.argv[1]), seed=1)
