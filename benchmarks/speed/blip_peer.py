"""The peer's side, in the peer's environment: BLIP's official algorithm, a pass for each mode.

The text layers are those of Hugging Face's `transformers`, the vision transformer of training is
timm's; captions are written by `BlipForConditionalGeneration`. Weights have official names, or
those of transformers for captions. Nothing of ours is imported but the sides of comparisons.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed import albef_peer
from benchmarks.speed.albef_peer import load, matching, negatives, official_ranking, vit

Draws = dict[str, Tensor]


class Comparable(albef_peer.Comparable):
    """Adds captions, whose ids both sides must write alike."""

    def values(self) -> dict[str, list[float]]:
        captions = self.writing("float32")()
        return super().values() | {"captions": captions.flatten().tolist()}

    def writing(self, precision: str) -> Callable[[], Tensor]:
        """Writes captions (images, length) of the given images by beam search."""
        raise NotImplementedError


class Peer(Comparable, albef_peer.Peer):
    def step(self, precision: str, what: str) -> Callable[[], float]:
        if what == "captions":
            write = self.writing(precision)
            return lambda: float(write().sum())
        return super().step(precision, what)

    def network(self, dropout: float) -> nn.Module:
        weights = torch.load(self.folder / "pretraining_weights.pt")
        return Network(self.settings, dropout, weights).train()

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        trained = [p for p in network.parameters() if p.requires_grad]
        return [{"params": trained, "weight_decay": self.settings["weight_decay"]}]

    def writing(self, precision: str) -> Callable[[], Tensor]:
        from transformers import BlipConfig, BlipForConditionalGeneration

        of, v = self.settings["captions"], self.settings["vision"]
        vision = {"image_size": v["image_size"], "patch_size": v["patch_size"]}
        vision |= {"hidden_size": v["width"], "num_hidden_layers": v["depth"]}
        vision |= {"num_attention_heads": v["heads"], "layer_norm_eps": 1e-6}
        vision |= {"intermediate_size": int(v["mlp_ratio"] * v["width"])}
        given = {"bos_token_id": self.settings["bos_id"], "sep_token_id": of["end_id"]}
        text = med_sizes(self.settings["text"], v["width"], 0.0) | given
        model: Any = BlipForConditionalGeneration(
            BlipConfig(text_config=text, vision_config=vision)
        ).eval()
        load(model, torch.load(self.folder / "captioning_weights.pt"))
        images = torch.load(self.folder / "images.pt")
        # What it is given ends in a token that it cuts off.
        prompt = torch.tensor([[0, *of["prompt_ids"], of["end_id"]]]).repeat(len(images), 1)
        lengths = {"min_length": of["length"], "max_length": of["length"]}

        def write() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return model.generate(
                    images, prompt.clone(), num_beams=of["num_beams"], do_sample=False, **lengths
                )

        return write

    def ranking(self, name: str, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
        sizes = self.settings[name]
        text = {"vocab_size": sizes["vocab"], "hidden_size": sizes["width"]}
        text |= {"num_layers": sizes["layers"], "num_heads": sizes["heads"]}
        text |= {"intermediate_size": sizes["intermediate"], "max_positions": sizes["text_tokens"]}
        bert = med(text, sizes["width"], 0.1).bert.eval()
        head = nn.Linear(sizes["width"], 2)
        weights = torch.load(self.folder / f"{name}_weights.pt")
        load(bert, weights, "text_encoder.")
        load(head, weights, "itm_head.")
        g = torch.load(self.folder / f"{name}_gallery.pt")

        def match(image: Tensor, index: Tensor, similar: Tensor) -> Tensor:
            ids, mask = g["text_tokens"][index], g["mask"][index]
            return head(read(bert, ids, mask, g["image_tokens"][image])[:, 0])[:, 1] + similar

        return lambda: official_ranking(match, g, sizes["k_test"])


class Encoders(nn.Module):
    """The parts that have a momentum copy, under their official names."""

    def __init__(self, settings: dict[str, Any], dropout: float):
        super().__init__()
        width, dim = settings["vision"]["width"], settings["embed_dim"]
        self.visual_encoder: Any = vit(settings["vision"])
        self.vision_proj = nn.Linear(width, dim)
        self.text_encoder: Any = med(settings["text"], width, dropout).bert
        self.text_proj = nn.Linear(settings["text"]["hidden_size"], dim)

    def image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and features."""
        tokens = self.visual_encoder.forward_features(images)
        return tokens, F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and features of texts by themselves."""
        hidden = read(self.text_encoder, ids, mask)
        return hidden, F.normalize(self.text_proj(hidden[:, 0]), dim=-1)


class Network(albef_peer.Contrast):
    """BLIP's official pre-training model and its forward pass."""

    def __init__(self, settings: dict[str, Any], dropout: float, weights: dict[str, Tensor]):
        super().__init__(settings, Encoders(settings, dropout), weights)
        self.text_decoder: Any = med(settings["text"], settings["vision"]["width"], dropout)
        load(self.text_decoder, weights, "text_decoder.")
        tie(self.text_decoder, self.encoders.text_encoder)

    def forward(self, batch: dict[str, Tensor], draws: Draws | None) -> list[Tensor]:
        """The losses ITC, ITM and LM."""
        ids, mask, bert = batch["input_ids"], batch["attention_mask"], self.encoders.text_encoder
        loss_itc, similar, made = self.contrast(batch)
        image_embeds = made[0]

        # Matching: the pairs in one pass, both kinds of negatives in another.
        encoder_ids = ids.clone()
        encoder_ids[:, 0] = self.settings["enc_id"]
        positive = read(bert, encoder_ids, mask, image_embeds)
        text_of_image, image_of_text = negatives(similar, draws, least=1e-4)
        image_embeds_neg = torch.stack([image_embeds[i] for i in image_of_text])
        ids_neg = torch.stack([encoder_ids[i] for i in text_of_image])
        mask_neg = torch.stack([mask[i] for i in text_of_image])
        negative = read(
            bert,
            torch.cat([encoder_ids, ids_neg]),
            torch.cat([mask, mask_neg]),
            torch.cat([image_embeds_neg, image_embeds]),
        )
        loss_itm = matching(self.itm_head, positive, negative)

        decoder_ids = ids.clone()
        decoder_ids[:, 0] = self.settings["bos_id"]
        targets = decoder_ids.masked_fill(mask == 0, -100)
        hidden = read(self.text_decoder.bert, decoder_ids, mask, image_embeds, causal=True)
        words = self.text_decoder.cls(hidden)[:, :-1].contiguous().float()
        loss_lm = F.cross_entropy(
            words.view(-1, words.shape[-1]),
            targets[:, 1:].contiguous().view(-1),
            label_smoothing=self.settings["label_smoothing"],
        )
        return [loss_itc, loss_itm, loss_lm]


def read(
    bert: Any, ids: Tensor, mask: Tensor, image_embeds: Tensor | None = None, causal: bool = False
) -> Tensor:
    """One pass of all layers; without image tokens cross-attention is skipped."""
    visible = mask[:, None, None, :].float()
    if causal:
        visible = visible * torch.ones(mask.shape[1], mask.shape[1]).tril()
    hidden = bert.embeddings(ids)
    for layer in bert.encoder.layer:
        hidden = layer(hidden, image_embeds, attention_mask=(1.0 - visible) * -10000.0)
    return hidden


def tie(decoder: Any, encoder: Any) -> None:
    """The official sharing: all but self-attention, and the words with their prediction."""
    decoder.bert.embeddings = encoder.embeddings
    for mine, theirs in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
        mine.crossattention = theirs.crossattention
        mine.intermediate, mine.output = theirs.intermediate, theirs.output
    predictions = decoder.cls.predictions
    predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
    predictions.decoder.bias = predictions.bias


def med(text: dict[str, Any], image_width: int, dropout: float) -> Any:
    """A text transformer whose layers can look at images, with word predictions."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    sizes = med_sizes(text, image_width, dropout)
    return BlipTextLMHeadModel(BlipTextConfig(**sizes))


def med_sizes(text: dict[str, Any], image_width: int, dropout: float) -> dict[str, Any]:
    """Arguments of `BlipTextConfig`."""
    return {
        "vocab_size": text["vocab_size"],
        "hidden_size": text["hidden_size"],
        "encoder_hidden_size": image_width,
        "num_hidden_layers": text["num_layers"],
        "num_attention_heads": text["num_heads"],
        "intermediate_size": text["intermediate_size"],
        "max_position_embeddings": text["max_positions"],
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
