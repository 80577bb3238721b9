"""An independent reference of CoMatch, in plain functions of tensors.

Written from the algorithm and from nothing of ours: networks as functions of a state dict,
explicit loops, updates by hand. `make_variant.py` derives golden cases of other dims from it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
SAFE = 2e-3  # no score may lie this near to a threshold


class NearThreshold(Exception):
    """The numbers drawn decide nothing; draw others."""


# --- networks ---


def batch_norm(x: Tensor, s: State, name: str, train: bool, momentum: float) -> Tensor:
    if train:
        s[name + ".num_batches_tracked"] += 1
    return F.batch_norm(
        x, s[name + ".running_mean"], s[name + ".running_var"], s[name + ".weight"],
        s[name + ".bias"], train, momentum, 1e-5,
    )  # fmt: skip


def wide_resnet(s: State, x: Tensor, blocks: int, train: bool) -> dict[str, Tensor]:
    def act(name: str, x: Tensor) -> Tensor:
        x = batch_norm(x, s, "backbone." + name, train, 0.001)
        return torch.where(x > 0, x, 0.1 * x)

    x = F.conv2d(x, s["backbone.conv1.weight"], padding=1)
    out = {}
    for stage in (1, 2, 3):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            a = act(at + ".bn1", x)
            r = F.conv2d(a, s[f"backbone.{at}.conv1.weight"], stride=stride, padding=1)
            r = F.conv2d(act(at + ".bn2", r), s[f"backbone.{at}.conv2.weight"], padding=1)
            shortcut = a if stage == 1 and block == 0 else x
            if f"backbone.{at}.downsample.weight" in s:
                shortcut = F.conv2d(shortcut, s[f"backbone.{at}.downsample.weight"], stride=stride)
            x = shortcut + r
        if stage == 2:
            out["feat_layer2"] = x
    out["feat_last"] = act("bn_last", x)
    return out | heads(s, out["feat_last"].flatten(2).mean(2), 0.1)


def heads(s: State, pooled: Tensor, slope: float) -> dict[str, Tensor]:
    out = {"pooled": pooled, "logits": pooled @ s["classifier.weight"].T + s["classifier.bias"]}
    if "fc1.weight" in s:
        h = pooled @ s["fc1.weight"].T + s["fc1.bias"]
        z = torch.where(h > 0, h, slope * h) @ s["fc2.weight"].T + s["fc2.bias"]
        out["embedding"] = z / z.pow(2).sum(1, keepdim=True).sqrt()
    return out


def bottleneck_resnet(s: State, x: Tensor, train: bool) -> dict[str, Tensor]:
    def bn(name: str, x: Tensor) -> Tensor:
        return batch_norm(x, s, name, train, 0.1)

    x = bn("bn1", F.conv2d(x, s["conv1.weight"], stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        at, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        r = bn(at + ".bn1", F.conv2d(x, s[at + ".conv1.weight"])).relu()
        r = F.conv2d(r, s[at + ".conv2.weight"], stride=stride, padding=1)
        r = F.conv2d(bn(at + ".bn2", r).relu(), s[at + ".conv3.weight"])
        shortcut = F.conv2d(x, s[at + ".downsample.0.weight"], stride=stride)
        x = (bn(at + ".bn3", r) + bn(at + ".downsample.1", shortcut)).relu()
    return heads(s, x.flatten(2).mean(2), 0.0)


def make_state(shapes: dict[str, tuple[int, ...]], g: torch.Generator) -> State:
    """Random weights; `name: (channels,)` with a `bn` or `downsample.1` in it is a BatchNorm."""
    s: State = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            s[name + ".weight"] = 0.7 + 0.6 * torch.rand(shape, generator=g)
            s[name + ".bias"] = 0.2 * torch.randn(shape, generator=g)
            s[name + ".running_mean"] = 0.1 * torch.randn(shape, generator=g)
            s[name + ".running_var"] = 0.5 + torch.rand(shape, generator=g)
            s[name + ".num_batches_tracked"] = torch.tensor(3)
        else:
            scale = math.sqrt((1.0 if len(shape) == 2 else 2.0) / math.prod(shape[1:]))
            s[name + ".weight"] = scale * torch.randn(shape, generator=g)
            if len(shape) == 2:
                s[name + ".bias"] = 0.1 * torch.randn(shape[:1], generator=g)
    # Logits spread enough that some samples are confident, and some are not.
    s["classifier.weight"] *= 3
    return s


def wide_resnet_state(c: dict[str, Any], g: torch.Generator, projection: bool = True) -> State:
    k, blocks = c["k"], (c["depth"] - 4) // 6
    shapes: dict[str, tuple[int, ...]] = {"backbone.conv1": (16, 3, 3, 3)}
    before = 16
    for stage, width in ((1, 16 * k), (2, 32 * k), (3, 64 * k)):
        for block in range(blocks):
            at = f"backbone.layer{stage}.{block}"
            shapes[at + ".bn1"] = (before,)
            shapes[at + ".conv1"] = (width, before, 3, 3)
            shapes[at + ".bn2"] = (width,)
            shapes[at + ".conv2"] = (width, width, 3, 3)
            if before != width or (stage > 1 and block == 0):
                shapes[at + ".downsample"] = (width, before, 1, 1)
            before = width
    shapes |= {"backbone.bn_last": (before,), "classifier": (c["n_classes"], before)}
    if projection:
        shapes |= {"fc1": (before, before), "fc2": (c["low_dim"], before)}
    return make_state(shapes, g)


def bottleneck_state(c: dict[str, Any], g: torch.Generator) -> State:
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7), "bn1": (64,)}
    before = 64
    for stage in (1, 2, 3, 4):
        at, p = f"layer{stage}.0", c["base_width"] * 2 ** (stage - 1)
        shapes |= {at + ".conv1": (p, before, 1, 1), at + ".bn1": (p,)}
        shapes |= {at + ".conv2": (p, p, 3, 3), at + ".bn2": (p,)}
        shapes |= {at + ".conv3": (4 * p, p, 1, 1), at + ".bn3": (4 * p,)}
        shapes |= {at + ".downsample.0": (4 * p, before, 1, 1), at + ".downsample.1": (4 * p,)}
        before = 4 * p
    shapes |= {"classifier": (c["n_classes"], before), "fc1": (c["proj_hidden"], before)}
    return make_state(shapes | {"fc2": (c["low_dim"], c["proj_hidden"])}, g)


# --- equations ---


def align(p: Tensor, window: list[Tensor], longest: int) -> Tensor:
    window.append(p.mean(0))
    if len(window) > longest:
        window.pop(0)
    q = p / torch.stack(window).mean(0)
    return q / q.sum(1, keepdim=True)


def smooth(p: Tensor, z: Tensor, c: dict, features: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.exp(z @ features.T / c["temperature"])
    a = a / a.sum(1, keepdim=True)
    return c["alpha"] * p + (1 - c["alpha"]) * (a @ probs), a


def graph(raw: Tensor, c: dict[str, Any]) -> Tensor:
    raw = raw.clone()
    for i in range(len(raw)):
        raw[i, i] = 1.0
    far_from(raw, c["contrast_th"])
    kept = torch.where(raw >= c["contrast_th"], raw, torch.zeros(()))
    return kept / kept.sum(1, keepdim=True)


def far_from(scores: Tensor, threshold: float) -> None:
    if (scores - threshold).abs().min() < SAFE:
        raise NearThreshold


def confident(p: Tensor, c: dict[str, Any]) -> Tensor:
    scores = p.max(1).values
    far_from(scores, c["thr"])
    top = p.topk(2, dim=1).values
    far_from(top[:, 0] - top[:, 1], 0.0)
    mask = (scores >= c["thr"]).float()
    if mask.min() == mask.max():
        raise NearThreshold  # a mask of ones or zeros tests nothing
    return mask


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Per row; target hard (N,) or soft (N, C)."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    if target.dim() == 1:
        return -log_p[torch.arange(len(target)), target]
    return -(target * log_p).sum(1)


def contrast(z0: Tensor, others: Tensor, q: Tensor, c: dict[str, Any]) -> dict[str, Tensor]:
    sim = torch.exp(z0 @ others.T / c["temperature"])
    sim_probs = sim / sim.sum(1, keepdim=True)
    loss = -(q * torch.log(sim_probs + 1e-7)).sum(1).mean()
    return {"sim": sim, "sim_probs": sim_probs, "loss_contrast": loss}


def one_hot(labels: Tensor, c: dict[str, Any]) -> Tensor:
    return torch.eye(c["n_classes"])[labels]


class Bank:
    """The memory of script C."""

    def __init__(self, features: Tensor, probs: Tensor, pointer: int):
        self.features, self.probs, self.pointer = features.clone(), probs.clone(), pointer

    def write(self, features: Tensor, probs: Tensor) -> None:
        for z, p in zip(features, probs, strict=True):
            self.features[self.pointer], self.probs[self.pointer] = z, p
            self.pointer = (self.pointer + 1) % len(self.features)

    def outputs(self) -> dict[str, Tensor]:
        return {
            "queue_feats": self.features.clone(),
            "queue_probs": self.probs.clone(),
            "queue_ptr": torch.tensor(self.pointer),
        }


def comatch_losses(
    logits: Tensor, z: Tensor, labels: Tensor, window: list[Tensor], bank: Bank, c: dict, warm: bool
) -> dict[str, Tensor]:
    """One iteration of script C from logits and embeddings; moves window and bank on."""
    b = len(labels)
    m = (len(logits) - b) // 3
    z_w, z_0, z_1 = (z[b + i * m : b + (i + 1) * m] for i in range(3))
    with torch.no_grad():
        p_orig = align(logits[b : b + m].softmax(1), window, 32)
        p, a = p_orig, torch.zeros(m, len(bank.features))
        if warm:
            p, a = smooth(p_orig, z_w, c, bank.features, bank.probs)
        mask = confident(p, c)
        bank.write(torch.cat([z_w, z[:b]]), torch.cat([p_orig, one_hot(labels, c)]))
        raw = p @ p.T
        q = graph(raw, c)
        raw.fill_diagonal_(1.0)
    out = {"probs": p, "probs_orig": p_orig, "A": a, "scores": p.max(1).values, "Q": q}
    out |= {"lbs_u_guess": p.argmax(1), "mask": mask, "Qraw": raw, "pos_mask": (q > 0).float()}
    out |= contrast(z_0, z_1, q, c)
    out["loss_x"] = cross_entropy(logits[:b], labels).mean()
    out["loss_u"] = (cross_entropy(logits[b + m : b + 2 * m], p) * mask).sum() / m
    out["loss"] = out["loss_x"] + c["lam_u"] * out["loss_u"] + c["lam_c"] * out["loss_contrast"]
    return out


def fixmatch_losses(
    logits: Tensor, labels: Tensor, window: list[Tensor] | None, c: dict
) -> dict[str, Tensor]:
    b = len(labels)
    m = (len(logits) - b) // 2
    with torch.no_grad():
        p = logits[b : b + m].softmax(1)
        p = p if window is None else align(p, window, 32)
        mask = confident(p, c)
    out = {"probs": p, "mask": mask, "lbs_u_guess": p.argmax(1)}
    out["loss_x"] = cross_entropy(logits[:b], labels).mean()
    out["loss_u"] = (cross_entropy(logits[b + m :], out["lbs_u_guess"]) * mask).sum() / m
    return out | {"loss": out["loss_x"] + c["lam_u"] * out["loss_u"]}


class Sgd:
    """Nesterov SGD by hand, on the tensors of a state dict that require gradient."""

    def __init__(self, s: State, c: dict[str, Any], spare_bn: bool):
        self.s, self.c, self.spare_bn, self.velocity = s, c, spare_bn, {}

    def step(self, loss: Tensor, lr: float) -> State:
        names = [name for name, value in self.s.items() if value.requires_grad]
        grads = torch.autograd.grad(loss, [self.s[n] for n in names], materialize_grads=True)
        for name, grad in zip(names, grads, strict=True):
            decay = 0.0 if self.spare_bn and "bn" in name else self.c["weight_decay"]
            d = grad + decay * self.s[name].detach()
            v = self.velocity.get(name)
            v = self.velocity[name] = d if v is None else self.c["momentum"] * v + d
            value = self.s[name].detach() - lr * (d + self.c["momentum"] * v)
            self.s[name] = value.requires_grad_()
        return dict(zip(names, grads, strict=True))


def trainable(s: State) -> State:
    s = {name: value.clone() for name, value in s.items()}
    for name, value in s.items():
        if "running" not in name and "num_batches" not in name:
            value.requires_grad_()
    return s


def copied(s: State, prefix: str = "") -> State:
    return {prefix + name: value.detach().clone() for name, value in s.items()}


def parameters(s: State, prefix: str) -> State:
    keep = ("running", "num_batches")
    return copied({n: v for n, v in s.items() if not any(k in n for k in keep)}, prefix)
