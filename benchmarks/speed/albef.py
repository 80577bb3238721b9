"""ALBEF beside its official algorithm, written plainly with the layers of PyPI `transformers`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.peer_environment import PeerPackage
from benchmarks.speed.protocol import Comparison

PEER = PeerPackage(
    requirement="transformers==5.24.0",
    dependencies=(
        "huggingface-hub",
        "numpy",
        "pyyaml",
        "regex",
        "safetensors",
        "timm==1.0.31",
        "tokenizers==0.23.3",
        "tqdm",
        "typer",
    ),
)
OURS_MODULE = "benchmarks.speed.albef_ours"
PEER_MODULE = "benchmarks.speed.albef_peer"

SETTINGS = {
    "batch_size": 16,
    "vision": {
        "image_size": 128,
        "patch_size": 16,
        "width": 384,
        "depth": 6,
        "heads": 6,
        "mlp_ratio": 4.0,
    },
    "text": {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_layers": 6,
        "num_heads": 6,
        "intermediate_size": 1536,
        "max_positions": 512,
        "dropout": 0.1,
        "cross_attention_from": 3,
    },
    "embed_dim": 256,
    "queue_size": 4096,
    "momentum": 0.995,
    "alpha": 0.4,
    "temperature": 0.07,
    "mlm_probability": 0.15,
    "special": {"pad": 0, "cls": 101, "mask": 103},
    "lr": 1e-4,
    "weight_decay": 0.02,
    # Re-ranking: the layers above those of text alone, on given tokens; of the official size, and
    # of the size, gallery and texts of `make reproduce`.
    "full_size": {
        "width": 768,
        "heads": 12,
        "intermediate": 3072,
        "layers": 6,
        "images": 8,
        "image_tokens": 577,
        "texts": 40,
        "text_tokens": 30,
        "k_test": 6,
    },
    "miniature": {
        "width": 96,
        "heads": 4,
        "intermediate": 384,
        "layers": 2,
        "images": 300,
        "image_tokens": 17,
        "texts": 300,
        "text_tokens": 12,
        "k_test": 64,
    },
    "seed": 0,
}
LONGEST = 25  # tokens of a text in pre-training
GALLERIES = ("full_size", "miniature")
STEPS = 2
WARM_UP_STEPS = 2

HEADER = f"""\
ALBEF pre-training step: momentum copies, queue of 4,096, ITA + ITM + MLM with distillation; B 16
ViT 128 px, patch 16, width 384, depth 6; BERT width 384, 6 layers, fusion from 3; 30,522 words
peer: the official algorithm in separate passes, with transformers 5.24.0's BERT and timm's ViT
checked before timing: losses of {STEPS} steps, and ranks, are equal (same weights, batch and draws)
what differs:
- clean and masked texts share the passes of the text layers here, pairs and negatives a fusion pass
- an image's keys and values for cross-attention: once here, for each of its 4 pairs there
- a text goes through the first fusion layer's self-attention once here, for each pair there
- matching and ranking: the last layer computes the class tokens here, all tokens there
- words are predicted at the masked positions here, at all positions there
- dropout draws 16 bits for an element here, a float32 there
- the moving average: one fused operation here, one for each tensor there
- ours keeps freed memory, on huge pages
- ours looks whether the loss is finite
re-ranking, full size: 8 images of 577 tokens, 40 texts of 4 to 30 tokens, k 6; six layers of \
width 768
miniature: 300 images of 17 tokens, 300 texts of 4 to 12 tokens, k 64; two layers of width 96
- pairs that both directions want are scored once here, twice there
- an image's keys and values: once for all its texts here, for each pair there (with COCO's 25,000
  texts and k 256 an image has some 1,300, here about 30)
- texts are padded to the longest of their pass here, of all there"""

STEP = (
    Comparison("float32", "float32", "float32"),
    Comparison("bf16 autocast, peer float32", "bf16", "float32"),
    Comparison("float32, in Lightning's Trainer", "float32 trainer", "float32"),
    Comparison("bf16 autocast on both sides", "bf16", "bf16"),
)
RERANKING = (
    Comparison("full size, float32", "float32 full_size", "float32 full_size"),
    Comparison("full size, bf16 autocast, peer float32", "bf16 full_size", "float32 full_size"),
    Comparison("miniature, float32", "float32 miniature", "float32 miniature"),
    Comparison("miniature, bf16 autocast, peer float32", "bf16 miniature", "float32 miniature"),
)
EQUAL = {"losses": 1e-4, "matching scores": 1e-4, "ranks": 0.0}


def make_data(folder: Path, settings: dict[str, Any] = SETTINGS) -> Path:
    """Write weights under official names, batches and draws for both sides; returns `folder`."""
    from benchmarks.speed.albef_ours import pretraining, ranking
    from benchmarks.speed.stepping import OurSide
    from methods.albef import official

    settings = {**settings, "threads": torch.get_num_threads()}
    networks = {"pretraining": pretraining(settings)}
    networks |= {name: ranking(settings, name) for name in GALLERIES}
    for name, overrides in networks.items():
        weights = official.export(OurSide(settings, overrides).instantiate("method"))
        # The momentum copies begin as what they copy, and pre-training's queue has no identities.
        kept = {
            key: value
            for key, value in weights.items()
            if key not in ("tenfold", "idx_queue") and not key.split(".")[0].endswith("_m")
        }
        torch.save(kept, folder / f"{name}_weights.pt")
    torch.save(batch(settings), folder / "batch.pt")
    torch.save([draws(settings) for _ in range(STEPS)], folder / "draws.pt")
    for name in GALLERIES:
        torch.save(gallery(settings[name], settings["embed_dim"]), folder / f"{name}_gallery.pt")
    return folder


def batch(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Random pictures and texts of 8 to 25 tokens, padded."""
    size, side = settings["batch_size"], settings["vision"]["image_size"]
    special = settings["special"]
    lengths = torch.randint(8, LONGEST, (size,))
    lengths[0] = LONGEST
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    ids = torch.randint(1000, settings["text"]["vocab_size"], (size, LONGEST))
    ids[:, 0] = special["cls"]
    return {
        "images": torch.randn(size, 3, side, side),
        "input_ids": ids.masked_fill(mask == 0, special["pad"]),
        "attention_mask": mask,
        "indices": torch.arange(size),
        "image_ids": torch.arange(size),
    }


def draws(settings: dict[str, Any]) -> dict[str, Tensor]:
    """What a step draws: masks in the official order, and negatives."""
    size = settings["batch_size"]
    shape = (size, LONGEST)
    others = (torch.arange(size) + torch.randint(1, size, (2, size))) % size
    return {
        "selected": torch.rand(shape) < settings["mlm_probability"],
        "replaced": torch.rand(shape) < 0.8,
        "random": torch.rand(shape) < 0.5,
        "words": torch.randint(settings["text"]["vocab_size"], shape),
        "image_of_text": others[0],
        "text_of_image": others[1],
    }


def gallery(sizes: dict[str, int], dim: int) -> dict[str, Tensor]:
    """Features of `dim` numbers and tokens, as the encoders give them; as many texts an image."""
    images, texts, width = sizes["images"], sizes["texts"], sizes["width"]
    longest = sizes["text_tokens"]
    lengths = torch.randint(4, longest, (texts,))
    lengths[0] = longest
    patches = torch.randn(images, sizes["image_tokens"], width)
    return {
        "image_features": F.normalize(torch.randn(images, dim), dim=1),
        "image_tokens": patches + 3 * torch.randn(images, 1, width),  # images differ clearly
        "text_features": F.normalize(torch.randn(texts, dim), dim=1),
        "text_tokens": torch.randn(texts, longest, width),
        "mask": (torch.arange(longest) < lengths[:, None]).long(),
        "text_image": torch.arange(texts) * images // texts,
    }
