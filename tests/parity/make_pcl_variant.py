"""PCL cases with other dims and seeds: `python -m tests.parity.make_pcl_variant DIR [seed]`.

It convinces that the adapters read every dim and value from the files; that the numbers are the
official code's is the business of `tests/golden`. The reference below is written from the
equations with plain loops, and shares nothing with `methods` and `shared`.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]
Case = tuple[dict[str, Any], State, State, State, tuple[float, float]]
LOOSE, TIGHT = (3e-5, 3e-4), (1e-5, 1e-4)


def unit(g: torch.Generator, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=g), dim=-1)


def integer(g: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def number(g: torch.Generator, low: float, high: float) -> float:
    return round(float(low + (high - low) * torch.rand((), generator=g)), 3)


# --- the reference ---


class Block(nn.Module):
    """Two 3x3 convolutions of stride 2 and 1, with a 1x1 shortcut."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        shortcut = nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.downsample(x)).relu()


class Tiny(nn.Module):
    """The network of the cases, under the official names."""

    def __init__(self, c: dict[str, Any]):
        super().__init__()
        w = c["stem_width"]
        self.conv1 = nn.Conv2d(3, w, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.layer1 = nn.Sequential(Block(w, 2 * w))
        last = nn.Linear(2 * w, c["dim"])
        self.fc = nn.Sequential(nn.Linear(2 * w, 2 * w), nn.ReLU(), last) if c["mlp"] else last

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.bn1(self.conv1(x)).relu()).mean((2, 3))
        x = self.fc(x)
        return x / x.norm(dim=1, keepdim=True)


class Reference:
    """MoCo's state with the step's order; one process."""

    def __init__(self, c: dict[str, Any], query: nn.Module, key: nn.Module, queue: Tensor, at: int):
        self.c, self.query, self.key, self.queue, self.at = c, query, key, queue, at

    def weights(self) -> State:
        state = {"queue": self.queue.clone(), "queue_ptr": torch.tensor([self.at])}
        for name, network in (("encoder_q", self.query), ("encoder_k", self.key)):
            state |= {f"{name}.{k}": v.detach().clone() for k, v in network.state_dict().items()}
        return state

    def forward(self, im_q: Tensor, im_k: Tensor, order: Tensor) -> State:
        m = self.c["m"]
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.copy_(m * slow + (1 - m) * fast)
            shuffled = self.key(im_k[order])
            k = torch.empty_like(shuffled)
            for place, source in enumerate(order.tolist()):
                k[source] = shuffled[place]
        q = self.query(im_q)
        rows = []
        for b in range(len(q)):
            negatives = [q[b] @ self.queue[:, j] for j in range(self.queue.shape[1])]
            rows.append(torch.stack([q[b] @ k[b], *negatives]) / self.c["T"])
        logits = torch.stack(rows)
        self.queue = self.queue.clone()
        for b in range(len(k)):
            self.queue[:, self.at] = k[b]
            self.at = (self.at + 1) % self.queue.shape[1]
        return {"q": q, "k_shuffled": shuffled, "logits": logits}


def randomise(network: nn.Module, g: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=g)
                value.copy_(1 + noise.abs() / 4 if "running_var" in name else noise / 3)
    return network


def reference(c: dict[str, Any], g: torch.Generator, batch: int) -> Reference:
    networks = (randomise(Tiny(c), g), randomise(Tiny(c), g))
    at = batch * integer(g, 0, c["r"] // batch - 1)
    return Reference(c, *networks, unit(g, c["r"], c["dim"]).T.contiguous(), at)


def cross_entropy(logits: Tensor, target: list[int]) -> Tensor:
    rows = [row.logsumexp(0) - row[t] for row, t in zip(logits, target, strict=True)]
    return torch.stack(rows).mean()


def clusters(c: dict[str, Any], g: torch.Generator) -> State:
    state = {}
    for m, number_ in enumerate(c["num_cluster"]):
        ids = torch.randint(number_, (c["n"],), generator=g)
        state[f"im2cluster.{m}"] = ids
        state[f"centroids.{m}"] = unit(g, number_, c["dim"])
        state[f"density.{m}"] = torch.rand(number_, generator=g) / 4 + 0.1
    return state


def negatives(ids: Tensor, positives: Tensor, count: int, g: torch.Generator) -> Tensor:
    free = [i for i in range(int(ids.max()) + 1) if i not in positives.tolist()]
    return torch.tensor(free)[torch.randperm(len(free), generator=g)[:count]]


def proto_columns(q: Tensor, inputs: State, m: int, index: Tensor, others: Tensor) -> Tensor:
    columns = [*inputs[f"im2cluster.{m}"][index].tolist(), *others.tolist()]
    c, phi = inputs[f"centroids.{m}"], inputs[f"density.{m}"]
    return torch.stack([(q @ c[j]) / phi[j] for j in columns], dim=1)


# --- cases; each returns config, inputs, weights, outputs, (atol, rtol) ---


def forward_config(g: torch.Generator) -> dict[str, Any]:
    batch = integer(g, 3, 6)
    return {
        "stem_width": integer(g, 3, 7),
        "dim": integer(g, 4, 11),
        "r": batch * integer(g, 2, 4),
        "m": number(g, 0.5, 0.95),
        "T": number(g, 0.07, 0.5),
        "mlp": True,
        "batch": batch,
        "image_size": 2 * integer(g, 4, 7),
    }


def moco_forward(g: torch.Generator, **changes: Any) -> Case:
    c = forward_config(g) | changes
    b, size = c["batch"], c["image_size"]
    images = torch.randn(2, b, 3, size, size, generator=g)
    inputs = {"im_q": images[0], "im_k": images[1], "idx_shuffle": torch.randperm(b, generator=g)}
    model = reference(c, g, b)
    weights = model.weights()
    with torch.no_grad():
        features = model.key.eval()(inputs["im_q"])
    model.key.train()
    out = model.forward(**{"im_q": inputs["im_q"], "im_k": inputs["im_k"]},
                        order=inputs["idx_shuffle"])  # fmt: skip
    out |= {"eval_features": features, "labels": torch.zeros(b, dtype=torch.long)}
    after = model.weights()
    out |= {name: after.pop(name) for name in ("queue", "queue_ptr")}
    kept = ("conv1.weight", "bn1", "fc", "layer1.0.bn2.bias")
    names = [n for n in after if n.split(".", 1)[1].startswith(kept)]
    return c, inputs, weights, out | {f"after.{n}": after[n] for n in names}, (2e-5, 2e-4)


def moco_forward_v1_head(g: torch.Generator) -> Case:
    return moco_forward(g, mlp=False)


def queue_update(g: torch.Generator) -> Case:
    batch, steps = integer(g, 2, 5), integer(g, 3, 6)
    c = {"dim": integer(g, 3, 8), "r": batch * integer(g, 2, 4), "batch": batch, "steps": steps}
    at = batch * integer(g, 0, c["r"] // batch - 1)
    queue = torch.randn(c["dim"], c["r"], generator=g)
    keys = torch.randn(steps, batch, c["dim"], generator=g)
    inputs, out = {"queue": queue.clone(), "queue_ptr": torch.tensor([at]), "keys": keys}, {}
    for step in range(steps):
        for key in keys[step]:
            queue[:, at] = key
            at = (at + 1) % c["r"]
        out |= {f"step{step}.queue": queue.clone(), f"step{step}.queue_ptr": torch.tensor([at])}
    return c, inputs, {}, out, TIGHT


def kmeans_concentration(g: torch.Generator) -> Case:
    c = {"n": integer(g, 40, 90), "dim": integer(g, 3, 9), "temperature": number(g, 0.07, 0.5)}
    c["num_cluster"] = [integer(g, 5, 9) for _ in range(integer(g, 2, 3))]
    features = unit(g, c["n"], c["dim"])
    inputs, out = {"features": features}, {}
    for m, number_ in enumerate(c["num_cluster"]):
        raw = unit(g, number_, c["dim"]) * (0.5 + torch.rand(number_, 1, generator=g) / 2)
        if m > 0:  # where all have several members, the largest concentration is clipped
            raw[-1] = 9.0  # nobody's nearest
            raw[-2] = 1.001 * features[0]  # one image's own, if no other is near
        squared = ((features[:, None].double() - raw[None].double()) ** 2).sum(2)
        nearest, ids = squared.min(1)
        phi = np.zeros(number_)
        for k in range(number_):
            members = [math.sqrt(float(nearest[i])) for i in range(c["n"]) if ids[i] == k]
            if len(members) > 1:
                phi[k] = np.mean(members) / math.log(len(members) + 10)
        counts = torch.tensor([int((ids == k).sum()) for k in range(number_)])
        phi[(counts <= 1).numpy()] = phi.max()
        phi = np.clip(phi, np.percentile(phi, 10), np.percentile(phi, 90))
        inputs[f"centroids_raw.{m}"] = raw
        out |= {f"im2cluster.{m}": ids, f"sqdist.{m}": nearest.float(), f"count.{m}": counts}
        out[f"centroids.{m}"] = raw / raw.norm(dim=1, keepdim=True)
        out[f"density.{m}"] = torch.from_numpy(c["temperature"] * phi / phi.mean()).float()
    return c, inputs, {}, out, TIGHT


def proto_logits(g: torch.Generator) -> Case:
    b = integer(g, 2, 5)
    c = {"in_dim": integer(g, 3, 8), "dim": integer(g, 3, 9), "r": b * integer(g, 1, 2)}
    c |= {"m": 0.9, "T": number(g, 0.1, 0.4), "mlp": False, "batch": b, "n": integer(g, 60, 90)}
    c["num_cluster"] = [c["r"] + b + integer(g, 3, 6) for _ in range(integer(g, 1, 3))]
    inputs = clusters(c, g) | {"index": torch.randperm(c["n"], generator=g)[:b]}
    inputs |= {n: torch.randn(b, c["in_dim"], generator=g) for n in ("x_q", "x_k")}

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(c["in_dim"], c["dim"])

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.fc(x), dim=1)

    networks = (randomise(Head(), g), randomise(Head(), g))
    model = Reference(c, *networks, unit(g, c["r"], c["dim"]).T.contiguous(), 0)
    weights = model.weights()
    found = model.forward(inputs["x_q"], inputs["x_k"], torch.arange(b))
    out = {name: found[name] for name in ("q", "logits")}
    for m in range(len(c["num_cluster"])):
        ids = inputs[f"im2cluster.{m}"]
        others = negatives(ids, ids[inputs["index"]], c["r"], g)
        inputs[f"neg_proto_id.{m}"] = others
        out[f"proto_logits.{m}"] = proto_columns(found["q"], inputs, m, inputs["index"], others)
        out[f"proto_labels.{m}"] = torch.arange(b)
    return c, inputs, weights, out, TIGHT


def protonce_loss(g: torch.Generator) -> Case:
    b = integer(g, 2, 6)
    c = {"batch": b, "r": integer(g, 3, 9), "num_cluster": [30] * integer(g, 1, 4)}
    inputs = {"logits": 3 * torch.randn(b, 1 + c["r"], generator=g)}
    names = [f"proto_logits.{m}" for m in range(len(c["num_cluster"]))]
    inputs |= {name: 3 * torch.randn(b, b + c["r"], generator=g) for name in names}
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    instance = cross_entropy(leaves["logits"], [0] * b)
    terms = [cross_entropy(leaves[name], list(range(b))) for name in names]
    mean = sum(terms[1:], terms[0]) / len(terms)
    (instance + mean).backward()
    out = {"loss_inst": instance, "loss_proto_mean": mean, "loss": instance + mean}
    out |= {f"loss_proto.{m}": term for m, term in enumerate(terms)}
    out |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items()}
    return c, inputs, {}, out, TIGHT


def train_step(g: torch.Generator) -> Case:
    c = forward_config(g) | {"n": integer(g, 60, 90), "lr": number(g, 0.02, 0.1)}
    c |= {"momentum": number(g, 0.5, 0.9), "weight_decay": number(g, 0.001, 0.02)}
    b, size, steps = c["batch"], c["image_size"], integer(g, 2, 3)
    c["num_cluster"] = [c["r"] + b + integer(g, 3, 6) for _ in range(integer(g, 1, 3))]
    count = len(c["num_cluster"])
    inputs = clusters(c, g)
    images = torch.randn(2, steps, b, 3, size, size, generator=g)
    inputs |= {"im_q": images[0], "im_k": images[1]}
    orders = [torch.randperm(b, generator=g) for _ in range(steps)]
    inputs["idx_shuffle"] = torch.stack(orders)
    inputs["index"] = torch.stack([torch.randperm(c["n"], generator=g)[:b] for _ in range(steps)])
    for m in range(count):
        ids = inputs[f"im2cluster.{m}"]
        draws = [negatives(ids, ids[index], c["r"], g) for index in inputs["index"]]
        inputs[f"neg_proto_id.{m}"] = torch.stack(draws)
    model = reference(c, g, b)
    weights, out, velocity = model.weights(), {}, {}
    for t in range(steps):
        found = model.forward(inputs["im_q"][t], inputs["im_k"][t], orders[t])
        columns = [
            proto_columns(found["q"], inputs, m, inputs["index"][t], inputs[f"neg_proto_id.{m}"][t])
            for m in range(count)
        ]
        instance = cross_entropy(found["logits"], [0] * b)
        mean = sum(cross_entropy(rows, list(range(b))) for rows in columns) / count
        values = {"loss_inst": instance, "loss_proto_mean": mean, "loss": instance + mean}
        values |= {"logits": found["logits"]}
        values |= {f"proto_logits.{m}": rows for m, rows in enumerate(columns)}
        parameters = dict(model.query.named_parameters())
        gradients = torch.autograd.grad(values["loss"], list(parameters.values()))
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if t == 0:
                out[f"grad.encoder_q.{name}"] = gradient
            with torch.no_grad():
                change = gradient + c["weight_decay"] * parameter
                velocity[name] = c["momentum"] * velocity[name] + change if t else change
                parameter -= c["lr"] * velocity[name]
        after = model.weights()
        values |= {n: after[n] for n in ("queue", "queue_ptr")}
        values |= {f"param.{n}": v for n, v in after.items() if n.endswith(("weight", "bias"))}
        out |= {f"step{t}.{name}": value for name, value in values.items()}
    names = [f"{e}.bn1.running_{s}" for e in ("encoder_q", "encoder_k") for s in ("mean", "var")]
    return c, inputs, weights, out | {f"buffer.{n}": after[n] for n in names}, LOOSE


def lr_schedules(g: torch.Generator) -> Case:
    c = {"lr": number(g, 0.01, 0.3), "epochs": integer(g, 6, 15)}
    c["schedule"] = sorted({integer(g, 1, c["epochs"] - 1) for _ in range(3)})
    step = [c["lr"] * 0.1 ** len([s for s in c["schedule"] if e >= s]) for e in range(c["epochs"])]
    cosine = [c["lr"] * 0.5 * (1 + math.cos(math.pi * e / c["epochs"])) for e in range(c["epochs"])]
    out = {"step": torch.tensor(step), "cosine": torch.tensor(cosine)}
    return c, {"unused": torch.zeros(1)}, {}, out, (1e-7, 1e-6)


def voc_average_precision(g: torch.Generator) -> Case:
    c, inputs, out = {"cases": integer(g, 1, 4)}, {}, {}
    for case in range(c["cases"]):
        size = integer(g, 8, 40)
        targets = torch.randint(-1, 2, (size,), generator=g)
        targets[0] = 1
        scores = torch.randn(size, generator=g)
        ranked = [bool(targets[i] > 0) for i in scores.argsort(descending=True).tolist()]
        precision = [sum(ranked[: i + 1]) / (i + 1) for i in range(size)]
        recall = [sum(ranked[: i + 1]) / sum(ranked) for i in range(size)]
        area, before = 0.0, 0.0
        for i in range(size):
            area += (recall[i] - before) * max(precision[i:])
            before = recall[i]
        inputs |= {f"targets.{case}": targets, f"scores.{case}": scores}
        out |= {f"precision.{case}": torch.tensor(precision), f"ap.{case}": torch.tensor(area)}
        out[f"recall.{case}"] = torch.tensor(recall)
    return c, inputs, {}, out, TIGHT


CASES: tuple[Callable[[torch.Generator], Case], ...] = (
    kmeans_concentration, lr_schedules, moco_forward, moco_forward_v1_head, proto_logits,
    protonce_loss, queue_update, train_step, voc_average_precision,
)  # fmt: skip


def write_variant(folder: Path, seed: int) -> None:
    """Write `folder/pcl/<case>` for every case, each with dims and values of its own."""
    for number_, make in enumerate(CASES):
        generator = torch.Generator().manual_seed(seed * 1000 + number_)
        config, inputs, weights, outputs, (atol, rtol) = make(generator)
        case = folder / "pcl" / make.__name__
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
