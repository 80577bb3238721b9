"""A golden folder with other dims and seeds: `python -m tests.parity.make_variant DIR [seed]`.

It convinces that the adapters read every dim and value from the files; that the numbers are the
official code's is the business of `tests/golden`.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .comatch_reference import (
    Bank,
    NearThreshold,
    Sgd,
    State,
    align,
    bottleneck_resnet,
    bottleneck_state,
    comatch_losses,
    confident,
    contrast,
    copied,
    cross_entropy,
    fixmatch_losses,
    graph,
    one_hot,
    parameters,
    smooth,
    trainable,
    wide_resnet,
    wide_resnet_state,
)

# --- cases; each returns config, inputs, weights, outputs, (atol, rtol) ---

Case = tuple[dict[str, Any], State, State, State, tuple[float, float]]
LOOSE, TIGHT = (5e-5, 5e-4), (1e-5, 1e-4)


def unit(g: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=g), dim=-1)


def probabilities(g: torch.Generator, *shape: int) -> Tensor:
    return (2 * torch.randn(*shape, generator=g)).softmax(-1)


def number(g: torch.Generator, low: float, high: float) -> float:
    return round(float(low + (high - low) * torch.rand((), generator=g)), 3)


def integer(g: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def loss_config(g: torch.Generator) -> dict[str, Any]:
    b = integer(g, 2, 4)
    c = {"n_classes": integer(g, 3, 7), "low_dim": integer(g, 4, 9), "batch_x": b}
    c |= {"batch_u": b * integer(g, 2, 4), "temperature": number(g, 0.15, 0.5)}
    c |= {"alpha": number(g, 0.6, 0.95), "thr": number(g, 0.4, 0.8), "queue_batch": 5}
    c |= {
        "contrast_th": number(g, 0.2, 0.5),
        "lam_u": number(g, 0.5, 2),
        "lam_c": number(g, 0.5, 2),
    }
    return c | {"queue_size": 5 * (c["batch_u"] + b)}


def pseudo_labels_da(g: torch.Generator) -> Case:
    c = {
        "n_classes": integer(g, 3, 8),
        "batch_u": integer(g, 4, 9),
        "iterations": integer(g, 5, 20),
    }
    c["window"] = integer(g, 3, c["iterations"] + 2)
    logits = 2 * torch.randn(c["iterations"], c["batch_u"], c["n_classes"], generator=g)
    window: list[Tensor] = []
    probs, averages = [], []
    for x in logits:
        probs.append(align(x.softmax(1), window, c["window"]))
        averages.append(torch.stack(window).mean(0))
    out = {"probs": torch.stack(probs), "prob_avg": torch.stack(averages)}
    return c, {"logits_u_w": logits}, {}, out | {"final_prob_list": torch.stack(window)}, TIGHT


def memory_smoothing(g: torch.Generator) -> Case:
    c = loss_config(g) | {"queue_batch": integer(g, 2, 6)}
    b, m, classes, d = c["batch_x"], c["batch_u"], c["n_classes"], c["low_dim"]
    rows = c["queue_size"] = c["queue_batch"] * (b + m)
    steps = c["iterations"] = c["queue_batch"] + 3
    inputs = {
        "queue_feats": unit(g, rows, d),
        "queue_probs": probabilities(g, rows, classes),
        "queue_ptr": torch.tensor((b + m) * integer(g, 0, c["queue_batch"] - 1)),
        "prob_list": probabilities(g, integer(g, 1, 6), classes),
    }
    for prefix, lead in (("", ()), ("seq.", (steps,))):
        inputs[prefix + "logits_u_w"] = 2 * torch.randn(*lead, m, classes, generator=g)
        inputs[prefix + "feats_u_w"] = unit(g, *lead, m, d)
        inputs[prefix + "feats_x"] = unit(g, *lead, b, d)
        inputs[prefix + "labels_x"] = torch.randint(classes, (*lead, b), generator=g)

    def step(prefix: str, at: Any, window: list[Tensor], bank: Bank, warm: bool) -> State:
        x, z_w, z_x = (inputs[prefix + n][at] for n in ("logits_u_w", "feats_u_w", "feats_x"))
        logits = torch.cat([torch.zeros(b, classes), x, x, x])
        z = torch.cat([z_x, z_w, z_w, z_w])
        return comatch_losses(logits, z, inputs[prefix + "labels_x"][at], window, bank, c, warm)

    bank = Bank(inputs["queue_feats"], inputs["queue_probs"], int(inputs["queue_ptr"]))
    single = step("", ..., list(inputs["prob_list"]), bank, warm=True) | bank.outputs()
    names = ["probs", "probs_orig", "scores", "lbs_u_guess", "mask", "A", *bank.outputs()]
    out = {f"single.{name}": single[name] for name in names}
    bank, window = Bank(torch.zeros(rows, d), torch.zeros(rows, classes), 0), []
    probs = [step("seq.", i, window, bank, i > c["queue_batch"])["probs"] for i in range(steps)]
    sequence = {"probs": torch.stack(probs)} | bank.outputs()
    return c, inputs, {}, out | {f"seq.{k}": v for k, v in sequence.items()}, TIGHT


def full_losses(g: torch.Generator) -> Case:
    c = loss_config(g)
    n = c["batch_x"] + 3 * c["batch_u"]
    inputs = {
        "logits": 2 * torch.randn(n, c["n_classes"], generator=g),
        "features": unit(g, n, c["low_dim"]),
        "labels_x": torch.randint(c["n_classes"], (c["batch_x"],), generator=g),
        "prob_list": probabilities(g, integer(g, 1, 8), c["n_classes"]),
        "queue_feats": unit(g, c["queue_size"], c["low_dim"]),
        "queue_probs": probabilities(g, c["queue_size"], c["n_classes"]),
    }
    x = inputs["logits"].clone().requires_grad_()
    z = inputs["features"].clone().requires_grad_()
    bank = Bank(inputs["queue_feats"], inputs["queue_probs"], 0)
    out = comatch_losses(x, z, inputs["labels_x"], list(inputs["prob_list"]), bank, c, warm=True)

    def grad(of: str, to: Tensor) -> Tensor:
        return torch.autograd.grad(out[of], to, retain_graph=True, materialize_grads=True)[0]

    names = [
        "loss_x",
        "loss_u",
        "loss_contrast",
        "loss",
        "probs",
        "mask",
        "sim_probs",
        "Q",
        "pos_mask",
    ]
    kept = {name: out[name] for name in names}
    kept |= {"grad_contrast.features": grad("loss_contrast", z), "grad_u.logits": grad("loss_u", x)}
    return (
        c,
        inputs,
        {},
        kept | {"grad.logits": grad("loss", x), "grad.features": grad("loss", z)},
        TIGHT,
    )


def graph_contrastive_loss(g: torch.Generator) -> Case:
    c, inputs, weights, out, tolerance = full_losses(g)
    names = ("loss_contrast", "probs", "sim_probs", "Q", "pos_mask", "grad_contrast.features")
    return c, inputs, weights, {name: out[name] for name in names}, tolerance


def fixmatch_loss(g: torch.Generator) -> Case:
    c = loss_config(g)
    inputs = {
        "logits": 2 * torch.randn(c["batch_x"] + 2 * c["batch_u"], c["n_classes"], generator=g),
        "labels_x": torch.randint(c["n_classes"], (c["batch_x"],), generator=g),
        "prob_list": probabilities(g, integer(g, 1, 32), c["n_classes"]),
    }
    out = {}
    for prefix in ("noda", "da"):
        x = inputs["logits"].clone().requires_grad_()
        window = list(inputs["prob_list"]) if prefix == "da" else None
        values = fixmatch_losses(x, inputs["labels_x"], window, c)
        values["grad.logits"] = torch.autograd.grad(values["loss"], x)[0]
        out |= {f"{prefix}.{name}": value for name, value in values.items()}
    return c, inputs, {}, out, TIGHT


def step_config(g: torch.Generator) -> dict[str, Any]:
    c = loss_config(g) | {"k": integer(g, 1, 2), "depth": 10, "image_size": 4 * integer(g, 2, 3)}
    c |= {"lr": number(g, 0.01, 0.05), "weight_decay": number(g, 0.005, 0.02), "momentum": 0.8}
    return c | {
        "ema_m": number(g, 0.7, 0.95),
        "max_iter": integer(g, 5, 12),
        "epoch": integer(g, 1, 3),
    }


def images(g: torch.Generator, c: dict[str, Any], names: list[str]) -> State:
    inputs = {"labels_x": torch.randint(c["n_classes"], (2, c["batch_x"]), generator=g)}
    for name in names:
        n = c["batch_x"] if name == "images_x" else c["batch_u"]
        inputs[name] = torch.randn(2, n, 3, c["image_size"], c["image_size"], generator=g)
    return inputs


def script_c(c: dict, inputs: State, weights: State, names: list[str], losses: Callable) -> State:
    """Two iterations: forward, losses, SGD, schedule, EMA."""
    s, ema = trainable(weights), copied(weights)
    sgd, out = Sgd(s, c, spare_bn=True), {}
    for t in range(2):
        lr = c["lr"] * math.cos(7 * math.pi * t / (16 * c["max_iter"]))
        batch = torch.cat([inputs[name][t] for name in names])
        f = wide_resnet(s, batch, (c["depth"] - 4) // 6, train=True)
        values = losses(f["logits"], f.get("embedding"), inputs["labels_x"][t])
        values |= {"logits": f["logits"], "lr": torch.tensor(lr)}
        if "embedding" in f:
            values["features"] = f["embedding"]
        grads = sgd.step(values["loss"], lr)
        if t == 0:
            out |= {f"grad.{name}": grad for name, grad in grads.items()}
        out |= copied(values, f"step{t}.") | parameters(s, f"step{t}.param.")
        for name, value in s.items():
            if value.requires_grad:
                ema[name] = c["ema_m"] * ema[name] + (1 - c["ema_m"]) * value.detach()
            else:
                ema[name] = value.clone()
    out["lr_after"] = torch.tensor(c["lr"] * math.cos(7 * math.pi * 2 / (16 * c["max_iter"])))
    for prefix, state in (("", s), ("ema_", ema)):
        out |= {f"{prefix}buffer.{n}": v.clone() for n, v in state.items() if "bn_last.r" in n}
    return out | parameters(ema, "ema.")


def train_step(g: torch.Generator) -> Case:
    c = step_config(g)
    names = ["images_x", "images_u_w", "images_u_s0", "images_u_s1"]
    inputs = images(g, c, names) | {
        "prob_list": probabilities(g, integer(g, 1, 6), c["n_classes"]),
        "queue_feats": unit(g, c["queue_size"], c["low_dim"]),
        "queue_probs": probabilities(g, c["queue_size"], c["n_classes"]),
        "queue_ptr": torch.tensor((c["batch_x"] + c["batch_u"]) * integer(g, 0, 4)),
    }
    weights = wide_resnet_state(c, g)
    bank = Bank(inputs["queue_feats"], inputs["queue_probs"], int(inputs["queue_ptr"]))
    window = list(inputs["prob_list"])
    kept = ["loss_x", "loss_u", "loss_contrast", "loss", "probs", "mask", "Q", "Qraw"]

    def losses(logits: Tensor, z: Tensor, labels: Tensor) -> State:
        values = comatch_losses(logits, z, labels, window, bank, c, warm=True)
        return {name: values[name] for name in kept}

    out = script_c(c, inputs, weights, names, losses)
    return c, inputs, weights, out | bank.outputs() | {"prob_list": torch.stack(window)}, LOOSE


def fixmatch_train_step(g: torch.Generator) -> Case:
    c = step_config(g) | {"distribution_alignment": integer(g, 0, 1) == 1}
    names = ["images_x", "images_u_w", "images_u_s"]
    inputs, weights = images(g, c, names), wide_resnet_state(c, g, projection=False)
    window: list[Tensor] | None = [] if c["distribution_alignment"] else None
    out = script_c(
        c, inputs, weights, names, lambda x, _, labels: fixmatch_losses(x, labels, window, c)
    )
    return c, inputs, weights, out, LOOSE


def imagenet_variant_step(g: torch.Generator) -> Case:
    c = step_config(g) | {"base_width": integer(g, 2, 4), "proj_hidden": integer(g, 8, 20)}
    c |= {"K": integer(g, 22, 40), "image_size": 24, "moco_m": number(g, 0.6, 0.95)}
    c |= {"epoch": integer(g, 0, 2), "lam_c": float(integer(g, 2, 4)), "thr": number(g, 0.3, 0.6)}
    names = ["images_x", "images_u_w", "images_u_s0", "images_u_s1"]
    b, m, size = c["batch_x"], c["batch_u"], c["K"]
    inputs = images(g, c, names) | {"hist_prob": probabilities(g, integer(g, 1, 9), c["n_classes"])}
    rows = b + 2 * m
    inputs["idx_shuffle"] = torch.stack([torch.randperm(rows, generator=g) for _ in range(2)])
    s = trainable(bottleneck_state(c, g))
    moving = bottleneck_state(c, g)
    state = {
        "queue_s": unit(g, size, c["low_dim"]).T,
        "probs_u": probabilities(g, size, c["n_classes"]).T,
        "queue_w": unit(g, size, c["low_dim"]).T,
        "probs_xu": probabilities(g, size, c["n_classes"]).T,
        "queue_ptr_s": torch.tensor([size - integer(g, 1, 5)]),
        "queue_ptr_w": torch.tensor([integer(g, 0, size - 1)]),
    }
    state = {name: value.contiguous() for name, value in state.items()}
    weights = copied(s, "encoder.") | copied(moving, "m_encoder.") | copied(state)
    window, sgd, out = list(inputs["hist_prob"]), Sgd(s, c, spare_bn=False), {}

    def write(kind: str, features: Tensor, probs: Tensor) -> None:
        queue, memory = ("queue_s", "probs_u") if kind == "s" else ("queue_w", "probs_xu")
        at = int(state["queue_ptr_" + kind])
        for z, p in zip(features, probs, strict=True):
            if at == size:
                break
            state[queue][:, at], state[memory][:, at] = z, p
            at += 1
        state["queue_ptr_" + kind] = torch.tensor([at % size])

    for t in range(2):
        x, w, s0, s1 = (inputs[name][t] for name in names)
        f = bottleneck_resnet(s, torch.cat([x, s0]), train=True)
        with torch.no_grad():
            for name in s:
                if s[name].requires_grad:
                    moving[name] = c["moco_m"] * moving[name] + (1 - c["moco_m"]) * s[name].detach()
            order = inputs["idx_shuffle"][t]
            shuffled = bottleneck_resnet(moving, torch.cat([x, w, s1])[order], train=True)
            logits, z = torch.empty(rows, c["n_classes"]), torch.empty(rows, c["low_dim"])
            for place, source in enumerate(order.tolist()):
                logits[source], z[source] = shuffled["logits"][place], shuffled["embedding"][place]
            p_orig = align(logits[b : b + m].softmax(1), window, 128)
            p = p_orig
            if c["epoch"] > 0:
                p, _ = smooth(p_orig, z[b : b + m], c, state["queue_w"].T, state["probs_xu"].T)
            raw = torch.cat([p @ p.T, p @ state["probs_u"]], dim=1)
            q = graph(raw, c)
            raw[torch.arange(m), torch.arange(m)] = 1.0
            others = torch.cat([z[b + m :], state["queue_s"].T])
            write("s", z[b + m :], p)
            write("w", z[: b + m], torch.cat([one_hot(inputs["labels_x"][t], c), p_orig]))
            mask = confident(p, c)
        values = {"outputs_x": f["logits"][:b], "outputs_u_s0": f["logits"][b:], "probs": p}
        values |= {"Q": raw, "Qraw": raw, "Q_mask": q, "mask": mask}
        parts = contrast(f["embedding"][b:], others, q, c)
        values |= {"sim": parts["sim"], "loss_contrast": parts["loss_contrast"]}
        values["loss_x"] = cross_entropy(f["logits"][:b], inputs["labels_x"][t]).mean()
        values["loss_u"] = (cross_entropy(f["logits"][b:], p) * mask).sum() / m
        values["lam_c"] = torch.tensor(min(c["epoch"] + 1.0, c["lam_c"]))
        weighted = c["lam_u"] * values["loss_u"] + values["lam_c"] * values["loss_contrast"]
        values["loss"] = values["loss_x"] + weighted
        grads = sgd.step(values["loss"], c["lr"])
        if t == 0:
            out |= {f"grad.encoder.{name}": grad for name, grad in grads.items()}
        out |= copied(values, f"step{t}.") | parameters(s, f"step{t}.param.encoder.")
        out |= copied(state, f"step{t}.")
    out |= parameters(moving, "param.m_encoder.") | {"hist_prob": torch.stack(window)}
    for prefix, network in (("encoder", s), ("m_encoder", moving)):
        out |= {f"buffer.{prefix}.{n}": v.clone() for n, v in network.items() if ".running" in n}
    return c, inputs, weights, out, (2e-4, 1e-3)


def wrn_forward(g: torch.Generator) -> Case:
    c = {"n_classes": integer(g, 3, 9), "k": integer(g, 1, 3), "depth": 10 + 6 * integer(g, 0, 1)}
    c |= {
        "low_dim": integer(g, 4, 20),
        "image_size": 4 * integer(g, 2, 5),
        "batch": integer(g, 2, 5),
    }
    weights = wide_resnet_state(c, g)
    x = torch.randn(c["batch"], 3, c["image_size"], c["image_size"], generator=g)
    s, blocks = copied(weights), (c["depth"] - 4) // 6
    out = wide_resnet(s, x, blocks, train=False)
    train = wide_resnet(s, x, blocks, train=True)
    out |= {"train.logits": train["logits"], "train.embedding": train["embedding"]}
    out |= {f"after.{n}": v for n, v in s.items() if "running" in n or "num_batches" in n}
    return c, {"images": x}, weights, out, LOOSE


def evaluate(g: torch.Generator) -> Case:
    c = {
        "n_classes": integer(g, 3, 9),
        "batches": [integer(g, 2, 9) for _ in range(integer(g, 2, 5))],
    }
    inputs = {"labels": torch.randint(c["n_classes"], (sum(c["batches"]),), generator=g)}
    out = {}
    for name, prefix in (("logits", ""), ("ema_logits", "ema_")):
        x = inputs[name] = torch.randn(sum(c["batches"]), c["n_classes"], generator=g)
        hits = (x.argmax(1) == inputs["labels"]).float().split(c["batches"])
        out[prefix + "top1"] = 100 * torch.stack([h.mean() for h in hits]).mean()
    return c, inputs, {}, out, TIGHT


def lr_schedules(g: torch.Generator) -> Case:
    c = {"cifar_lr": number(g, 0.01, 0.1), "max_iter": integer(g, 5, 30)}
    c |= {"imagenet_lr": number(g, 0.05, 0.2), "epochs": integer(g, 4, 15)}
    t, e = torch.arange(c["max_iter"] + 1), torch.arange(c["epochs"])
    cifar = c["cifar_lr"] * torch.cos(7 * math.pi * t / (16 * c["max_iter"]))
    imagenet = c["imagenet_lr"] * 0.5 * (1 + torch.cos(math.pi * e / c["epochs"]))
    return c, {"unused": torch.zeros(1)}, {}, {"cifar_lr": cifar, "imagenet_lr": imagenet}, TIGHT


CASES: tuple[Callable[[torch.Generator], Case], ...] = (
    pseudo_labels_da, memory_smoothing, graph_contrastive_loss, full_losses, fixmatch_loss,
    train_step, fixmatch_train_step, imagenet_variant_step, wrn_forward, evaluate, lr_schedules,
)  # fmt: skip


def write_variant(folder: Path, seed: int) -> None:
    """Write `folder/comatch/<case>` for every case, each with dims and values of its own."""
    for number_, make in enumerate(CASES):
        for attempt in range(1000):
            generator = torch.Generator().manual_seed(seed * 100_000 + number_ * 1000 + attempt)
            try:
                config, inputs, weights, outputs, (atol, rtol) = make(generator)
                break
            except NearThreshold:
                continue
        else:
            raise RuntimeError(f"{make.__name__}: no draw keeps away from its thresholds")
        case = folder / "comatch" / make.__name__
        case.mkdir(parents=True)
        names = {"outputs": {n: {"meaning": "as in tests/golden"} for n in outputs}}
        description = {"config": config, "atol": atol, "rtol": rtol, **names}
        (case / "case.json").write_text(json.dumps(description, indent=1))
        parts = {"inputs": inputs, "outputs": outputs} | ({"weights": weights} if weights else {})
        for part, values in parts.items():
            save_file(
                {n: v.detach().clone().contiguous() for n, v in values.items()},
                case / f"{part}.safetensors",
            )


if __name__ == "__main__":
    write_variant(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
