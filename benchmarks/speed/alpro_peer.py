"""The peer's side, in the peer's environment: ALPRO's official algorithm, pass by pass.

The TimeSformer is written plainly (docs/papers/alpro.md, section 4.1) on timm's patches and MLPs;
BERT is that of Hugging Face's `transformers` with explicit attention. Weights have official names.
Nothing of ours is imported but the sides of comparisons. Shapes: B clips of T frames, N patches of
a frame, L tokens, D width.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.albef_peer import Draws, bert, load, matching, negatives, stepping, text_sizes
from benchmarks.speed.serving import Workload

TASKS = ("pretraining", "retrieval")


class Comparable(Workload):
    """What both sides do with the weights, batch and negatives that they are given."""

    def __init__(self, settings: dict[str, Any], *rest: Any):
        super().__init__(settings, *rest)
        self.folder, self.rows = Path(settings["data"]), settings["batch_size"]
        self.batch = torch.load(self.folder / "batch.pt")

    def values(self) -> dict[str, list[float]]:
        """Losses of steps, and the decimal logarithm of each gradient's norm in the last step."""
        draws = torch.load(self.folder / "draws.pt")
        values: dict[str, list[float]] = {"losses": [], "gradients": []}
        for task in TASKS:
            losses, gradients = self.stepped(task, draws)
            norms = torch.stack([gradients[name].norm() for name in sorted(gradients)])
            values["losses"] += losses
            values["gradients"] += (norms + 1e-6).log10().tolist()
        return values

    def stepped(self, task: str, draws: list[Draws]) -> tuple[list[float], dict[str, Tensor]]:
        """The losses of each of the steps whose draws are given, without dropout, and the last
        one's gradients under official names."""
        raise NotImplementedError


class Peer(Comparable):
    def parameters(self) -> Iterable[Tensor]:
        networks = [Network(self.settings, task) for task in TASKS]
        return [p for network in networks for p in network.parameters() if p.requires_grad]

    def step(self, precision: str, what: str) -> Callable[[], float]:
        step = self.training(Network(self.settings, what), precision == "bf16")
        return lambda: float(sum(step(None)))

    def stepped(self, task: str, draws: list[Draws]) -> tuple[list[float], dict[str, Tensor]]:
        network = Network(without_dropout(self.settings), task)
        step = self.training(network, mixed=False)
        losses = [loss for given in draws for loss in step(given)]
        named: dict[str, Any] = network.state_dict(keep_vars=True)
        return losses, {name: p.grad for name, p in named.items() if p.requires_grad}

    def training(self, network: nn.Module, mixed: bool) -> Callable[[Draws | None], list[float]]:
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.settings["lr"], (0.9, 0.98), 1e-6, 0.0)
        return stepping(network.train(), optimizer, self.batch, mixed)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, M, D), of M tokens in each row that see each other."""
        rows, tokens, width = x.shape
        split = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = ((query @ key.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(rows, tokens, width))


class Block(nn.Module):
    """Attention along time, then over each frame."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float):
        from timm.layers import DropPath, Mlp

        super().__init__()
        norm = partial(nn.LayerNorm, width, eps=1e-6)
        self.temporal_norm1, self.temporal_attn = norm(), Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1, self.attn = norm(), Attention(width, heads)
        self.norm2, self.mlp = norm(), Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B, 1 + N T, D), the class token and patches with time fastest."""
        batch, _, width = x.shape
        first, patches = x[:, :1], x[:, 1:]
        places = patches.reshape(-1, frames, width)
        moved = self.drop_path(self.temporal_attn(self.temporal_norm1(places)))
        patches = patches + self.temporal_fc(moved.view(batch, -1, width))

        in_frames = patches.unflatten(1, (-1, frames)).transpose(1, 2).flatten(0, 1)
        copies = first.repeat(1, frames, 1).view(-1, 1, width)
        seen = self.drop_path(self.attn(self.norm1(torch.cat([copies, in_frames], dim=1))))
        whole = seen[:, 0].view(batch, frames, width).mean(dim=1, keepdim=True)
        back = seen[:, 1:].unflatten(0, (batch, frames)).transpose(1, 2).flatten(1, 2)
        x = torch.cat([first, patches], dim=1) + torch.cat([whole, back], dim=1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TimeSformer(nn.Module):
    def __init__(self, sizes: dict[str, Any]):
        from timm.layers import PatchEmbed

        super().__init__()
        width, depth = sizes["width"], sizes["depth"]
        self.patch_embed = PatchEmbed(sizes["image_size"], sizes["patch_size"], 3, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, width))
        self.time_embed = nn.Parameter(torch.zeros(1, sizes["frames"], width))
        rates = torch.linspace(0, sizes["drop_path"], depth).tolist()
        args = width, sizes["heads"], sizes["mlp_ratio"]
        self.blocks = nn.ModuleList(Block(*args, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, S, S) -> (B, 1 + N, D): the class token, patches averaged over time."""
        batch, frames = clips.shape[:2]
        x = self.patch_embed(clips.flatten(0, 1))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        first = x[:batch, :1]
        x = x[:, 1:].unflatten(0, (batch, frames)).transpose(1, 2) + self.time_embed
        x = torch.cat([first, x.flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, frames)
        first, x = self.norm(x).split([1, x.shape[1] - 1], dim=1)
        return torch.cat([first, x.unflatten(1, (-1, frames)).mean(dim=2)], dim=1)


class Encoders(nn.Module):
    """What the official models have in common, with so many layers of BERT."""

    def __init__(self, settings: dict[str, Any], layers: int):
        super().__init__()
        text, dim = settings["text"], settings["embed_dim"]
        self.fusion_layer = text["fusion_layer"]
        self.visual_encoder: Any = nn.ModuleDict({"model": TimeSformer(settings["vision"])})
        self.vision_proj = nn.Linear(settings["vision"]["width"], dim)
        sizes = text_sizes(text) | {"layers": layers}
        self.text_encoder: Any = bert(sizes, text["dropout"], plain=True)
        self.text_proj = nn.Linear(text["hidden_size"], dim)
        self.temp = nn.Parameter(torch.ones([]))

    def video(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and features."""
        tokens = self.visual_encoder["model"](clips)
        return tokens, F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the layers that read text only, and features."""
        bert = self.text_encoder.bert
        hidden = run(bert.encoder.layer[: self.fusion_layer], bert.embeddings(ids), mask)
        return hidden, F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def fusion(self, text: Tensor, mask: Tensor, video: Tensor) -> Tensor:
        """The layers that read (B, L, D) and (B, 1 + N, D) in a row."""
        seen = torch.cat([mask, mask.new_ones(video.shape[:2])], dim=1)
        layers = self.text_encoder.bert.encoder.layer[self.fusion_layer :]
        return run(layers, torch.cat([text, video], dim=1), seen)


class Network(Encoders):
    """The official model of a task with the weights that both sides are given."""

    def __init__(self, settings: dict[str, Any], task: str):
        super().__init__(settings, settings["text"]["num_layers"])
        width = settings["text"]["hidden_size"]
        self.itm_head = nn.Linear(width, 2)
        self.prompter: Any = None
        if task == "pretraining":
            entities = settings["entities"]
            self.prompter = Encoders(settings, self.fusion_layer)
            del self.prompter.text_encoder.cls
            for kind in ("video", "image"):
                features = torch.zeros(entities, settings["embed_dim"])
                self.prompter.register_buffer(f"{kind}_prompt_feat", features)
            self.prompter.requires_grad_(False)
            wide = nn.Linear(width, 2 * width)
            self.mpm_head = nn.Sequential(wide, nn.ReLU(), nn.Linear(2 * width, entities))
        else:
            del self.text_encoder.cls
        load(self, torch.load(Path(settings["data"]) / f"{task}_weights.pt"))

    def forward(self, batch: dict[str, Tensor], draws: Draws | None) -> list[Tensor]:
        """The losses VTC and VTM, and in pre-training MLM and PEM."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        video, video_feat = self.video(batch["images"])
        text, text_feat = self.text(ids, mask)
        sim_v2t, sim_t2v = video_feat @ text_feat.t(), text_feat @ video_feat.t()
        similar = sim_v2t / self.temp, sim_t2v / self.temp
        targets = torch.eye(len(ids))
        loss_v2t, loss_t2v = (
            -(F.log_softmax(s.float(), dim=1) * targets).sum(dim=1).mean() for s in similar
        )

        # Matching: the pairs in one pass, both kinds of negatives in another.
        positive = self.fusion(text, mask, video)
        text_of_video, video_of_text = negatives(similar, draws)
        video_neg = torch.stack([video[i] for i in video_of_text])
        text_neg = torch.stack([text[i] for i in text_of_video])
        mask_neg = torch.stack([mask[i] for i in text_of_video])
        texts, masks = torch.cat([text, text_neg]), torch.cat([mask, mask_neg])
        negative = self.fusion(texts, masks, torch.cat([video_neg, video]))
        losses = [(loss_v2t + loss_t2v) / 2, matching(self.itm_head, positive, negative)]
        if self.prompter is None:
            return losses

        masked_text, _ = self.text(batch["masked_ids"], mask)
        fused = self.fusion(masked_text, mask, video)[:, : ids.shape[1]]
        words = self.text_encoder.cls(fused).float()
        losses.append(F.cross_entropy(words.view(-1, words.shape[-1]), batch["labels"].view(-1)))
        return [*losses, self.entity_modelling(positive[:, ids.shape[1] + 1 :], batch)]

    def entity_modelling(self, patches: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss PEM of fused patches (B, N, D)."""
        prompter = self.prompter.eval()
        with torch.no_grad():
            _, features = prompter.video(batch["regions"])
            similar = (features @ prompter.video_prompt_feat.t() / prompter.temp).float()
            soft_labels, ignored = similar.softmax(dim=1), similar.max(dim=1)[1] < 0.2
        inside = batch["inside"].flatten(1).unsqueeze(-1).float()
        means = (inside * patches).sum(dim=1) / inside.sum(dim=1)
        log_probs = F.log_softmax(self.mpm_head(means).float(), dim=1)
        cross_entropy = -(log_probs * soft_labels).sum(dim=1)
        cross_entropy[ignored] = 0.0
        return cross_entropy.sum() / (len(patches) - ignored.sum())


def run(layers: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """Layers of BERT on (B, M, D) with the mask (B, M)."""
    added = (1.0 - mask[:, None, None, :].float()) * -10000.0
    for layer in layers:
        hidden = layer(hidden, added)
    return hidden


def without_dropout(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with neither dropout nor stochastic depth."""
    vision, text = settings["vision"] | {"drop_path": 0.0}, settings["text"] | {"dropout": 0.0}
    return settings | {"vision": vision, "text": text}
