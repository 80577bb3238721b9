"""Official CoMatch checkpoints: every key explained, exact round trips, partial loads refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.comatch import official
from methods.comatch.imagenet import CoMatchImageNet
from methods.comatch.module import CoMatch, FixMatch, Supervised
from methods.comatch.transfer import LowShotSVM
from shared.checkpoints.official import convert_official
from shared.checkpoints.reading import CheckpointError
from tests.conformance.conftest import assert_same
from tests.parity.toys import changed, state_of, toy
from tests.unit.official_toy import checkpoint, linear, resnet50_state


def wrn(depth: int = 10, width: int = 1, dim: int = 8, classes: int = 4) -> dict[str, Any]:
    network = {"depth": depth, "width": width, "in_channels": 3, "bn_momentum": 0.001}
    return {
        "backbone": {"_target_": "shared.nn.wide_resnet.WideResNet", **network},
        "num_classes": classes,
        "projection": {"hidden": None, "dim": dim, "negative_slope": 0.1},
    }


def comatch(**changes: Any) -> CoMatch:
    """As large as what `cifar_checkpoint` holds, but for `changes`."""
    sizes = {"alignment_window": 32, "bank_batches": 5, "batch_size": 64, "mu": 7}
    return toy(CoMatch, **(wrn(28, 2, 64, 10) | sizes | changes))


def fixmatch(**changes: Any) -> FixMatch:
    return toy(FixMatch, **(wrn(28, 2, 64, 10) | {"alignment_window": 32} | changes | HEADLESS))


def imagenet(classes=10, rows=40, dim=6, hidden=12, base_width=2) -> CoMatchImageNet:
    backbone = {"_target_": "shared.nn.resnet.ResNet", "base_width": base_width}
    head = {"hidden": hidden, "dim": dim, "negative_slope": 0.0}
    sizes = {"num_classes": classes, "queue_size": rows, "alignment_window": 128}
    return toy(CoMatchImageNet, backbone=backbone, projection=head, **sizes)


HEADLESS = {"projection": None}
CONV = "backbone.conv1.weight"


def batch_norm(name: str, width: int) -> dict[str, Tensor]:
    state = {f"{name}.{k}": torch.rand(width) for k in ("weight", "bias")}
    state |= {f"{name}.running_{k}": torch.rand(width) for k in ("mean", "var")}
    return state | {f"{name}.num_batches_tracked": torch.tensor(7)}


def wrn_state(k: int = 2, classes: int = 10, heads: bool = True) -> dict[str, Tensor]:
    """The official key tree of WRN-28-k (docs/papers/comatch.md, section 9), independent of our
    module."""
    widths = [16, 16 * k, 32 * k, 64 * k]
    state = {"backbone.conv1.weight": torch.randn(16, 3, 3, 3)}
    for stage in (1, 2, 3):
        for block in range(4):
            name = f"backbone.layer{stage}.{block}"
            before, after = widths[stage - (block == 0)], widths[stage]
            state |= batch_norm(f"{name}.bn1", before) | batch_norm(f"{name}.bn2", after)
            state[f"{name}.conv1.weight"] = torch.randn(after, before, 3, 3)
            state[f"{name}.conv2.weight"] = torch.randn(after, after, 3, 3)
            if block == 0:
                state[f"{name}.downsample.weight"] = torch.randn(after, before, 1, 1)
    state |= batch_norm("backbone.bn_last", widths[3]) | linear("classifier", classes, widths[3])
    if heads:
        state |= linear("fc1", widths[3], widths[3]) | linear("fc2", 64, widths[3])
    return state


def cifar_checkpoint(**kinds: Any) -> dict[str, Any]:
    """What script C saves in epoch 10."""
    buffers = {0: {"momentum_buffer": torch.randn(16, 3, 3, 3)}}
    return {
        "model": wrn_state(**kinds),
        "ema_model": wrn_state(**kinds),
        "optimizer": {"state": buffers, "param_groups": [{"lr": 0.03, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 10240, "_last_lr": [0.03]},
        "prob_list": [torch.rand(10) for _ in range(32)],
        "queue": {
            "queue_feats": torch.randn(2560, 64),
            "queue_probs": torch.rand(2560, 10).softmax(1),
            "queue_ptr": 512,
        },
        "epoch": 10,
    }


def imagenet_checkpoint(module: CoMatchImageNet) -> dict[str, Any]:
    """What script I saves of networks and queues as large as the module's."""
    classes, features = module.encoder.classifier.weight.shape
    dim, hidden = module.encoder.projection.fc2.weight.shape
    heads = {"classifier": (classes, features), "fc1": (hidden, features), "fc2": (dim, hidden)}
    state = {
        f"module.{name}.{key}": value
        for name in ("encoder", "m_encoder")
        for key, value in resnet50_state(module.encoder.backbone, **heads).items()
    }
    for queue, probs in (("s", "u"), ("w", "xu")):
        state[f"module.queue_{queue}"] = torch.randn(dim, len(module.weak_queue))
        state[f"module.probs_{probs}"] = torch.rand(classes, len(module.weak_queue))
        state[f"module.queue_ptr_{queue}"] = torch.tensor([24])
    return checkpoint(state)


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


TRAINER = ("optimizer", "lr_scheduler", "epoch", "arch")


def test_cifar_checkpoint_full_size(tmp_path):
    content = cifar_checkpoint()
    torch.save(content, tmp_path / "epoch10.pth")
    module = comatch()
    report = official.load(module, tmp_path / "epoch10.pth")

    assert report.complete
    assert set(report.fresh) == {"bank.written"}
    assert {key.split("/")[0] for key in report.dropped} == {"optimizer", "lr_scheduler", "epoch"}
    state = module.state_dict()
    assert torch.equal(state["encoder.projection.fc1.weight"], content["model"]["fc1.weight"])
    assert torch.equal(
        state["ema_encoder.module.backbone.bn_last.running_var"],
        content["ema_model"]["backbone.bn_last.running_var"],
    )
    assert torch.equal(module.alignment.mean(), torch.stack(content["prob_list"]).mean(0))
    assert int(module.bank.pointer) == 512
    assert module.bank.written > len(module.bank)  # so that smoothing goes on at once

    exported = official.export(module)
    assert_same(without(exported, "tenfold"), without(content, *TRAINER))

    content["queue"]["queue_probs"][512:] = 0  # a bank that was not full starts unsmoothed
    official.load(module, content)
    assert int(module.bank.written) == 512


def test_cifar_round_trip_of_our_state_is_exact():
    module, other = (comatch(**wrn(classes=10)) for _ in range(2))
    module.alignment.count.fill_(37)  # the ring buffer has turned: export starts in its middle
    module.alignment.window.copy_(torch.rand(32, 10))
    module.bank.written.fill_(12345)
    official.load(other, official.export(module))
    assert not changed(state_of(module), other)


def test_fixmatch_checkpoint_without_heads():
    content = without(cifar_checkpoint(heads=False), "queue")
    module = fixmatch()
    assert official.load(module, content).complete
    assert_same(without(official.export(module), "tenfold"), without(content, *TRAINER))
    without_alignment = fixmatch(alignment_window=None)
    report = official.load(without_alignment, content)
    assert report.dropped["prob_list"] == "the module has no distribution alignment"
    official.load(module, without(content, "prob_list"))


def test_imagenet_checkpoint_full_size():
    with torch.device("meta"):
        module = imagenet(1000, 30000, 128, 2048, base_width=64)
        content = imagenet_checkpoint(module)
    assert content["state_dict"]["module.encoder.layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    _, report = convert_official(content, official.table_for(module, content), module.state_dict())
    assert report.complete


def test_imagenet_checkpoint():
    module = imagenet()
    content = imagenet_checkpoint(module)
    report = official.load(module, content)
    empty = {"alignment.window", "alignment.count", "strong_queue.written", "weak_queue.written"}
    assert set(report.fresh) == empty
    theirs = content["state_dict"]
    assert torch.equal(module.strong_queue.features, theirs["module.queue_s"].T)
    assert torch.equal(module.weak_queue.probs, theirs["module.probs_xu"].T)
    assert int(module.weak_queue.pointer) == 24
    ours = module.state_dict()
    for network, name in (("encoder", "encoder."), ("m_encoder", "momentum_encoder.module.")):
        for there, here in (("conv1", "backbone.conv1"), ("fc2", "projection.fc2")):
            key = f"module.{network}.{there}.weight"
            assert torch.equal(ours[f"{name}{here}.weight"], theirs[key])

    module.alignment.window.copy_(torch.rand(128, 10))
    exported = official.export(module)
    assert_same(exported["state_dict"], theirs)
    # Our own state survives the detour, although official files have no place for it.
    window = module.alignment.window.clone()
    exported["tenfold"] = {key: value.clone() for key, value in exported["tenfold"].items()}
    module.alignment.window.zero_()
    official.load(module, exported)
    assert torch.equal(module.alignment.window, window)


def fault(module: official.Classifier, content: dict[str, Any]) -> str:
    before = state_of(module)
    with pytest.raises(CheckpointError) as caught:
        official.load(module, content)
    assert not changed(before, module)
    return str(caught.value)


def test_partial_and_foreign_checkpoints_are_refused_with_the_keys():
    module, content = comatch(), cifar_checkpoint()
    del content["ema_model"]["backbone.bn_last.bias"]
    content["model"]["backbone.layer4.0.conv1.weight"] = torch.zeros(1)
    message = fault(module, content)
    assert "ema_encoder.module.backbone.bn_last.bias" in message
    assert "model/backbone.layer4.0.conv1.weight" in message

    assert "model/classifier.weight (100, 128) there, encoder.classifier.weight (10, 128)" in fault(
        module, {**cifar_checkpoint(), "model": wrn_state(classes=100)}
    )
    assert "fc1.weight" in fault(fixmatch(), cifar_checkpoint())
    assert "encoder.projection.fc1.weight" in fault(module, cifar_checkpoint(heads=False))
    assert "alignment.window" in fault(module, without(cifar_checkpoint(), "prob_list"))
    longer = {"prob_list": [torch.rand(10) for _ in range(33)]}
    assert "holds 32" in fault(module, cifar_checkpoint() | longer)
    message = fault(imagenet(), cifar_checkpoint())
    assert "model/backbone.conv1.weight" in message
    assert "encoder.backbone.layer4.2.conv3.weight" in message


def moco_encoder(module: CoMatchImageNet, linear_head: bool = False) -> dict[str, Tensor]:
    """The query encoder of MoCo, as wide as the module's: its head has two layers, or one."""
    heads = {"fc": (6, 64)} if linear_head else {"fc__0": (12, 64), "fc__2": (6, 12)}
    return resnet50_state(module.encoder.backbone, **heads)


def moco_checkpoint(query: dict[str, Tensor]) -> dict[str, Any]:
    """What the scripts of MoCo and PCL save (PCL: docs/papers/comatch.md, section 9)."""
    state = {f"module.encoder_q.{k}": v for k, v in query.items()}
    state |= {f"module.encoder_k.{k}": torch.zeros(1) for k in query}
    queue = {"module.queue": torch.zeros(6, 16), "module.queue_ptr": torch.zeros(1)}
    return checkpoint(state | queue)


@pytest.mark.parametrize("kind", ["moco_v2", "pcl"])
def test_moco_v2_and_pcl_v2_warm_start(kind, tmp_path):
    module, path = imagenet(), tmp_path / "pretrain.pth.tar"
    query = moco_encoder(module)
    torch.save(moco_checkpoint(query), path)
    before = state_of(module)
    report = official.warm_start(module, path, kind)
    assert len(report.mapped) == len(query)
    after = module.state_dict()
    for name in ("encoder", "momentum_encoder.module"):
        assert torch.equal(after[f"{name}.projection.fc2.weight"], query["fc.2.weight"])
        assert torch.equal(after[f"{name}.backbone.bn1.weight"], query["bn1.weight"])
        key = f"{name}.classifier.weight"
        assert torch.equal(after[key], before[key])
    # Parameters are copied to the momentum encoder, buffers are not.
    key = "backbone.bn1.running_mean"
    assert torch.equal(after[f"encoder.{key}"], query["bn1.running_mean"])
    assert not after[f"momentum_encoder.module.{key}"].any()
    with pytest.raises(CheckpointError, match="CoMatchImageNet modules, not Supervised"):
        official.warm_start(toy(Supervised, **wrn()), path, kind)


def test_simclr_warm_start(tmp_path):
    content = {k: v for k, v in wrn_state().items() if "classifier" not in k}
    path = tmp_path / "simclr.pth"
    torch.save(content, path)
    module = comatch()
    classifier = module.encoder.classifier.weight.clone()
    report = official.warm_start(module, path, "simclr")
    fresh = {k.rsplit(".", 1)[0] for k in report.fresh if k.startswith("encoder")}
    assert fresh == {"encoder.classifier"}
    assert torch.equal(module.encoder.classifier.weight, classifier)
    assert torch.equal(module.ema_encoder.module.projection.fc1.bias, content["fc1.bias"])

    report = official.warm_start(fixmatch(), path, "simclr")
    assert set(report.dropped) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}

    torch.save(wrn_state(), path)  # with a classifier it is no self-supervised checkpoint
    with pytest.raises(CheckpointError, match=r"unexpected(.|\n)*classifier\.weight"):
        official.warm_start(module, path, "simclr")
    with pytest.raises(CheckpointError, match="kind 'simcrl' is unknown: moco_v2, pcl, simclr"):
        official.warm_start(module, path, "simcrl")


def test_official_pcl_v1_leaves_the_projection_fresh_and_says_so(tmp_path):
    module = imagenet()
    query = moco_encoder(module, linear_head=True)
    path = tmp_path / "PCL_v1_epoch200.pth.tar"
    torch.save(moco_checkpoint(query), path)
    before = module.encoder.projection.fc1.weight.clone()
    report = official.warm_start(module, path, "pcl")
    assert torch.equal(module.encoder.projection.fc1.weight, before)
    assert torch.equal(module.encoder.backbone.conv1.weight, query["conv1.weight"])
    reason = "the linear head of PCL v1 does not fit a projection of two layers"
    kept = {key for key, why in report.fresh.items() if why == reason}
    names = {f"fc{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert kept == {f"encoder.projection.{name}" for name in names}
    gone = {key for key, why in report.dropped.items() if why == reason}
    assert gone == {f"state_dict/module.encoder_q.fc.{part}" for part in ("weight", "bias")}
    assert f"4 left as initialised: {reason}" in str(report)

    del query["layer3.4.bn1.bias"]
    torch.save(moco_checkpoint(query), path)
    with pytest.raises(CheckpointError, match=r"missing(.|\n)*backbone\.layer3\.4\.bn1\.bias"):
        official.warm_start(module, path, "pcl")


def small() -> CoMatch:
    return toy(CoMatch, **wrn())


@pytest.mark.parametrize("packing", ["official", "bare", "ours"])
def test_the_backbone_is_transferred(packing, tmp_path):
    trained = imagenet()
    content = {
        "official": imagenet_checkpoint(trained),
        "bare": {"encoder." + k: v for k, v in resnet50_state(trained.encoder.backbone).items()},
        "ours": {
            "_target_": "methods.comatch.imagenet.CoMatchImageNet",
            "state_dict": state_of(trained),
        },
    }[packing]
    torch.save(content, tmp_path / "file")
    module = toy(LowShotSVM, backbone=trained.hparams["backbone"])
    before = state_of(module)
    report = official.warm_start(module, tmp_path / "file", "backbone")
    assert report.complete
    source = content.get("state_dict", content)
    prefix = {"official": "module.encoder.", "bare": "encoder.", "ours": "encoder.backbone."}[
        packing
    ]
    for key, value in module.state_dict().items():
        assert torch.equal(value, source[key.replace("encoder.backbone.", prefix)]), key
    weight = "encoder.backbone.conv1.weight"
    assert not torch.equal(before[weight], module.state_dict()[weight])


def test_a_backbone_is_for_the_transfer_alone(tmp_path):
    torch.save(imagenet_checkpoint(imagenet()), tmp_path / "file")
    with pytest.raises(CheckpointError, match="backbone is for LowShotSVM modules"):
        official.warm_start(imagenet(), tmp_path / "file", "backbone")
    with pytest.raises(CheckpointError, match="moco_v2 is for CoMatchImageNet modules"):
        official.warm_start(toy(LowShotSVM), tmp_path / "file", "moco_v2")
    torch.save({"_target_": "methods.pcl.module.PCL", "state_dict": {}}, tmp_path / "pcl")
    with pytest.raises(CheckpointError, match=r"no checkpoint of methods\.comatch"):
        official.warm_start(toy(LowShotSVM), tmp_path / "pcl", "backbone")


def pcl_checkpoint(encoder: dict[str, Tensor], **content: Any) -> dict[str, Any]:
    """What a run of `methods.pcl` writes, for the network of `small`."""
    state = {f"encoder.{key}": value for key, value in encoder.items()}
    state |= {f"momentum_encoder.module.{key}": value + 1 for key, value in encoder.items()}
    state |= {"queue.features": torch.zeros(16, 8), "queue.pointer": torch.tensor(0)}
    return {"_target_": "methods.pcl.module.PCL", "state_dict": state, "epoch": 3, **content}


def trained(module: official.Classifier) -> dict[str, Tensor]:
    """Other values for all of the encoder but its classifier."""
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value + 5
        for key, value in module.encoder.state_dict().items()
        if not key.startswith("classifier.")
    }


def test_tenfolds_own_pcl_starts_the_cifar_form(tmp_path):
    module = small()
    encoder, path = trained(module), tmp_path / "last.ckpt"
    torch.save(pcl_checkpoint(encoder), path)
    classifier = module.encoder.classifier.weight.clone()
    report = official.warm_start(module, path, "tenfold_pcl")
    state = module.state_dict()
    assert torch.equal(state["encoder.classifier.weight"], classifier)
    for key, value in encoder.items():
        assert torch.equal(state[f"encoder.{key}"], value)
        assert torch.equal(state[f"ema_encoder.module.{key}"], value)
    saved = {f"encoder.{key}" for key in encoder}
    assert {theirs for theirs, _ in report.mapped} == saved
    assert report.dropped.keys() == pcl_checkpoint(encoder)["state_dict"].keys() - saved
    assert report.fresh.keys() | saved == state.keys()

    # An arm without projection ignores it.
    bare = fixmatch(**wrn())
    report = official.warm_start(bare, path, "tenfold_pcl")
    assert report.dropped["encoder.projection.fc1.weight"] == "the module has no projection head"
    assert torch.equal(bare.state_dict()[f"encoder.{CONV}"], encoder[CONV])


@pytest.mark.parametrize("head", ["smaller", "linear", "none"])
def test_a_projection_that_does_not_fit_stays_fresh_and_is_said(tmp_path, head):
    module, path = small(), tmp_path / "last.ckpt"
    before = module.encoder.projection.fc2.weight.clone()
    backbone = {k: v for k, v in trained(module).items() if k.startswith("backbone.")}
    heads = {
        "smaller": linear("projection.fc1", 64, 64) | linear("projection.fc2", 4, 64),
        "linear": linear("projection.fc", 8, 64),
        "none": {},
    }
    torch.save(pcl_checkpoint(backbone | heads[head]), path)
    report = official.warm_start(module, path, "tenfold_pcl")
    assert torch.equal(module.encoder.projection.fc2.weight, before)
    there = {"smaller": [(64, 64), (4, 64)], "linear": [(8, 64)], "none": "none"}[head]
    reason = f"PCL's projection ({there}) does not fit ours ([(64, 64), (8, 64)])"
    assert report.fresh["encoder.projection.fc2.weight"] == reason
    assert all(report.dropped[f"encoder.{key}"] == reason for key in heads[head])


def test_tenfolds_own_pcl_starts_the_imagenet_form(tmp_path):
    module = imagenet()
    encoder, path = trained(module), tmp_path / "last.ckpt"
    torch.save(pcl_checkpoint(encoder), path)
    report = official.warm_start(module, path, "tenfold_pcl")
    assert len(report.mapped) == len(encoder)
    copy = module.momentum_encoder.module
    assert torch.equal(copy.projection.fc1.weight, encoder["projection.fc1.weight"])


def test_the_permuted_control_keeps_the_values_of_each_tensor_and_not_their_order(tmp_path):
    encoder, path = trained(small()), tmp_path / "last.ckpt"
    torch.save(pcl_checkpoint(encoder), path)
    states = []
    for _ in range(2):
        module = small()
        official.warm_start(module, path, "tenfold_pcl_permuted")
        states.append(module.encoder.state_dict())
    for key, value in encoder.items():
        found = states[0][key]
        assert torch.equal(found, states[1][key]), "the order is a function of the name"
        assert torch.equal(found.flatten().sort().values, value.flatten().sort().values)
        if value.numel() > 8:
            assert (found != value).float().mean() > 0.5
    assert torch.equal(
        module.ema_encoder.module.backbone.conv1.weight, states[1]["backbone.conv1.weight"]
    )


def test_other_files_do_not_start_from_pcl(tmp_path):
    module = small()
    before, encoder, path = state_of(module), trained(module), tmp_path / "last.ckpt"
    extra, resized = ({**encoder, key: torch.zeros(3)} for key in ("backbone.extra", CONV))
    faults = [
        (pcl_checkpoint(encoder, _target_="methods.mopro.module.MoPro"), "it is of methods.mopro"),
        (pcl_checkpoint(encoder, _target_="methods.pclx.X"), "it is of methods.pclx"),
        (without(pcl_checkpoint(encoder), "_target_"), "it is not of Tenfold"),
        (moco_checkpoint(encoder), "it is not of Tenfold"),
        (pcl_checkpoint(extra), "encoder.backbone.extra"),
        (pcl_checkpoint(resized), r"encoder.backbone.conv1.weight \(3,\) there"),
    ]
    for content, words in faults:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=words):
            official.warm_start(module, path, "tenfold_pcl")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent.*warm_start\.path=FILE"):
        official.warm_start(module, tmp_path / "absent.ckpt", "tenfold_pcl")
    assert not changed(before, module)
