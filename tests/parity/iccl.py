"""Adapters of the ICCL cases; what each name means is said in the case's `case.json`.

No official code exists: the cases evaluate the equations in NumPy, or come from the
public code of the shared parts. Steps are observed inside the real `training_step` and Lightning's
real loop; where a case gives embeddings instead of images, they stand in for the network.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.iccl import module as iccl_module
from methods.iccl import official
from methods.iccl.module import ICCL
from shared.data.readers.long_tail import class_aware_weights, long_tail_counts
from shared.evaluation import shots
from shared.nn.prototypes import ClassPrototypes
from shared.tasks.classifier_balancing import (
    LearnableScales,
    distillation_divergence,
    distillation_terms,
    tau_norm_logits,
)

from .recording import Given, StepWatcher, fit, gradients_as_weights, recording, snapshot
from .toys import toy

CONSTANT = {"every": "epoch", "cosine": None, "warm_up": 0, "milestones": [], "gamma": 1.0}
Config, Inputs, Outputs = dict[str, Any], dict[str, Tensor], dict[str, Any]


class LinearEncoder(nn.Linear):
    """The encoder of the train_step case: relu(W x + b)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def _module(c: Config, dims: Config) -> ICCL:
    """ICCL with a case's values; the network is a placeholder of the right feature width."""
    sgd = c.get("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0})
    width, embed = dims["feature"], dims["embed"]
    names = ("temperature", "centroid_momentum", "w_agnostic", "w_interp", "w_centroid")
    given = {"centroid_momentum": 0.99} | {name: c[name] for name in names if name in c}
    return toy(
        ICCL,
        backbone={"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [width]},
        num_classes=dims["num_class"],
        projection={"hidden": dims["proj_hidden"], "dim": embed, "negative_slope": 0.0},
        channels_last=False,
        schedule=CONSTANT,
        **given,
        **sgd,
    )


def _batch(x_u: Tensor, y_u: Tensor, x_a: Tensor, y_a: Tensor) -> dict[str, Tensor]:
    places = torch.arange(len(x_u))
    return {
        "images": x_u, "labels": y_u, "indices": places,
        "partners": x_a, "partner_labels": y_a, "partner_indices": places,
    }  # fmt: skip


def _gradient(of: Tensor, to: Tensor) -> Tensor:
    return torch.autograd.grad(of, to, retain_graph=True, materialize_grads=True)[0]


def interpolative_centroid_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    classes, dim = config["num_class"], config["dim"]
    module = _module(
        config, {"feature": dim, "proj_hidden": dim, "embed": dim, "num_class": classes}
    )
    module.centroids.prototypes.copy_(inputs["centroids"])
    rows = len(inputs["lam"])
    raw = inputs["embedding_raw"].requires_grad_()
    cls_logits = inputs["cls_logits"].requires_grad_()
    # The un-mixed branch is not part of this case: zero logits, a unit vector as embedding.
    unmixed = F.one_hot(torch.zeros(rows, dtype=torch.long), dim).float()
    head = module.encoder.projection
    head.fc1, head.fc2 = nn.Identity(), nn.Identity()
    head.negative_slope = 1.0
    embedding = head(raw)  # the head's own normalisation
    network = Given(
        (torch.cat([torch.zeros_like(cls_logits), cls_logits]), torch.cat([unmixed, embedding]))
    )
    module.encoder = network
    module.draw_lambda = lambda count: inputs["lam"]  # type: ignore[method-assign]
    y_u, y_a = inputs["label_agnostic"], inputs["label_aware"]
    with recording(
        (network, "forward"),
        (module, "total_loss"),
        (module, "centroid_logits"),
        (iccl_module, "interpolated_cross_entropy"),
    ) as calls:
        module.training_step(_batch(inputs["img_agnostic"], y_u, inputs["img_aware"], y_a), 0)
    terms = calls["total_loss"][0].arguments["terms"]
    s_m = calls["centroid_logits"][1].result
    lam = calls["interpolated_cross_entropy"][1].arguments["lam"]
    one_by_one = {
        name: torch.stack(
            [
                iccl_module.interpolated_cross_entropy(*(v[i : i + 1] for v in (x, y_u, y_a, lam)))
                for i in range(rows)
            ]
        )
        for name, x in (("icc", s_m), ("cls", cls_logits))
    }
    return {
        "img_interpolated": calls["forward"][0].arguments["images"][rows:],
        "mixed_target": _mixed_target(y_u, y_a, lam, classes),
        "embedding": embedding,
        "centroid_logits": s_m,
        "centroid_prob": s_m.softmax(dim=1),
        "icc_loss_per_sample": one_by_one["icc"],
        "icc_loss": terms["cc_interp"].reshape(1),
        "cls_loss_per_sample": one_by_one["cls"],
        "cls_loss": terms["ce_interp"].reshape(1),
        "grad.embedding_raw": _gradient(terms["cc_interp"], raw),
        "grad.cls_logits": _gradient(terms["ce_interp"], cls_logits),
    }


def _mixed_target(y_u: Tensor, y_a: Tensor, lam: Tensor, classes: int) -> Tensor:
    """The soft target that the loss really has: softmax minus B times its gradient."""
    logits = torch.zeros(len(y_u), classes, requires_grad=True)
    loss = iccl_module.interpolated_cross_entropy(logits, y_u, y_a, lam)
    return logits.detach().softmax(dim=1) - len(y_u) * _gradient(loss, logits)


def centroid_update(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    centroids = ClassPrototypes(config["num_class"], config["dim"])
    centroids.prototypes.copy_(inputs["centroids"])
    out = {}
    batches = [int(m.group(1)) for n in inputs if (m := re.fullmatch(r"embedding(\d+)", n))]
    for number in sorted(batches):
        centroids.update(
            inputs[f"embedding{number}"], inputs[f"label{number}"], config["centroid_momentum"]
        )
        out[f"centroids_after{number}"] = centroids.prototypes.clone()
    return out


def samplers_and_imbalance(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    out: Outputs = {}
    for gamma in config["gammas"]:
        per_image, per_class = class_aware_weights(inputs["class_counts"].numpy(), gamma)
        out[f"image_prob.gamma{gamma}"] = torch.from_numpy(per_image)
        out[f"class_prob.gamma{gamma}"] = torch.from_numpy(per_class)
    # The data sets are named in the outputs only: CIFAR-10-LT and CIFAR-100-LT
    # (docs/papers/iccl.md, section 6.1), of any whole imbalance ratio.
    for classes, n_max in ((10, 5000), (100, 500)):
        for ratio in range(1, 201):
            counts = torch.from_numpy(long_tail_counts(n_max, ratio, classes))
            out[f"counts.K{classes}.max{n_max}.ir{ratio}"] = counts
    return out


def classifier_balancing(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    feature, label = inputs["feature"], inputs["label"]
    weight, bias = inputs["weight"], inputs["bias"]
    out: Outputs = {}
    for tau in config["taus"]:
        logits = tau_norm_logits(feature, weight, tau)
        out |= {f"tau{tau}.logits": logits, f"tau{tau}.pred": logits.argmax(dim=1)}

    scaled = LearnableScales(weight, bias)
    with torch.no_grad():
        scaled.scale.copy_(inputs["lws_scale"])
    logits = scaled(feature)
    loss = _total(*distillation_terms(logits, label, None, None))
    out |= {"lws.logits": logits, "lws.loss": loss.reshape(1)}
    out["lws.grad.scale"] = _gradient(loss, scaled.scale)

    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    logits = linear(feature)
    loss = _total(*distillation_terms(logits, label, None, None))
    out |= {"crt.logits": logits, "crt.loss": loss.reshape(1)}
    out["crt.grad.weight"] = _gradient(loss, linear.weight)
    out["crt.grad.bias"] = _gradient(loss, linear.bias)

    # The student is the re-trained classifier of this case.
    student, teacher = logits.detach().requires_grad_(), inputs["teacher_logits"]
    temperature, beta = config["distill_temperature"], config["distill_weight"]
    settings = {"temperature": temperature, "weight": beta}
    loss = _total(*distillation_terms(student, label, teacher, settings))
    out["distill.kl"] = distillation_divergence(student, teacher, temperature)
    out |= {"distill.loss": loss.reshape(1), "distill.grad.logits": _gradient(loss, student)}
    return out


def _total(terms: dict[str, Tensor], factors: dict[str, float]) -> Tensor:
    return torch.stack([factors.get(name, 1.0) * term for name, term in terms.items()]).sum()


def shot_accuracy(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    predictions, labels, counts = inputs["pred"], inputs["label"], inputs["train_counts"]
    limits = config["many_threshold"], config["few_threshold"]
    groups = shots.shot_accuracy(predictions, labels, counts, *limits)
    macro = shots.macro_accuracy(predictions, labels, len(counts))
    names = ("many", "medium", "few")
    out = {name: torch.tensor([groups[name]]).nan_to_num(0.0) for name in names}
    return out | {
        "overall_micro": torch.tensor([groups["all"]]),
        "overall_macro": torch.tensor([macro]),
        "per_class": shots.class_accuracies(predictions, labels, len(counts)),
        "group": shots.shot_groups(counts, *limits),
    }


def train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    dims = config["dims"]
    module = _module(config, dims)
    module.encoder.backbone = LinearEncoder(dims["input"], dims["feature"])
    official.load(module, {**weights, "centroids": inputs["centroids"]})

    out: Outputs = {}
    steps = [int(m.group(1)) for n in inputs if (m := re.fullmatch(r"lam(\d+)", n))]
    names = ("x_agnostic", "y_agnostic", "x_aware", "y_aware")
    batches = [_batch(*(inputs[f"{name}{t}"] for name in names)) for t in sorted(steps)]
    lams = iter([inputs[f"lam{t}"] for t in sorted(steps)])
    module.draw_lambda = lambda count: next(lams)  # type: ignore[method-assign]

    def before_update(_: Any) -> None:
        with gradients_as_weights(module):
            gradients = snapshot(official.export(module))
        step = len(calls["total_loss"]) - 1
        del gradients["centroids"]
        out.update({f"step{step}.grad.{name}": value for name, value in gradients.items()})

    def after_step(step: int) -> None:
        state = snapshot(official.export(module))
        out.update({f"after{step}.{name}": value for name, value in state.items()})

    watched = [(module, "total_loss"), (module, "centroid_logits"), (module.encoder, "forward")]
    with recording(*watched) as calls:
        fit(module, batches, StepWatcher(before_update, after_step))
    for step, total in enumerate(calls["total_loss"]):
        terms = total.arguments["terms"]
        logits, embedding = calls["forward"][step].result
        similarities = [call.result for call in calls["centroid_logits"][2 * step : 2 * step + 2]]
        values = {name: term.reshape(1) for name, term in terms.items()} | {
            "loss": total.result.reshape(1),
            "cls_logits": logits,
            "embedding": embedding,
            "centroid_logits": torch.cat(similarities),
        }
        out |= {f"step{step}.{name}": value for name, value in values.items()}
    return out
