"""Golden folders of ICCL with other dims, seeds and values, in the format of tests/golden.

Written from the equations alone, in float64 and without anything from `methods/` or `shared/`:
plain loops and closed formulas, gradients by automatic differentiation of those.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Values = dict[str, Tensor]
Case = tuple[
    dict[str, Any], Values, Values, Values, float
]  # config, inputs, weights, outputs, atol


def integer(g: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def number(g: torch.Generator, low: float, high: float) -> float:
    return round(low + (high - low) * float(torch.rand((), generator=g)), 3)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g).double()


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def labels(g: torch.Generator, rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,), generator=g)


def weights_of_mixing(g: torch.Generator, rows: int) -> Tensor:
    lam = torch.rand(rows, generator=g)
    lam[0], lam[1] = 1.0, 0.0
    return lam.double()


def log_p(logits: Tensor, of: Tensor) -> Tensor:
    """(rows,) log of the softmax at each row's class, written out."""
    rows = []
    for row, k in zip(logits, of, strict=True):
        rows.append(row[k] - torch.logsumexp(row, dim=0))
    return torch.stack(rows)


def mixed_loss(logits: Tensor, y_u: Tensor, y_a: Tensor, lam: Tensor) -> Tensor:
    return -lam * log_p(logits, y_u) - (1 - lam) * log_p(logits, y_a)


def moved(centroids: Tensor, z: Tensor, y: Tensor, momentum: float) -> Tensor:
    centroids = centroids.clone()
    for row, k in zip(z, y, strict=True):
        centroids[k] = momentum * centroids[k] + (1 - momentum) * row
    return unit(centroids)


def gradient(of: Tensor, to: Tensor) -> Tensor:
    return torch.autograd.grad(of, to, retain_graph=True)[0]


def interpolative_centroid_loss(g: torch.Generator) -> Case:
    classes, dim, rows = integer(g, 3, 9), integer(g, 4, 12), integer(g, 3, 8)
    c = {"temperature": number(g, 0.05, 0.5), "num_class": classes, "dim": dim}
    size = integer(g, 3, 6)
    centroids = unit(normal(g, classes, dim))
    centroids[-1] = 0
    i = {
        "img_agnostic": normal(g, rows, 3, size, size),
        "img_aware": normal(g, rows, 3, size, size),
        "lam": weights_of_mixing(g, rows),
        "label_agnostic": labels(g, rows, classes),
        "label_aware": labels(g, rows, classes),
        "embedding_raw": normal(g, rows, dim),
        "cls_logits": 2 * normal(g, rows, classes),
        "centroids": centroids,
    }
    raw, logits = i["embedding_raw"].requires_grad_(), i["cls_logits"].requires_grad_()
    y_u, y_a, lam = i["label_agnostic"], i["label_aware"], i["lam"]
    z = raw / raw.norm(dim=1, keepdim=True)
    s = torch.stack([torch.stack([row @ k for k in centroids]) for row in z]) / c["temperature"]
    icc, cls = mixed_loss(s, y_u, y_a, lam), mixed_loss(logits, y_u, y_a, lam)
    target = torch.zeros(rows, classes).double()
    for row in range(rows):
        target[row, y_u[row]] += lam[row]
        target[row, y_a[row]] += 1 - lam[row]
    pairs = zip(lam, i["img_agnostic"], i["img_aware"], strict=True)
    o = {
        "img_interpolated": torch.stack([p * u + (1 - p) * a for p, u, a in pairs]),
        "mixed_target": target,
        "embedding": z,
        "centroid_logits": s,
        "centroid_prob": s.exp() / s.exp().sum(dim=1, keepdim=True),
        "icc_loss_per_sample": icc,
        "icc_loss": icc.mean().reshape(1),
        "cls_loss_per_sample": cls,
        "cls_loss": cls.mean().reshape(1),
        "grad.embedding_raw": gradient(icc.mean(), raw),
        "grad.cls_logits": gradient(cls.mean(), logits),
    }
    return c, i, {}, o, 1e-5


def centroid_update(g: torch.Generator) -> Case:
    classes, dim, steps = integer(g, 3, 9), integer(g, 4, 12), integer(g, 2, 4)
    c = {"centroid_momentum": number(g, 0.5, 0.99), "num_class": classes, "dim": dim}
    centroids = unit(normal(g, classes, dim))
    centroids[0] = centroids[-1] = 0
    i, o = {"centroids": centroids}, {}
    for t in range(steps):
        rows = integer(g, 2, 20)
        i[f"embedding{t}"] = unit(normal(g, rows, dim))
        i[f"label{t}"] = labels(g, rows, classes - 1)  # the last class stays unseen
        centroids = moved(centroids, i[f"embedding{t}"], i[f"label{t}"], c["centroid_momentum"])
        o[f"centroids_after{t}"] = centroids
    return c, i, {}, o, 1e-5


def samplers_and_imbalance(g: torch.Generator) -> Case:
    counts = [integer(g, 1, 900) for _ in range(integer(g, 2, 12))]
    c = {"gammas": [0.0, number(g, 0.1, 0.9), 1.0, number(g, 1.1, 3.0)]}
    o = {}
    for gamma in c["gammas"]:
        total = sum(n ** (1 - gamma) for n in counts)
        image = [n**-gamma / total for n in counts]
        o[f"image_prob.gamma{gamma}"] = torch.tensor(image).double()
        shares = [n ** (1 - gamma) / total for n in counts]
        o[f"class_prob.gamma{gamma}"] = torch.tensor(shares).double()
    ratio = integer(g, 2, 200)
    for classes, n_max in ((10, 5000), (100, 500)):
        kept = [math.floor(n_max * (1 / ratio) ** (k / (classes - 1))) for k in range(classes)]
        o[f"counts.K{classes}.max{n_max}.ir{ratio}"] = torch.tensor(kept)
    return c, {"class_counts": torch.tensor(counts)}, {}, o, 1e-7


def classifier_balancing(g: torch.Generator) -> Case:
    classes, width, rows = integer(g, 3, 9), integer(g, 4, 16), integer(g, 3, 9)
    c = {
        "taus": [0.0, number(g, 0.1, 0.9), 1.0, number(g, 1.1, 2.0)],
        "distill_temperature": number(g, 1.0, 4.0),
        "distill_weight": number(g, 0.1, 0.9),
    }
    weight, bias = normal(g, classes, width), normal(g, classes)
    v, y = normal(g, rows, width), labels(g, rows, classes)
    scale, teacher = 1 + 0.3 * normal(g, classes), 2 * normal(g, rows, classes)
    i = {"weight": weight, "bias": bias, "feature": v, "lws_scale": scale, "label": y}
    i["teacher_logits"] = teacher
    o = {}
    for tau in c["taus"]:
        logits = torch.stack(
            [torch.stack([row @ w / w.norm() ** tau for w in weight]) for row in v]
        )
        o |= {f"tau{tau}.logits": logits, f"tau{tau}.pred": logits.argmax(dim=1)}
    w, b, s = (x.clone().requires_grad_() for x in (weight, bias, scale))
    plain = v @ w.T + b
    loss = -log_p(plain, y).mean()
    o |= {"crt.logits": plain, "crt.loss": loss.reshape(1)}
    o |= {"crt.grad.weight": gradient(loss, w), "crt.grad.bias": gradient(loss, b)}
    lws = (v @ weight.T + bias) * s
    scaled_loss = -log_p(lws, y).mean()
    o |= {"lws.logits": lws, "lws.loss": scaled_loss.reshape(1)}
    o["lws.grad.scale"] = gradient(scaled_loss, s)
    student, t, beta = (
        plain.detach().requires_grad_(),
        c["distill_temperature"],
        c["distill_weight"],
    )
    p, q = (teacher / t).softmax(dim=1), (student / t).softmax(dim=1)
    kl = (p * (p.log() - q.log())).sum(dim=1)
    loss = (1 - beta) * -log_p(student, y).mean() + beta * t**2 * kl.mean()
    o |= {"distill.kl": kl, "distill.loss": loss.reshape(1)}
    o["distill.grad.logits"] = gradient(loss, student)
    return c, i, {}, o, 1e-5


def shot_accuracy(g: torch.Generator) -> Case:
    many, few = integer(g, 40, 90), integer(g, 10, 30)
    counts = [many + 1, many, few, few - 1, *(integer(g, 1, 150) for _ in range(integer(g, 1, 8)))]
    y = torch.cat([torch.arange(len(counts)), labels(g, integer(g, 20, 90), len(counts))])
    wrong = torch.rand(len(y), generator=g) < 0.4
    pred = torch.where(wrong, labels(g, len(y), len(counts)), y)
    per_class = [float((pred[y == k] == k).double().mean()) for k in range(len(counts))]
    group = [0 if n > many else 2 if n < few else 1 for n in counts]
    o = {"per_class": torch.tensor(per_class).double(), "group": torch.tensor(group)}
    for number_, name in enumerate(("many", "medium", "few")):
        inside = [a for a, k in zip(per_class, group, strict=True) if k == number_]
        o[name] = torch.tensor([sum(inside) / len(inside) if inside else 0.0]).double()
    o["overall_macro"] = torch.tensor([sum(per_class) / len(per_class)]).double()
    o["overall_micro"] = (pred == y).double().mean().reshape(1)
    c = {"many_threshold": many, "few_threshold": few}
    return c, {"train_counts": torch.tensor(counts), "pred": pred, "label": y}, {}, o, 1e-6


def train_step(g: torch.Generator) -> Case:
    d = {"input": integer(g, 6, 14), "feature": integer(g, 6, 12), "proj_hidden": integer(g, 5, 9)}
    d |= {"embed": integer(g, 4, 9), "num_class": integer(g, 3, 7)}
    c: dict[str, Any] = {
        "temperature": number(g, 0.1, 0.5),
        "centroid_momentum": number(g, 0.6, 0.99),
        "w_agnostic": number(g, 0.5, 1.5),
        "w_interp": number(g, 0.5, 1.5),
        "w_centroid": number(g, 0.3, 2.0),
        "sgd": {
            "lr": number(g, 0.02, 0.2),
            "momentum": number(g, 0.5, 0.95),
            "weight_decay": number(g, 0.001, 0.02),
        },
        "dims": d,
    }
    sizes = {
        "encoder": (d["feature"], d["input"]),
        "classifier": (d["num_class"], d["feature"]),
        "projection.0": (d["proj_hidden"], d["feature"]),
        "projection.2": (d["embed"], d["proj_hidden"]),
    }
    state = {}
    for name, (out, inside) in sizes.items():
        state[f"{name}.weight"] = normal(g, out, inside) / math.sqrt(inside)
        state[f"{name}.bias"] = 0.1 * normal(g, out)
    weights = {name: value.clone() for name, value in state.items()}
    centroids = unit(normal(g, d["num_class"], d["embed"]))
    i, o = {"centroids": centroids}, {}
    velocity = {name: torch.zeros_like(value) for name, value in state.items()}
    rows = integer(g, 3, 8)
    for t in range(2):
        x_u, x_a = normal(g, rows, d["input"]), normal(g, rows, d["input"])
        y_u, y_a = labels(g, rows, d["num_class"]), labels(g, rows, d["num_class"])
        lam = weights_of_mixing(g, rows)
        i |= {f"x_agnostic{t}": x_u, f"x_aware{t}": x_a, f"lam{t}": lam}
        i |= {f"y_agnostic{t}": y_u, f"y_aware{t}": y_a}
        p = {name: value.clone().requires_grad_() for name, value in state.items()}
        x = torch.cat([x_u, lam[:, None] * x_u + (1 - lam[:, None]) * x_a])
        v = (x @ p["encoder.weight"].T + p["encoder.bias"]).clamp(min=0)
        logits = v @ p["classifier.weight"].T + p["classifier.bias"]
        hidden = (v @ p["projection.0.weight"].T + p["projection.0.bias"]).clamp(min=0)
        z = unit(hidden @ p["projection.2.weight"].T + p["projection.2.bias"])
        s = z @ centroids.T / c["temperature"]
        terms = {
            "ce_agnostic": -log_p(logits[:rows], y_u).mean(),
            "ce_interp": mixed_loss(logits[rows:], y_u, y_a, lam).mean(),
            "cc_agnostic": -log_p(s[:rows], y_u).mean(),
            "cc_interp": mixed_loss(s[rows:], y_u, y_a, lam).mean(),
        }
        loss = c["w_agnostic"] * (terms["ce_agnostic"] + c["w_centroid"] * terms["cc_agnostic"])
        loss = loss + c["w_interp"] * (terms["ce_interp"] + c["w_centroid"] * terms["cc_interp"])
        o |= {f"step{t}.{name}": term.reshape(1) for name, term in terms.items()}
        o |= {f"step{t}.loss": loss.reshape(1), f"step{t}.cls_logits": logits}
        o |= {f"step{t}.embedding": z, f"step{t}.centroid_logits": s}
        for name, value in p.items():
            grad = gradient(loss, value)
            o[f"step{t}.grad.{name}"] = grad
            velocity[name] = c["sgd"]["momentum"] * velocity[name] + grad
            velocity[name] = velocity[name] + c["sgd"]["weight_decay"] * state[name]
            state[name] = state[name] - c["sgd"]["lr"] * velocity[name]
            o[f"after{t}.{name}"] = state[name]
        centroids = moved(centroids, z[:rows].detach(), y_u, c["centroid_momentum"])
        o[f"after{t}.centroids"] = centroids
    return c, i, weights, o, 2e-5


CASES: tuple[Callable[[torch.Generator], Case], ...] = (
    interpolative_centroid_loss, centroid_update, samplers_and_imbalance, classifier_balancing,
    shot_accuracy, train_step,
)  # fmt: skip


def write_iccl_variant(folder: Path, seed: int) -> None:
    """Write `folder/iccl/<case>` for every case, each with dims and values of its own."""
    for place, make in enumerate(CASES):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        config, inputs, weights, outputs, atol = make(generator)
        case = folder / "iccl" / make.__name__
        case.mkdir(parents=True)
        names = {"outputs": {name: {"meaning": "as in tests/golden"} for name in outputs}}
        description = {"config": config, "atol": atol, "rtol": 2e-4, **names}
        (case / "case.json").write_text(json.dumps(description, indent=1))
        parts = {"inputs": inputs, "outputs": outputs} | ({"weights": weights} if weights else {})
        for part, values in parts.items():
            save_file(
                {
                    name: (v.float() if v.is_floating_point() else v).detach().clone().contiguous()
                    for name, v in values.items()
                },
                case / f"{part}.safetensors",
            )
