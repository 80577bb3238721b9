"""Adapters of the MoPro cases; what each name means is said in the case's `case.json`.

Everything is observed inside the real `training_step` (and, in the step cases, Lightning's real
loop). Where a case has a parameter-free encoder, it stands in for the network.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from methods.mopro import cleaning, official
from methods.mopro import module as step
from methods.mopro.evaluation import FineTuning
from methods.mopro.module import MoPro
from methods.mopro.retraining import ClassifierRetraining, SquareRootPass, repeat_factors
from shared.checkpoints.exporters import export_layout
from shared.data.multi_view import ViewsData
from shared.evaluation import low_shot
from shared.training.method import Method

from .recording import (
    Call,
    StepWatcher,
    fit,
    given_permutations,
    gradients_as_weights,
    recording,
    snapshot,
)
from .toys import rates, toy
from .two_processes import on_each_rank

Config, Inputs, Outputs = dict[str, Any], dict[str, Tensor], dict[str, Any]
NO_NETWORK = {"_target_": "shared.nn.small_convnet.SmallConvNet", "channels": [1]}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


# --- building our modules from a case's config ---


class MoProAt(MoPro):
    """MoPro in a given epoch, without a trainer."""

    epoch = 0

    @property
    def current_epoch(self) -> int:
        return self.epoch if self._trainer is None else self.trainer.current_epoch


class PassThrough(nn.Module):
    """The cases' encoder "pass": columns are class logits, then a raw embedding."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes
        self.unused = nn.Parameter(torch.zeros(1))  # the key encoder follows some parameter

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, : self.classes], F.normalize(images[:, self.classes :], dim=1)


def _backbone(c: Config) -> dict[str, Any]:
    if c.get("encoder") != "tiny_resnet":
        return NO_NETWORK
    return {
        "_target_": "shared.nn.resnet.ResNet",
        "block": {"BasicBlock": "basic", "Bottleneck": "bottleneck"}[c["block"]],
        "layers": c["layers"],
        "base_width": c["base_channels"],
        "stem_channels": c["stem_channels"],
    }


NAMES = {  # our argument -> its name in the cases
    "num_classes": "num_class", "threshold": "pseudo_th", "temperature": "temperature",
    "alpha": "alpha", "start_clean_epoch": "start_clean_epoch", "encoder_momentum": "moco_m",
    "prototype_momentum": "proto_m", "queue_size": "moco_queue", "w_inst": "w_inst",
    "w_proto": "w_proto",
}  # fmt: skip


def _mopro(c: Config, weights: Mapping[str, Tensor], epoch: int = 0, **changed: Any) -> MoProAt:
    """With the case's weights, through the importer of official checkpoints."""
    a, sgd = c["args"], c.get("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0})
    arguments = {ours: a[theirs] for ours, theirs in NAMES.items()} | sgd | {
        "backbone": _backbone(c),
        "projection": {"hidden": c.get("hidden", 1), "dim": a["low_dim"], "negative_slope": 0.0},
        "schedule": {"kind": "steps", "milestones": [], "gamma": 1.0},
        "total_epochs": 90,
        "channels_last": False,  # the official layout: sums in another order exceed the tolerances
    }  # fmt: skip
    module = toy(MoProAt, **(arguments | changed))
    module.epoch = epoch
    if weights:
        prefix = c.get("prefix", "module.")
        named = {f"{prefix}{name}": value for name, value in weights.items()}
        present = {} if c["encoder"] == "tiny_resnet" else official.export(module)["state_dict"]
        official.load(module, {"state_dict": present | named})
    if c.get("encoder") == "pass":
        module.encoder = PassThrough(a["num_class"])
        module.key_encoder.module = PassThrough(a["num_class"]).requires_grad_(False)
    return module


def _epoch(c: Config, is_proto: bool, is_clean: bool) -> int:
    return c["args"]["start_clean_epoch"] if is_clean else int(is_proto)


def _names(module: Method) -> dict[str, Tensor]:
    """Present state under official names."""
    state = official.export(module)["state_dict"]
    return {k.removeprefix("module."): v for k, v in snapshot(state).items()}


def _buffers(module: MoPro) -> dict[str, Tensor]:
    """Those that every case keeps, also with a stand-in for the network."""
    return {
        "queue": module.queue.features.T.clone(),
        "queue_ptr": module.queue.pointer.reshape(1).clone(),
        "prototypes": module.prototypes.prototypes.clone(),
    }


# --- what a training step computed ---


def _batch(weak: Tensor, strong: Tensor, labels: Tensor) -> dict[str, Tensor]:
    indices = torch.arange(len(labels))
    return {"weak": weak, "strong": strong, "labels": labels.clone(), "indices": indices}


def _watch(module: MoPro) -> list[tuple[Any, str]]:
    return [
        (module, "total_loss"),
        (module, "log_train"),
        (step, "shuffled_forward"),
        (module, "correct"),
        (module.encoder, "forward"),
        (step, "soft_labels"),
        (F, "cross_entropy"),
    ]


def _step(module: MoPro, batch: dict[str, Tensor], permutation: Tensor) -> tuple[Outputs, Tensor]:
    """One training step outside of any loop: its outputs by official names, and its loss."""
    web_labels = batch["labels"].clone()
    with recording(*_watch(module)) as calls, given_permutations(step, [permutation]):
        loss = module.training_step(batch, 0)
    assert torch.equal(batch["labels"], web_labels), "the batch's labels were overwritten"
    return _step_outputs(module, calls, 0, web_labels), loss


def _step_outputs(
    module: MoPro, calls: dict[str, list[Call]], number: int, web_labels: Tensor
) -> Outputs:
    """The `number`-th recorded step. A step takes the cross-entropy of classes, instances and,
    after the first epoch, prototypes."""
    total = calls["total_loss"][number]
    terms = total.arguments["terms"]
    tasks = 3 if "loss_proto" in terms else 2
    entropies = [c.arguments for c in calls["cross_entropy"][number * tasks : (number + 1) * tasks]]
    correction = calls["correct"][number].result
    logged = [
        c.arguments["values"]
        for c in calls["log_train"]
        if "accuracy_inst" in c.arguments["values"]
    ][number]
    out: Outputs = {
        "cls_logits": entropies[0]["input"],
        "target": entropies[0]["target"],
        "inst_logits": entropies[1]["input"],
        "inst_labels": entropies[1]["target"],
        "k": calls["shuffled_forward"][number].result[1],
        "q": calls["forward"][number].result[1],
        "clean": correction.kept.long(),
        "relabelled": correction.relabelled.long(),
        "target_all": correction.labels,
        "loss": total.result,
        "acc_cls": logged["accuracy_cls"],
        "acc_inst": logged["accuracy_inst"],
        **terms,
    }
    if tasks == 3:
        out["proto_logits"] = entropies[2]["input"]
        out["acc_proto"] = logged["accuracy_proto"]
        assert torch.equal(entropies[2]["target"], out["target"])
    if calls["soft_labels"]:
        scores = calls["soft_labels"][number].result
        out["soft_label"] = scores
        out["max_score"], out["argmax"] = scores.max(dim=1)
        out["web_score"] = scores[torch.arange(len(scores)), web_labels]
        out["confident"] = (out["max_score"] > module.hparams["threshold"]).long()
    return out


def _after(module: MoPro, at: str = "after.") -> Outputs:
    names = _buffers(module)
    if not isinstance(module.encoder, PassThrough):
        names |= _names(module)
    return {f"{at}{name}": value for name, value in names.items()}


# --- adapters: one step ---


def forward(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _mopro(config, weights, _epoch(config, **config["call"]))
    batch = _batch(inputs["img"], inputs["img_aug"], inputs["target"])
    out, _ = _step(module, batch, inputs["idx_shuffle"])
    return out | _after(module)


def forward_first_epoch(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return forward(config, inputs, weights)


def pseudo_label_correction(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return forward(config, inputs, weights)


def prototype_update(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module, out = _mopro(config, weights), {}
    for n, call in enumerate(config["calls"]):
        flags = dict(flag.split("=") for flag in call.split(","))
        module.epoch = _epoch(config, *(flags[k] == "True" for k in ("is_proto", "is_clean")))
        batch = _batch(inputs[f"img{n}"], inputs[f"img{n}"], inputs[f"target{n}"])
        found, _ = _step(module, batch, inputs[f"idx_shuffle{n}"])
        out |= {f"{name}{n}": found[name] for name in ("target_all", "q", "clean")}
        out[f"prototypes_after{n}"] = _buffers(module)["prototypes"]
    return out


def queue_update(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module, out = _mopro(config, weights, _epoch(config, **config["call"])), {}
    for n in range(sum(name.startswith("img_aug") for name in inputs)):
        batch = _batch(inputs[f"img{n}"], inputs[f"img_aug{n}"], inputs["target"])
        found, _ = _step(module, batch, inputs[f"idx_shuffle{n}"])
        out |= {f"inst_logits{n}": found["inst_logits"], f"k{n}": found["k"]}
        buffers = _buffers(module)
        out |= {f"queue_after{n}": buffers["queue"], f"ptr_after{n}": buffers["queue_ptr"]}
    return out


def full_losses(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    out: Outputs = {}
    for epoch in config["epochs"]:
        module = _mopro(config, weights, epoch)
        image = inputs["img"].clone().requires_grad_()
        batch = _batch(image, inputs["img_aug"], inputs["target"])
        found, loss = _step(module, batch, inputs["idx_shuffle"])
        found["grad.img"] = torch.autograd.grad(loss, image)[0]
        out |= {f"e{epoch}.{name}": value for name, value in found.items()}
    return out


def train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module, steps = _mopro(config, weights), range(config["steps"])
    names = ("img", "img_aug", "target")
    batches = [_batch(*(inputs[f"{name}{n}"] for name in names)) for n in steps]
    out: Outputs = {}

    def before_update(_: torch.optim.Optimizer) -> None:
        number = len(calls["total_loss"]) - 1
        with gradients_as_weights(module.encoder):
            out.update({f"step{number}.grad.{k}": v for k, v in _names(module).items()})

    def after_step(number: int) -> None:
        out.update(_after(module, f"after{number}."))

    with (
        recording(*_watch(module)) as calls,
        given_permutations(step, (inputs[f"idx_shuffle{n}"] for n in steps)),
    ):
        fit(module, batches, StepWatcher(before_update, after_step), config["epoch"])
    for n in steps:
        found = _step_outputs(module, calls, n, inputs[f"target{n}"])
        out |= {f"step{n}.{name}": value for name, value in found.items()}
    return out


def distributed_two_ranks(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Real processes, because what is compared is what passes between them."""
    found = on_each_rank(_rank, config, inputs, weights)
    out = {f"{name}.rank{r}": value for r, rank in enumerate(found) for name, value in rank.items()}
    for name in ("queue", "queue_ptr", "prototypes"):
        values = [rank[f"after.{name}"] for rank in found]
        assert all(torch.equal(values[0], value) for value in values), f"{name} differs by rank"
        out[f"after.{name}"] = values[0]
    return out | {k.removesuffix(".rank0"): v for k, v in out.items() if k.endswith("rank0")}


def _rank(rank: int, config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _mopro(config, weights, _epoch(config, **config["call"]))
    batch = _batch(*(inputs[f"{name}.rank{rank}"] for name in ("img", "img_aug", "target")))
    out, _ = _step(module, batch, inputs["idx_shuffle"])
    return {k: torch.as_tensor(v).detach() for k, v in (out | _after(module)).items()}


# --- adapters: evaluation, cleaning, retraining ---


def encoder_eval(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _mopro(config, weights).eval()
    backbone, projection = module.encoder.backbone, module.encoder.projection
    layers = [backbone.maxpool, backbone.layer1, backbone.layer4, backbone, projection.fc2]
    with recording(*((layer, "forward") for layer in layers)) as calls, torch.no_grad():
        logits, embedding = module.encoder(inputs["img"])
    # Calls are listed in the order in which they end.
    stem, first, last, feature, raw = (call.result for call in calls["forward"])
    return {
        "cls_logits": logits,
        "embedding": embedding,
        "target": inputs["target"],
        "stem": stem.mean(dim=(2, 3)),
        "layer1_mean": first.mean(dim=(2, 3)),
        "layer4_mean": last.mean(dim=(2, 3)),
        "feature": feature,
        "embedding_unnormalised": raw,
    }


def evaluation_accuracy(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _mopro(config, weights).eval()
    batches = (inputs[name].split(config["batch_sizes"]) for name in ("img", "target"))
    for n, (images, labels) in enumerate(zip(*batches, strict=True)):
        module.validation_step({"images": images, "labels": labels}, n)
    out: Outputs = {}
    for name in ("top1", "top5"):
        out[name] = module.accuracies.metrics[name].batch_mean().reshape(1)
        out[f"sample_weighted_{name}"] = module.accuracies.metrics[name].compute().reshape(1)
    return out


def noise_cleaning(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Through files in the WebVision layout, read by the reader that the experiments use."""
    module = _mopro(config, weights)
    with tempfile.TemporaryDirectory() as folder:
        _write_webvision(Path(folder), inputs, config["n_google"])
        data = ViewsData(
            dataset={
                "_target_": "shared.data.readers.webvision.webvision",
                "root": folder,
                "num_classes": config["args"]["num_class"],
                "in_memory": True,
            },
            augmentation={
                "_target_": "shared.data.views.recipes.RecipeViews",
                "size": config["image_size"],
                "test_resize": None,
                "recipes": {},
                **IMAGENET,
            },
            views=[],
            batch_size=1,
            eval_batch_size=config["batch_size"],
        )
        with (
            recording((module.encoder, "forward")) as forwards,
            recording((step, "soft_labels")) as rule,
        ):
            threshold = module.hparams["threshold"]
            indices, labels, _ = cleaning.clean(module, data.features_dataloader(), threshold)
    return {
        "kept_index": indices,
        "kept_label": labels,
        "cls_logits": torch.cat([call.result[0] for call in forwards["forward"]]),
        "embedding": torch.cat([call.result[1] for call in forwards["forward"]]),
        "soft_label": torch.cat([call.result for call in rule["soft_labels"]]),
    }


def _write_webvision(root: Path, inputs: Inputs, google: int) -> None:
    lines: dict[str, list[str]] = {"google": [], "flickr": []}
    pairs = zip(inputs["images_uint8"], inputs["web_label"].tolist(), strict=True)
    for n, (pixels, label) in enumerate(pairs):
        source = "google" if n < google else "flickr"
        name = f"{source}/{len(inputs['web_label']) - n}.png"  # not in the order of the list
        (root / source).mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8)).save(root / name)
        lines[source].append(f"{name} {label}\n")
    (root / "info").mkdir()
    for source, listed in lines.items():
        (root / "info" / f"train_filelist_{source}.txt").write_text("".join(listed))


def balanced_resampling(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    labels = inputs["labels"].numpy()
    stream = SquareRootPass(0, labels)
    lengths = []

    def given(epoch: int, length: int) -> np.ndarray:
        lengths.append(length)
        return inputs["permutation"].numpy()

    stream.shuffle = given  # type: ignore[method-assign]
    positions = torch.from_numpy(stream.draws(epoch=0).positions)
    return {
        "sampled_index": positions,
        "sampled_label": inputs["labels"][positions],
        "class_weight": torch.from_numpy(repeat_factors(labels)),
        "expanded_length": torch.tensor(lengths),
        "epoch_length": torch.tensor([len(stream)]),
    }


def _linear(kind: type, c: Config, backbone: dict[str, Any], sgd: Config, **changed: Any) -> Any:
    arguments = {
        "backbone": backbone,
        "num_classes": c["args"]["num_class"] if "args" in c else 2,
        "freeze": True,
        "head_std": None,
        "schedule": {"kind": "steps", "milestones": [], "gamma": 1.0},
        "total_epochs": 15,
        "channels_last": False,
        "momentum": 0.9,
        "weight_decay": 0.0,
        **sgd,
    }
    return kind(**(arguments | changed))


def classifier_retrain_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _linear(ClassifierRetraining, config, _backbone(config), config["sgd"])
    official.load(module, {"state_dict": {f"module.{k}": v for k, v in weights.items()}})
    before = snapshot(module.encoder.backbone.state_dict())
    batches = [
        {"weak": inputs[f"img{n}"], "labels": inputs[f"target{n}"], "indices": torch.arange(1)}
        for n in range(config["steps"])
    ]
    out: Outputs = {}

    def before_update(_: torch.optim.Optimizer) -> None:
        n = len(calls["total_loss"]) - 1
        layer = module.encoder.classifier
        out[f"step{n}.grad.weight"] = layer.weight.grad.clone()
        out[f"step{n}.grad.bias"] = layer.bias.grad.clone()

    def after_step(n: int) -> None:
        out.update(
            {
                f"after{n}.{k}": v
                for k, v in snapshot(module.encoder.classifier.state_dict()).items()
            }
        )

    with (
        recording((module, "total_loss")) as calls,
        recording((module.encoder.backbone, "forward")) as features,
    ):
        fit(module, batches, StepWatcher(before_update, after_step))
    for n in range(config["steps"]):
        out[f"step{n}.loss"] = calls["total_loss"][n].result
        out[f"feature{n}"] = features["forward"][n].result
    for name, value in module.encoder.backbone.state_dict().items():
        assert torch.equal(value, before[name]), f"the frozen backbone's {name} changed"
    return out


def lowshot_voc_svm(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    train, test = (low_shot.normalise(inputs[f"{name}_feat"]) for name in ("train", "test"))
    svms = low_shot.fit_svms(train, inputs["train_label"], config["cost"])
    decision = svms.decision(test)
    pairs = zip(inputs["test_label"].T, decision.T, strict=True)
    return {
        "train_feat_norm": train,
        "test_feat_norm": test,
        "decision": decision,
        "ap": torch.stack([100 * low_shot.average_precision(*pair)[2] for pair in pairs]),
        "map": torch.tensor([low_shot.mean_average_precision(inputs["test_label"], decision)]),
    }


def lr_schedules(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    def schedule(c: Config) -> dict[str, Any]:
        if c.get("cos"):
            plan: dict[str, Any] = {"kind": "cosine"}
        else:
            gamma = c.get("decay_rate", 0.1)
            plan = {"kind": "steps", "milestones": c["schedule"], "gamma": gamma}
        return {"schedule": plan, "total_epochs": c["epochs"]}

    numbers = {"moco_m": 0.9, "proto_m": 0.9, "temperature": 0.1, "alpha": 0.5, "pseudo_th": 0.8}
    numbers |= {"w_inst": 1.0, "w_proto": 1.0, "start_clean_epoch": 11, "num_class": 2}
    tiny = {"args": numbers | {"low_dim": 2, "moco_queue": 4}}
    out: Outputs = {}
    for name in ("pretrain", "pretrain_cos"):
        c = config[name]
        module = _mopro(tiny, {}, **schedule(c), lr=c["lr"])
        out[name] = rates(module, c["epochs"])[:, 0]
    for name, kind, more in (("retrain", ClassifierRetraining, 1), ("finetune", FineTuning, 0)):
        c = config[name]
        linear = _linear(
            kind, c, NO_NETWORK, {"lr": c["lr"]}, freeze=kind is ClassifierRetraining, **schedule(c)
        )
        out[name] = rates(linear, c["epochs"] + more)[:, 0]  # the retraining's epochs are inclusive
    return out


def checkpoint_remap(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = _mopro(config, weights)
    names = {"finetune": "torchvision", "lowshot": "backbone", "retrain": "retraining"}
    out: Outputs = {}
    for name, consumer in (names | {"detectron2": "detectron2"}).items():
        for key, value in export_layout(module, consumer).items():
            whole = name == "detectron2" or value.numel() <= 64
            out[f"{name}.{key}"] = value if whole else value.sum().reshape(1)
    return out
