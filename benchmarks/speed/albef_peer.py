"""The peer's side, in the peer's environment: ALBEF's official algorithm, pass by pass.

BERT is that of Hugging Face's `transformers`, the vision transformer timm's; weights have official
names. Nothing of ours is imported but the serving loop. A variant named after a gallery ranks it.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.serving import Workload

Draws = dict[str, Tensor]
GALLERIES = ("full_size", "miniature")


class Comparable(Workload):
    """What both sides do with the weights, batch, draws and galleries that they are given."""

    galleries: tuple[str, ...] = GALLERIES

    def __init__(self, settings: dict[str, Any], *rest: Any):
        super().__init__(settings, *rest)
        self.folder, self.rows = Path(settings["data"]), settings["batch_size"]
        self.batch = torch.load(self.folder / "batch.pt")

    def values(self) -> dict[str, list[float]]:
        scores, orders = [], []
        for name in self.galleries:
            k = self.settings[name]["k_test"]
            for rows in self.ranking(name, "float32")():
                scores.append(rows[rows > -100])
                orders.append(rows.argsort(dim=1, descending=True, stable=True)[:, :k].flatten())
        draws = torch.load(self.folder / "draws.pt")
        return {
            "losses": self.losses(draws),
            "matching scores": torch.cat(scores).tolist(),
            "ranks": torch.cat(orders).tolist(),
        }

    def losses(self, draws: list[Draws]) -> list[float]:
        """The three losses of each of the steps whose draws are given, without dropout."""
        raise NotImplementedError

    def ranking(self, name: str, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
        """Ranks a gallery: scores of the candidates, from images to texts and back."""
        raise NotImplementedError


class Peer(Comparable):
    def parameters(self) -> Iterable[Tensor]:
        return [p for p in self.network(0.0).parameters() if p.requires_grad]

    def step(self, precision: str, what: str) -> Callable[[], float]:
        if what in self.galleries:
            rank = self.ranking(what, precision)
            return lambda: float(rank()[0].mean())
        losses = self.training(self.settings["text"]["dropout"], precision == "bf16")
        return lambda: float(sum(losses(None)))

    def losses(self, draws: list[Draws]) -> list[float]:
        step = self.training(dropout=0.0, mixed=False)
        return [loss for given in draws for loss in step(given)]

    def network(self, dropout: float) -> nn.Module:
        """The official pre-training model with the weights that both sides are given."""
        weights = torch.load(self.folder / "pretraining_weights.pt")
        return Network(self.settings, Encoders(self.settings, dropout), weights).train()

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's: vectors and biases are spared from weight decay."""
        trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        spared = [p for name, p in trained if p.ndim == 1 or name.endswith(".bias")]
        decayed = [p for name, p in trained if not (p.ndim == 1 or name.endswith(".bias"))]
        decay = self.settings["weight_decay"]
        return [
            {"params": spared, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": decay},
        ]

    def training(self, dropout: float, mixed: bool) -> Callable[[Draws | None], list[float]]:
        """A training step; it returns the three losses."""
        network = self.network(dropout)
        optimizer = torch.optim.AdamW(self.groups(network), lr=self.settings["lr"])
        return stepping(network, optimizer, self.batch, mixed)

    def ranking(self, name: str, precision: str) -> Callable[[], tuple[Tensor, Tensor]]:
        sizes = self.settings[name]
        text = bert({**sizes, "vocab": 2, "positions": 1}).bert
        head = nn.Linear(sizes["width"], 2)
        weights = torch.load(self.folder / f"{name}_weights.pt")
        load(text.eval(), weights, "text_encoder.")
        load(head, weights, "itm_head.")
        g = torch.load(self.folder / f"{name}_gallery.pt")

        def match(image: Tensor, index: Tensor, _: Tensor) -> Tensor:
            tokens, mask = g["text_tokens"][index], g["mask"][index]
            hidden = fused(text.encoder.layer, tokens, mask, g["image_tokens"][image])
            return head(hidden[:, 0])[:, 1]

        return lambda: official_ranking(match, g, sizes["k_test"])


class Encoders(nn.Module):
    """The parts that have a momentum copy, under their official names."""

    def __init__(self, settings: dict[str, Any], dropout: float):
        super().__init__()
        text, dim = settings["text"], settings["embed_dim"]
        self.fusion_layer = text["cross_attention_from"]
        self.visual_encoder: Any = vit(settings["vision"])
        self.vision_proj = nn.Linear(settings["vision"]["width"], dim)
        self.text_encoder: Any = bert(text_sizes(text), dropout)
        self.text_proj = nn.Linear(text["hidden_size"], dim)
        for layer in self.text_encoder.bert.encoder.layer[: self.fusion_layer]:
            del layer.crossattention

    def image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and features."""
        tokens = self.visual_encoder.forward_features(images)
        return tokens, F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the layers that read text only, and features."""
        hidden = self.text_layers(ids, mask)
        return hidden, F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def text_layers(self, ids: Tensor, mask: Tensor) -> Tensor:
        bert = self.text_encoder.bert
        hidden, visible = bert.embeddings(ids), visibility(mask)
        for layer in bert.encoder.layer[: self.fusion_layer]:
            hidden = layer(hidden, visible)
        return hidden

    def fusion_layers(self, hidden: Tensor, mask: Tensor, image_embeds: Tensor) -> Tensor:
        """The layers that read the image, too."""
        layers = self.text_encoder.bert.encoder.layer[self.fusion_layer :]
        return fused(layers, hidden, mask, image_embeds)

    def masked_lm(self, ids: Tensor, mask: Tensor, image_embeds: Tensor) -> Tensor:
        """All layers and the word logits of all positions."""
        hidden = self.fusion_layers(self.text_layers(ids, mask), mask, image_embeds)
        return self.text_encoder.cls(hidden)


class Contrast(nn.Module):
    """Encoders with their momentum copies and queues, and a matching head: what the official models
    of ALBEF and BLIP begin with."""

    def __init__(self, settings: dict[str, Any], encoders: Any, weights: dict[str, Tensor]):
        super().__init__()
        self.settings, self.encoders = settings, encoders
        self.itm_head = nn.Linear(settings["text"]["hidden_size"], 2)
        parts = ("visual_encoder.", "vision_proj.", "text_encoder.", "text_proj.")
        load(encoders, {key: v for key, v in weights.items() if key.startswith(parts)})
        load(self.itm_head, weights, "itm_head.")
        self.momentum_encoders = deepcopy(encoders).requires_grad_(False)
        self.temp = nn.Parameter(weights["temp"])
        self.image_queue, self.text_queue = weights["image_queue"], weights["text_queue"]
        self.pointer = 0

    def contrast(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The loss ITA, similarities to the own batch's texts and images, and what the encoders
        made: image tokens, text states, and image tokens of the momentum network. It moves the
        momentum networks and the queues, too."""
        alpha, online, momentum = self.settings["alpha"], self.encoders, self.momentum_encoders
        ids, mask = batch["input_ids"], batch["attention_mask"]
        size = len(ids)
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)

        image_embeds, image_feat = online.image(batch["images"])
        text_embeds, text_feat = online.text(ids, mask)
        with torch.no_grad():
            self.momentum_update()
            image_embeds_m, image_feat_m = momentum.image(batch["images"])
            image_all = torch.cat([image_feat_m.t(), self.image_queue.clone().detach()], dim=1)
            _, text_feat_m = momentum.text(ids, mask)
            text_all = torch.cat([text_feat_m.t(), self.text_queue.clone().detach()], dim=1)
            own = torch.zeros(size, image_all.shape[1])
            own.fill_diagonal_(1)
            targets_i2t, targets_t2i = (
                alpha * F.softmax(feat @ keys / self.temp, dim=1) + (1 - alpha) * own
                for feat, keys in ((image_feat_m, text_all), (text_feat_m, image_all))
            )
        sim_i2t = image_feat @ text_all / self.temp
        sim_t2i = text_feat @ image_all / self.temp
        loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * targets_i2t, dim=1).mean()
        loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * targets_t2i, dim=1).mean()
        self.enqueue(image_feat_m, text_feat_m)
        made = [image_embeds, text_embeds, image_embeds_m]
        return (loss_i2t + loss_t2i) / 2, [sim_i2t[:, :size], sim_t2i[:, :size]], made

    @torch.no_grad()
    def momentum_update(self) -> None:
        m = self.settings["momentum"]
        pairs = zip(self.encoders.parameters(), self.momentum_encoders.parameters(), strict=True)
        for p, p_m in pairs:
            p_m.data = p_m.data * m + p.data * (1.0 - m)

    @torch.no_grad()
    def enqueue(self, image_feat: Tensor, text_feat: Tensor) -> None:
        end = self.pointer + len(image_feat)
        self.image_queue[:, self.pointer : end] = image_feat.T
        self.text_queue[:, self.pointer : end] = text_feat.T
        self.pointer = end % self.image_queue.shape[1]


class Network(Contrast):
    """ALBEF's official pre-training model and its forward pass."""

    def forward(self, batch: dict[str, Tensor], draws: Draws | None) -> list[Tensor]:
        """The losses ITA, ITM and MLM."""
        alpha, online, momentum = self.settings["alpha"], self.encoders, self.momentum_encoders
        ids, mask = batch["input_ids"], batch["attention_mask"]
        loss_ita, similar, made = self.contrast(batch)
        image_embeds, text_embeds, image_embeds_m = made

        # Matching: the pairs in one pass, both kinds of negatives in another.
        positive = online.fusion_layers(text_embeds, mask, image_embeds)
        text_of_image, image_of_text = negatives(similar, draws)
        image_embeds_neg = torch.stack([image_embeds[i] for i in image_of_text])
        text_embeds_neg = torch.stack([text_embeds[i] for i in text_of_image])
        mask_neg = torch.stack([mask[i] for i in text_of_image])
        negative = online.fusion_layers(
            torch.cat([text_embeds, text_embeds_neg]),
            torch.cat([mask, mask_neg]),
            torch.cat([image_embeds_neg, image_embeds]),
        )
        loss_itm = matching(self.itm_head, positive, negative)

        masked_ids, labels = self.mask(ids, draws)
        with torch.no_grad():
            words_m = momentum.masked_lm(masked_ids, mask, image_embeds_m)
            soft_labels = F.softmax(words_m.float(), dim=-1)
        words = online.masked_lm(masked_ids, mask, image_embeds).float()
        loss_ce = F.cross_entropy(words.view(-1, words.shape[-1]), labels.view(-1))
        loss_kd = -torch.sum(F.log_softmax(words, dim=-1) * soft_labels, dim=-1)
        loss_mlm = (1 - alpha) * loss_ce + alpha * loss_kd[labels != -100].mean()
        return [loss_ita, loss_itm, loss_mlm]

    def mask(self, ids: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        special = self.settings["special"]
        draws = draws or mask_draws(self.settings, ids.shape)
        masked = draws["selected"] & (ids != special["pad"]) & (ids != special["cls"])
        labels, ids = ids.clone(), ids.clone()
        labels[~masked] = -100
        replaced = draws["replaced"] & masked
        ids[replaced] = special["mask"]
        random = draws["random"] & masked & ~replaced
        ids[random] = draws["words"][random]
        return ids, labels


def negatives(
    similar: Sequence[Tensor], draws: Draws | None, least: float = 0.0
) -> tuple[list[int], list[int]]:
    """A text of each image and an image of each text, drawn by similarity, `least` added."""
    if draws is not None:
        return draws["text_of_image"].tolist(), draws["image_of_text"].tolist()
    with torch.no_grad():
        weights_i2t, weights_t2i = (F.softmax(s.float(), dim=1) + least for s in similar)
        weights_i2t.fill_diagonal_(0)
        weights_t2i.fill_diagonal_(0)
    image_of_text = drawn_rows(weights_t2i)
    return drawn_rows(weights_i2t), image_of_text


def matching(head: nn.Module, positive: Tensor, negative: Tensor) -> Tensor:
    """The loss of the matching head, of the pairs (B, L, D) and of both kinds of negatives
    (2B, L, D)."""
    size = len(positive)
    logits = head(torch.cat([positive[:, 0], negative[:, 0]]))
    labels = torch.cat([torch.ones(size).long(), torch.zeros(2 * size).long()])
    return F.cross_entropy(logits.float(), labels)


def stepping(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], mixed: bool
) -> Callable[[Draws | None], list[float]]:
    """A training step on the batch; it returns the losses."""

    def step(draws: Draws | None) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses = network(batch, draws)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        return [float(loss.detach()) for loss in losses]

    return step


def mask_draws(settings: dict[str, Any], shape: tuple[int, ...]) -> Draws:
    """What masks tokens, in the official order."""
    return {
        "selected": torch.rand(shape) < settings["mlm_probability"],
        "replaced": torch.rand(shape) < 0.8,
        "random": torch.rand(shape) < 0.5,
        "words": torch.randint(settings["text"]["vocab_size"], shape),
    }


def official_ranking(
    match: Callable[[Tensor, Tensor, Tensor], Tensor], g: dict[str, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    """Row by row: each image with its k texts, then each text with its k images; `match` scores
    pairs by their image, text and similarity."""
    sims = g["image_features"] @ g["text_features"].T

    @torch.no_grad()
    def rows(similarities: Tensor, images_first: bool) -> Tensor:
        scores = torch.full(similarities.shape, -100.0)
        for row, similar in enumerate(similarities):
            values, index = similar.topk(k)
            same = torch.full_like(index, row)
            image, text = (same, index) if images_first else (index, same)
            scores[row, index] = match(image, text, values)
        return scores

    return rows(sims, True), rows(sims.T, False)


def fused(layers: Any, hidden: Tensor, mask: Tensor, image_embeds: Tensor) -> Tensor:
    visible = visibility(mask)
    for layer in layers:
        hidden = layer(hidden, visible, encoder_hidden_states=image_embeds)
    return hidden


def visibility(mask: Tensor) -> Tensor:
    """(B, L) -> (B, 1, 1, L), boolean."""
    return mask[:, None, None, :].bool()


def drawn_rows(weights: Tensor) -> list[int]:
    """One index for each row, drawn by its weights, row by row."""
    return [int(torch.multinomial(row, 1)) for row in weights]


def text_sizes(text: dict[str, Any]) -> dict[str, int]:
    """The sizes that `bert` takes, of the settings."""
    sizes = {"vocab": text["vocab_size"], "width": text["hidden_size"]}
    sizes |= {"layers": text["num_layers"], "heads": text["num_heads"]}
    return sizes | {"intermediate": text["intermediate_size"], "positions": text["max_positions"]}


def bert(sizes: dict[str, int], dropout: float = 0.1, plain: bool = False) -> Any:
    """A BERT whose layers can attend to the image, or a `plain` one, which multiplies its attention
    out; it is called layer by layer."""
    from transformers import BertConfig, BertForMaskedLM, logging

    logging.set_verbosity_error()  # it warns of being a decoder, which cross-attention needs
    config = BertConfig(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate"],
        max_position_embeddings=sizes["positions"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        is_decoder=not plain,
        add_cross_attention=not plain,
        attn_implementation="eager" if plain else "sdpa",
    )
    return BertForMaskedLM(config)


def vit(sizes: dict[str, Any]) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def load(network: nn.Module, weights: dict[str, Tensor], prefix: str = "") -> None:
    """Load what begins with `prefix`, every key but the constant positions."""
    state = {key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    network.load_state_dict(state)
