"""Adapters of the CoMatch cases; what each name means is said in the case's `case.json`.

Everything is observed inside the real `training_step` (and, in the step cases, Lightning's real
loop). Where a case gives logits and embeddings instead of images, they stand in for the network.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.comatch import imagenet as imagenet_form
from methods.comatch import module as cifar_form
from methods.comatch import official
from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.losses import (
    DistributionAlignment,
    oldest_first,
    pseudo_label_graph,
    smooth_with_memory,
)
from methods.comatch.module import CoMatch, FixMatch, Supervised
from shared.data.views import randaugment
from shared.data.views.interface import normalise, planes
from shared.data.views.per_image import CIFAR10_MEAN, CIFAR10_STD
from shared.losses.contrastive import similarity_logits
from shared.nn.queue import FeatureQueue

from .recording import (
    Call,
    Given,
    StepWatcher,
    fit,
    given_permutations,
    gradients_as_weights,
    recording,
    snapshot,
)
from .toys import rates, toy, values_of

Config, Inputs, Outputs = dict[str, Any], dict[str, Tensor], dict[str, Any]
CIFAR_WINDOW, IMAGENET_WINDOW = 32, 128  # constants of the two official scripts
NO_NETWORK = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [1]}


# --- building our modules from a case's config ---


def _wide_resnet(c: Config) -> dict[str, Any]:
    return {"_target_": "shared.nn.wide_resnet.WideResNet", "depth": c["depth"], "width": c["k"]}


# fmt: off
NAMES = {  # our argument -> its name in the cases
    "num_classes": "n_classes", "lr": "lr", "momentum": "momentum", "weight_decay": "weight_decay",
    "total_steps": "max_iter", "ema_decay": "ema_m", "threshold": "thr", "alpha": "alpha",
    "graph_threshold": "contrast_th", "temperature": "temperature", "lambda_u": "lam_u",
    "lambda_c": "lam_c", "bank_batches": "queue_batch", "batch_size": "batch_x",
    "queue_size": "K", "total_epochs": "epochs",
}
OFFICIAL: Config = {  # where a case says nothing
    "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "total_steps": 1, "ema_decay": 0.999,
    "threshold": 0.95, "graph_threshold": 0.8, "temperature": 0.2, "alpha": 0.9, "lambda_u": 1.0,
    "lambda_c": 1.0, "bank_batches": 5, "batch_size": 1, "total_epochs": 400,
}
# fmt: on


def _build(kind: type, c: Config, backbone: dict[str, Any] = NO_NETWORK, **changes: Any) -> Any:
    values = OFFICIAL | {ours: c[theirs] for ours, theirs in NAMES.items() if theirs in c}
    known = {name: value for name, value in values.items() if name in values_of(kind)}
    # The official layout: sums in another order exceed the tolerances.
    return toy(kind, channels_last=False, **{**known, "backbone": backbone, **changes})


def _comatch(c: Config, backbone: dict[str, Any] = NO_NETWORK) -> CoMatch:
    head = {"hidden": None, "dim": c["low_dim"], "negative_slope": 0.1}
    sizes = {"alignment_window": CIFAR_WINDOW, "mu": c.get("batch_u", 1) // c.get("batch_x", 1)}
    return _build(CoMatch, c, backbone, projection=head, **sizes)


def _fixmatch(c: Config, aligned: bool, backbone: dict[str, Any] = NO_NETWORK) -> FixMatch:
    return _build(FixMatch, c, backbone, alignment_window=CIFAR_WINDOW if aligned else None)


def _imagenet(c: Config, weights: Mapping[str, Tensor]) -> CoMatchImageNet:
    stages: dict[int, int] = {}  # blocks per stage, as the weights have them
    for key in weights:
        if key.startswith("encoder.layer"):
            stage, block = key.removeprefix("encoder.layer").split(".")[:2]
            stages[int(stage)] = max(stages.get(int(stage), 0), int(block) + 1)
    backbone = {
        "_target_": "shared.nn.resnet.ResNet",
        "block": "bottleneck" if "encoder.layer1.0.conv3.weight" in weights else "basic",
        "layers": [stages[stage] for stage in sorted(stages)],
        "base_width": c["base_width"],
    }
    head = {"hidden": c["proj_hidden"], "dim": c["low_dim"], "negative_slope": 0.0}
    # A momentum taken from the wrong epoch is 0 and shows.
    momentums = (c["moco_m"], 0.0) if c["epoch"] == 0 else (0.0, c["moco_m"])
    changes = {"alignment_window": IMAGENET_WINDOW, "gather_graph": False, "momentums": momentums}
    return _build(CoMatchImageNet, c, backbone, projection=head, **changes)


# --- official state in and out ---


def _load(
    module: Any, weights: Mapping[str, Tensor], inputs: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Through the importer of official checkpoints, as the scripts would have saved this state."""
    if isinstance(module, CoMatchImageNet):
        official.load(module, {"state_dict": {f"module.{k}": v for k, v in weights.items()}})
        _fill_window(module, inputs["hist_prob"])
        return
    # A checkpoint is written after an epoch: its weights are in both models, its bank is full.
    checkpoint: dict[str, Any] = {"model": dict(weights), "ema_model": dict(weights)}
    if isinstance(module, CoMatch):
        checkpoint["queue"] = {
            "queue_feats": inputs.get("queue_feats", module.bank.features),
            "queue_probs": inputs.get("queue_probs", module.bank.probs),
            "queue_ptr": int(inputs.get("queue_ptr", 0)),
        }
    checkpoint["prob_list"] = list(inputs.get("prob_list", ()))
    official.load(module, checkpoint)


def _fill_window(module: Any, means: Tensor) -> None:
    module.alignment.window[: len(means)] = means
    module.alignment.count.fill_(len(means))


def _names(module: Any) -> dict[str, dict[str, Tensor]]:
    """Present networks under official names: {"": live, "ema.": averaged}; or flat (ImageNet)."""
    exported = official.export(module)
    if "state_dict" in exported:
        flat = {k.removeprefix("module."): v for k, v in exported["state_dict"].items()}
        return {"": snapshot(flat)}
    return {"": snapshot(exported["model"]), "ema.": snapshot(exported["ema_model"])}


def _bank(module: CoMatch) -> Outputs:
    queue = official.export(module)["queue"]
    return {
        "queue_feats": queue["queue_feats"].clone(),
        "queue_probs": queue["queue_probs"].clone(),
        "queue_ptr": torch.as_tensor(queue["queue_ptr"]).reshape(()).clone(),
    }


# --- what a training step computed ---


def _batch(**views: Tensor) -> dict[str, Tensor]:
    views["hidden_labels"] = torch.full((len(views["weak"]),), -1)
    views["labelled_indices"] = torch.arange(len(views["labelled"]))
    views["unlabelled_indices"] = torch.arange(len(views["weak"]))
    return views


def _given_batch(sizes: list[int], labels: Tensor) -> dict[str, Tensor]:
    """A batch whose images are never looked at."""
    names = ["labelled", "weak", "strong0", "strong1"]
    images = {name: torch.zeros(size, 1, 1, 1) for name, size in zip(names, sizes, strict=False)}
    return _batch(labels=labels, **images)


def _watch(module: Any) -> list[tuple[Any, str]]:
    """What `_step_outputs` reads."""
    form = imagenet_form if isinstance(module, CoMatchImageNet) else cifar_form
    targets: list[tuple[Any, str]] = [(module, "total_loss"), (form, "pseudo_label_quality")]
    if isinstance(module, CoMatch):
        targets += [(module, "graph"), (cifar_form, "graph_contrastive_loss")]
        targets += [(cifar_form, "confident_cross_entropy")]
    elif isinstance(module, CoMatchImageNet):
        targets += [(imagenet_form, "graph_contrastive_loss")]
        targets += [(imagenet_form, "confident_cross_entropy")]
        targets += [(imagenet_form, "pseudo_label_graph")]
    else:
        targets += [(module.alignment, "forward")]
    return targets


def _step_outputs(calls: dict[str, list[Call]], step: int = 0) -> Outputs:
    total = calls["total_loss"][step]
    terms, weights = total.arguments["terms"], total.arguments["weights"]
    pseudo = calls["pseudo_label_quality"][step].arguments
    out = {
        "loss_x": terms["loss_x"],
        "loss_u": terms["loss_u"],
        "loss": total.result,
        "mask": pseudo["mask"],
        "lbs_u_guess": pseudo["labels"],
    }
    if "loss_c" in terms:
        out["loss_contrast"] = terms["loss_c"]
        out["lam_c"] = torch.tensor(float(weights["loss_c"]))
        out["probs"] = calls["confident_cross_entropy"][step].arguments["targets"]
        contrast = calls["graph_contrastive_loss"][step].arguments
        similarity = similarity_logits(
            contrast["query"], contrast["reference"], contrast["temperature"]
        )
        out["sim"], out["sim_probs"] = similarity.exp(), similarity.softmax(dim=1)
        out["Q"] = out["Q_mask"] = contrast["graph"]
        out["pos_mask"] = (contrast["graph"] > 0).float()
    else:
        out["probs"] = calls["forward"][step].result
    return out


def _raw_graph(probs: Tensor, reference: Tensor) -> Tensor:
    """The graph with every edge and the row normalisation undone: self-loops weigh 1 again."""
    graph = pseudo_label_graph(probs, reference, threshold=0.0)
    return graph / graph.diagonal()[:, None]


def _gradient(of: Tensor, to: Tensor) -> Tensor:
    return torch.autograd.grad(of, to, retain_graph=True, materialize_grads=True)[0]


# --- adapters: losses from given logits and embeddings ---


def pseudo_labels_da(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    alignment = DistributionAlignment(config["n_classes"], config["window"])
    probs, averages = [], []
    for logits in inputs["logits_u_w"]:
        probs.append(alignment(logits.softmax(dim=1)))
        averages.append(alignment.mean())
    return {
        "probs": torch.stack(probs),
        "prob_avg": torch.stack(averages),
        "final_prob_list": _history(alignment),
    }


def _history(alignment: Any) -> Tensor:
    return oldest_first(alignment.window, int(alignment.count))


def memory_smoothing(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    def step(module: CoMatch, logits_w: Tensor, z_w: Tensor, z_x: Tensor, labels: Tensor):
        sizes = [len(z_x)] + 3 * [len(z_w)]
        strong = torch.zeros(2 * len(z_w), z_w.shape[1])
        logits = torch.cat([logits_w.new_zeros(len(z_x), logits_w.shape[1]), logits_w.repeat(3, 1)])
        module.encoder = Given((logits, torch.cat([z_x, z_w, strong])))
        with recording(*_watch(module), (module, "smooth")) as calls:
            module.training_step(_given_batch(sizes, labels), 0)
        return calls

    module = _comatch(config)
    _load_memory(module, inputs)
    memory = FeatureQueue(*module.bank.features.shape, {"probs": len(module.bank)})
    memory.enqueue(module.bank.features, probs=torch.eye(len(memory)))
    names = ["logits_u_w", "feats_u_w", "feats_x", "labels_x"]
    calls = step(module, *(inputs[name] for name in names))
    single = _step_outputs(calls)
    single["probs_orig"] = calls["smooth"][0].arguments["aligned"]
    single["scores"] = single["probs"].amax(dim=1)
    # The affinities themselves: what smoothing mixes in when the memory's payload is the identity.
    nothing = torch.zeros(len(inputs["feats_u_w"]), len(memory))
    temperature = config["temperature"]
    single["A"] = smooth_with_memory(nothing, inputs["feats_u_w"], memory, temperature, alpha=0.0)
    single |= _bank(module)
    out = {f"single.{name}": value for name, value in single.items()}

    module = _comatch(config)
    probs = [
        _step_outputs(step(module, *values))["probs"]
        for values in zip(*(inputs[f"seq.{name}"] for name in names), strict=True)
    ]
    sequence = {"probs": torch.stack(probs)} | _bank(module)
    return out | {f"seq.{name}": value for name, value in sequence.items()}


def _load_memory(module: CoMatch, inputs: Inputs) -> None:
    """Bank and window of a run beyond its first epoch; the placeholder network stays as it is."""
    _load(module, official.export(module)["model"], inputs)


def full_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _comatch(config)
    _load_memory(module, inputs)
    logits = inputs["logits"].requires_grad_()
    features = inputs["features"].requires_grad_()
    module.encoder = Given((logits, features))
    b = len(inputs["labels_x"])
    m = (len(logits) - b) // 3
    with recording(*_watch(module)) as calls:
        loss = module.training_step(_given_batch([b, m, m, m], inputs["labels_x"]), 0)
    out = _step_outputs(calls)
    out["grad_contrast.features"] = _gradient(out["loss_contrast"], features)
    out["grad_u.logits"] = _gradient(out["loss_u"], logits)
    out["grad.logits"], out["grad.features"] = _gradient(loss, logits), _gradient(loss, features)
    return out


def graph_contrastive_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return full_losses(config, inputs, weights)


def fixmatch_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    out = {}
    for prefix, aligned in (("noda", False), ("da", True)):
        module = _fixmatch(config, aligned)
        if aligned:
            _fill_window(module, inputs["prob_list"])
        logits = inputs["logits"].clone().requires_grad_()
        module.encoder = Given((logits, None))
        b = len(inputs["labels_x"])
        m = (len(logits) - b) // 2
        with recording(*_watch(module)) as calls:
            loss = module.training_step(_given_batch([b, m, m], inputs["labels_x"]), 0)
        values = _step_outputs(calls) | {"grad.logits": _gradient(loss, logits)}
        out |= {f"{prefix}.{name}": value for name, value in values.items()}
    return out


# --- adapters: whole steps ---

STEP_INPUTS = ("images_x", "labels_x", "images_u_w", "images_u_s0", "images_u_s1")


def train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _comatch(config, _wide_resnet(config))
    _load(module, weights, inputs)
    if config["epoch"] == 0:
        module.bank.written.zero_()
    batches = [
        _batch(labelled=x, labels=y, weak=w, strong0=s0, strong1=s1)
        for x, y, w, s0, s1 in zip(*(inputs[name] for name in STEP_INPUTS), strict=True)
    ]
    out, calls = _train(module, batches, config["epoch"])
    for step in range(len(batches)):
        probs = calls["graph"][step].arguments["probs"]
        out[f"step{step}.Qraw"] = _raw_graph(probs, probs)
    return out | _bank(module) | {"prob_list": _history(module.alignment)}


def fixmatch_train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _fixmatch(config, config["distribution_alignment"], _wide_resnet(config))
    _load(module, weights, inputs)
    steps = zip(
        *(inputs[n] for n in ("images_x", "labels_x", "images_u_w", "images_u_s")), strict=True
    )
    batches = [_batch(labelled=x, labels=y, weak=w, strong0=s) for x, y, w, s in steps]
    out, _ = _train(module, batches, config.get("epoch", 0))
    return out


def imagenet_variant_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _imagenet(config, weights)
    _load(module, weights, inputs)
    batches = [
        _batch(labelled=x, labels=y, weak=w, strong0=s0, strong1=s1)
        for x, y, w, s0, s1 in zip(*(inputs[name] for name in STEP_INPUTS), strict=True)
    ]
    with given_permutations(imagenet_form, inputs["idx_shuffle"]):
        out, calls = _train(module, batches, config["epoch"])
    b = len(inputs["labels_x"][0])
    for step in range(len(batches)):
        at = f"step{step}."
        logits, _ = calls["encoder"][step].result
        out[at + "outputs_x"], out[at + "outputs_u_s0"] = logits[:b], logits[b:]
        graph = calls["pseudo_label_graph"][step].arguments
        out[at + "Q"] = out[at + "Qraw"] = _raw_graph(graph["probs"], graph["reference"])
    return out | {"hist_prob": _history(module.alignment)}


def _train(module: Any, batches: list[dict[str, Tensor]], epoch: int):
    """Real Lightning steps; outputs by official names, and the recorded calls."""
    out: Outputs = {}

    def before_update(optimizer: torch.optim.Optimizer) -> None:
        step = len(calls["total_loss"]) - 1
        out[f"step{step}.lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
        with gradients_as_weights(module.encoder):
            gradients = {f"step{step}.grad.{k}": v for k, v in _names(module)[""].items()}
        out.update(gradients)
        if step == 0:
            out.update({k.removeprefix("step0."): v for k, v in gradients.items()})

    def after_step(step: int) -> None:
        for prefix, values in _names(module).items():
            for key, value in values.items():
                out[f"step{step}.{prefix}param.{key}"] = value
                out[f"step{step}.{key}"] = value

    targets = _watch(module)
    with (
        recording(*targets) as calls,
        recording((module.encoder, "forward")) as forwards,
    ):
        trainer = fit(module, batches, StepWatcher(before_update, after_step), epoch)
    calls["encoder"] = forwards["forward"]
    for step in range(len(batches)):
        out |= {f"step{step}.{k}": v for k, v in _step_outputs(calls, step).items()}
        logits, embeddings = calls["encoder"][step].result
        out[f"step{step}.logits"], out[f"step{step}.features"] = logits, embeddings
    out["lr_after"] = torch.tensor(trainer.optimizers[0].param_groups[0]["lr"])
    final = _names(module)
    for key, value in final[""].items():
        out[f"param.{key}"] = out[f"buffer.{key}"] = value
    for key, value in final.get("ema.", {}).items():
        out[f"ema.{key}"] = out[f"ema_buffer.{key}"] = value
    return out, calls


# --- adapters: network, schedules, evaluation, augmentation ---


def wrn_forward(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _comatch(config, _wide_resnet(config))
    _load(module, weights)
    network = module.encoder.eval()
    out: Outputs = {}
    with torch.no_grad():
        images = inputs["images"].contiguous(memory_format=module.memory_format)
        out["feat_layer2"], out["feat_last"] = network.backbone.feature_maps(images)
        out["pooled"] = network.backbone(images)
        out["logits"], out["embedding"] = network(images)
        out["train.logits"], out["train.embedding"] = network.train()(images)
    return out | {f"after.{key}": value for key, value in _names(module)[""].items()}


def lr_schedules(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    c = {"n_classes": 2, "lr": config["cifar_lr"], "max_iter": config["max_iter"]}
    cifar = _build(Supervised, c)
    hyper = dict.fromkeys(("thr", "contrast_th", "temperature", "alpha", "lam_u", "lam_c"), 0.5)
    hyper |= dict.fromkeys(("n_classes", "low_dim", "base_width", "proj_hidden", "K"), 2)
    hyper |= {"moco_m": 0.9, "epoch": 0, "momentum": 0.9, "weight_decay": 0.0}
    hyper |= {"lr": config["imagenet_lr"], "epochs": config["epochs"]}
    imagenet = _imagenet(
        hyper, {f"encoder.layer{stage}.0.conv3.weight": None for stage in (1, 2, 3, 4)}
    )
    return {
        "cifar_lr": rates(cifar, config["max_iter"] + 1, "step")[:, 0],
        "imagenet_lr": rates(imagenet, config["epochs"])[:, 0],
    }


def evaluate(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _build(Supervised, config)
    split = {name: inputs[name].split(config["batches"]) for name in inputs}
    module.encoder = Given(*((logits, None) for logits in split["logits"]))
    module.ema_encoder = Given(*((logits, None) for logits in split["ema_logits"]))
    for index, labels in enumerate(split["labels"]):
        images = torch.zeros(len(labels), 1, 1, 1)
        module.validation_step({"images": images, "labels": labels}, index)
    accuracy = module.accuracies.metrics
    return {
        "top1": accuracy["top1"].batch_mean(),
        "ema_top1": accuracy["top1_ema"].batch_mean(),
    }


def augment_ops(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    image = inputs["image"].numpy().astype(np.uint8)
    out: Outputs = {}
    for level in config["levels"]:
        for name, (_, _, signed) in randaugment.OPERATIONS.items():
            for suffix, negative in ((".pos", False), (".neg", True)) if signed else (("", False),):
                changed = randaugment.apply(name, image, level, negative)
                out[f"L{level}.{name}{suffix}"] = _float(changed)
    for index, (row, column) in enumerate(inputs["cutout_draws"].tolist()):
        cut = randaugment.cutout(image, row, column, config.get("cutout_size", 16))
        out[f"Cutout.{index}"] = _float(cut)
    padding = config.get("padding", 4)
    height, width = config["crop"]
    assert (height, width) == image.shape[:2], "a weak view keeps the size of the image"
    crop = randaugment.pad_crop(image, padding, *inputs["crop_offsets"].tolist())
    out["weak_crop"] = _float(crop)
    flipped = planes(randaugment.flip(crop)[None])
    out["weak_crop_flip_normalized"] = normalise(flipped, CIFAR10_MEAN, CIFAR10_STD)[0]
    return out


def _float(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).float()
