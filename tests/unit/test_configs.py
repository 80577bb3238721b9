"""Everything under conf/ composes; every row and arm sets keys that exist, builds, and says what
data it lacks."""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from benchmarks.chaos import ALWAYS, load_plan
from benchmarks.claims import load_claim
from shared.data.errors import DataNotFoundError
from shared.experiments import CONF, FIGURES, PAPER, Line, arms, rows, table
from shared.nn.building import trusted_function
from shared.overrides import validate
from tests.hostile.damages import every

FILES = {str(p.relative_to(CONF).with_suffix("")) for p in CONF.rglob("*.yaml")}
EXPERIMENTS = {f.removeprefix("experiment/") for f in FILES if f.startswith("experiment/")}
CLAIMS = sorted(f.removeprefix("reproduce/") for f in FILES if f.startswith("reproduce/"))
METHODS = sorted(f.removeprefix("rows/") for f in FILES if f.startswith("rows/"))
ROWS = {f"{m}/{name}": line for m in METHODS for name, line in rows(m).items()}
ARMS = {f"reproduce/{c}/{name}": line for c in CLAIMS for name, line in arms(c).items()}
ABSENT = "/absent/data"
CLASSES = {"cifar10": 10, "stl10": 10, "svhn": 10, "cifar100": 100}  # of readers of one data set
CLASSES |= {"imagenet": 1000, "imagenet_fraction": 1000}


def composed(*overrides: str, name: str = "config") -> tuple[DictConfig, dict[str, str]]:
    """A config without Hydra's own part, its data in a place that is not there; Hydra's choices."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=name == "config")
    if name != "config":
        return config, {}
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
        config.update({"name": choices["experiment"], "data_root": ABSENT})
    return config, choices


once = cache(composed)  # a fifth of a second each; what it returns is not to be changed


def line_of(name: str) -> Line:
    """A row or an arm, without the line that it stands on."""
    line = {**ROWS, **ARMS}[name]
    below = line.get("experiment")
    if below not in ROWS and below not in ARMS:
        return line
    return {**line_of(below), **line, "experiment": line_of(below).get("experiment")}


def parts(line: Line) -> tuple[list[str], dict[str, Any]]:
    """What a line chooses of Hydra's groups, as overrides, and the keys that it sets."""
    choices = [f"experiment={line['experiment']}"] if line.get("experiment") else []
    keys = {}
    for key, value in line.items():
        if (CONF / key.partition("@")[0]).is_dir() and key != "experiment":
            choices.append(f"{key}={value}")
        elif key not in FIGURES and key != "experiment":
            keys[key] = value
    return choices, keys


def is_known(config: Any, key: str) -> bool:
    """Whether a config has a key, or nothing where the key belongs."""
    for part in key.split("."):
        if config is None:
            return True
        if (node := config._get_node(part, validate_access=False)) is None:
            return False
        config = node if isinstance(node, DictConfig) and not node._is_none() else None
    return True


@cache
def config_of(name: str) -> DictConfig:
    """The config of an experiment; of a line by setting its keys in what it stands on, which takes
    a hundredth of the time and refuses keys that are not there."""
    if name in EXPERIMENTS:
        return once(f"experiment={name}")[0]
    line = line_of(name)
    choices, keys = parts(line)
    below = once(*choices)[0]
    config = below.copy()
    config.name = name
    for key, value in keys.items():
        other = {
            f"{key.partition('.')[0]}._target_",
            f"{key.rpartition('.')[0]}.kind",
        } & keys.keys()
        known = other or key.startswith("warm_start.") or is_known(below, key)
        assert known, f"{name}: {key} is no key of {choices}"
        OmegaConf.update(config, key, value, force_add=True)
    if "metric" in line:
        config.paper = {key: line.get(key) for key in PAPER}
    return config


def kind(name: str) -> tuple[str, ...]:
    """What Hydra composes of a line; those of one kind cost nothing more."""
    return tuple(parts(line_of(name))[0])


def some_rows(method: str, step: int) -> list[str]:
    """A method's rows of every so many kinds."""
    names = [name for name in ROWS if name.startswith(f"{method}/")]
    taken = list(dict.fromkeys(map(kind, names)))[::step]
    return [name for name in names if kind(name) in taken]


thirds_or_all = pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])


def plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore


@cache
def resolved(experiment: str) -> dict[str, Any]:
    """The config of a run as plain values, which are not to be changed."""
    return plain(config_of(experiment))


LAST = [[name for name in ROWS if name.startswith(f"{m}/")][-1] for m in METHODS]


@pytest.mark.parametrize(
    "name", every(4, ["comatch/imagenet_1pct_fixmatch", *LAST, "reproduce/pcl/emoji/random"])
)
def test_setting_the_keys_of_a_line_gives_what_hydra_composes(name: str) -> None:
    assert resolved(name) == plain(composed(f"experiment={name}")[0])


@pytest.mark.slow  # half a minute; the rows below are a sample of it
def test_everything_composes_and_is_used() -> None:
    """No file is left over that nothing can reach."""
    assert not EXPERIMENTS & ROWS.keys(), "a file hides a row of the same name"
    below = {
        name.removeprefix("/experiment/")
        for file in EXPERIMENTS
        for name in OmegaConf.load(CONF / f"experiment/{file}.yaml").get("defaults", [])
        if isinstance(name, str)
    }
    below |= {str(line.get("experiment")) for line in (*ROWS.values(), *ARMS.values())}
    chosen = defaultdict(set, {"backbone": {"resnet18"}})  # chosen by the library's own users
    for name in [*(EXPERIMENTS - below), *ROWS, *ARMS]:
        assert "experiment" not in config_of(name), f"{name}.yaml lacks `# @package _global_`"
        if source := config_of(name).source:
            assert trusted_function(source._target_), name
        given = [f"experiment={name}"] if name in EXPERIMENTS else parts(line_of(name))[0]
        for group, option in once(*given)[1].items():
            chosen[group.partition("@")[0]].add(option)
    assert {name for name in EXPERIMENTS if name.endswith("_base")} <= below
    for group in ("method", "data", "trainer", "logger", "backbone"):
        options = {f.removeprefix(f"{group}/") for f in FILES if f.startswith(f"{group}/")}
        for option in options - chosen[group]:
            if group == "backbone":
                once("method=comatch", "data=cifar10", f"backbone@method.backbone={option}")
            else:
                once(f"{group}={option}")
    for file in FILES:
        group, _, option = file.partition("/")
        if group == "chaos":
            plan = load_plan(option)
            assert plan.experiment in EXPERIMENTS
            composed(f"experiment={plan.experiment}", *ALWAYS, *plan.overrides)
        elif group == "sweep":
            validate([f"+sweep={option}", "experiment=comatch/mini"])
        elif group == "hydra":
            composed(f"{file.rpartition('/')[0]}={file.rpartition('/')[2]}")
    composed(name="predict")


# --- arms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", every(3, CLAIMS))
def test_a_claim_reads_and_its_arms_name_classes_that_exist(name: str) -> None:
    claim = load_claim(CONF / "reproduce" / f"{name}.yaml")
    # A bootstrap draws hundreds of test queries beside the seeds. An interval over seeds alone is
    # wide with few of them: 3.2 standard errors on each side with four, 4.3 with three.
    by_query = all(rule.per_query for rule in (claim.primary, *claim.further))
    assert len(claim.seeds) >= (3 if by_query else 4)
    for arm in (*claim.arms, *claim.prepare):
        config = config_of(claim.experiment(arm))
        assert config.arm == arm
        target = config.method._target_
        assert get_class(target), target


@pytest.mark.parametrize("name", every(2, ["iccl", "iccl/fashion"]))
def test_arms_of_a_claim_of_iccl_forward_equally_many_images(name: str) -> None:
    """The same steps, images per step, network, optimiser and stage 2 for every arm."""
    shared = set()
    for arm in arms(name):
        config = config_of(f"reproduce/{name}/{arm}")
        data, method = config.data, config.method
        images = data.batch_size * (1 if data.second is None else 2)
        network = (str(method.backbone), str(method.balancing), str(data.dataset))
        shared.add((images, config.trainer.max_steps, method.lr, method.weight_decay, *network))
    assert len(shared) == 1


# --- rows --------------------------------------------------------------------------------------


@cache
def built(method: str) -> Any:
    """The module of a method's config as JSON; shapes only: a row has up to 400 M parameters."""
    with torch.device("meta"):
        return instantiate(json.loads(method), _recursive_=False, _convert_="all")


def module_of(config: dict[str, Any]) -> Any:
    return built(json.dumps(config["method"]))


def network_of(module: Any) -> torch.nn.Module:
    return module.encoders if hasattr(module, "encoders") else getattr(module, "encoder", module)


@cache
def rates_of(method: str) -> set[float]:
    """The rate as such, and that at the start of a training of some steps."""
    module = built(method)
    module._trainer = SimpleNamespace(estimated_stepping_batches=100)
    configured = module.configure_optimizers()
    optimizer = configured[0][0] if isinstance(configured, tuple) else configured
    return {optimizer.param_groups[0]["lr"], optimizer.defaults["lr"]}


def test_rows_state_their_figures() -> None:
    for name, line in ROWS.items():
        if "metric" not in line:
            assert line.get("about"), name
            continue
        assert line["table"], name
        assert line["source"], name
        assert line["gpu_hours"] > 0, name
        assert line["memory_gb"] > 0, name
        if line.get("value") is None:
            assert "established" in line["source"], name  # no figure of the paper's is known
        else:
            most = 200 if line["metric"] == "test/cider" else 100  # CIDEr is no share
            assert 0 < line["value"] <= most, name


def prepare(data: Any, evaluate_only: bool) -> None:
    """Read what a run does; data that cannot train refuse to be asked for that first."""
    if evaluate_only:
        data.setup("test")
    data.setup("fit")


@thirds_or_all
@pytest.mark.parametrize("method", METHODS)
def test_rows_build_and_say_which_data_they_lack(method: str, step: int) -> None:
    for name in some_rows(method, step):
        config = resolved(name)
        # The adaptations of miniatures to short runs must never leak into a paper row.
        if "mini_" not in str(ROWS[name].get("experiment")):
            assert config["method"].get("backbone", {}).get("bn_momentum", 0.001) == 0.001, name
        assert not config["method"].get("ema_warm_up", False), name
        module = module_of(config)
        if "bm25" not in name:
            assert sum(p.numel() for p in network_of(module).parameters()) > 4e5, name
        reader = config["data"].get("dataset", {}).get("_target_", "").rpartition(".")[2]
        if "num_classes" in module.hparams and reader in CLASSES:
            assert module.hparams["num_classes"] == CLASSES[reader], name
        if not config["evaluate_only"]:
            start = config["method"].get("head_lr") or config["method"]["lr"]
            assert start in rates_of(json.dumps(config["method"])), name
        data = instantiate(config["data"], _recursive_=False, _convert_="all")
        with pytest.raises(DataNotFoundError) as caught:
            prepare(data, config["evaluate_only"])
        assert ABSENT in str(caught.value), f"{name} names where it looked"
        assert "data_root=DIR" in str(caught.value) or "TENFOLD_DATA" in str(caught.value), name


PAPERS = {  # with braces as the shell has them
    "comatch": "cifar10_{40,250,4000}{,_fixmatch} cifar10_{20,40,80}_simclr "
    "cifar100_{400,2500,10000}{,_fixmatch} stl10_1000{,_fixmatch,_simclr} "
    "imagenet_1pct{,_fixmatch,_moco} imagenet_10pct{,_moco} "
    "usb_cifar10_{40,250,4000}{,_fixmatch} usb_cifar100_{400,2500,10000}{,_fixmatch} "
    "usb_svhn_{40,250,1000}{,_fixmatch}",
    "iccl": "cifar{10,100}_lt_ir{10,50,100} "
    "cifar{10,100}_lt_ir100_{ce,ce_same_compute,class_aware,mix,mixup,crt,lws} "
    "imagenet_lt{,_180,_mix,_crt,_lws,_ce} "
    "cifar{10,100}_lt_ir{10,100}_ldam imagenet_lt_ce_progressive "
    "imagenet_lt_ce_{ncm,crt,tau_norm,lws,class_balanced,square_root,same_compute} "
    "inaturalist2018{,_200,_ce,_crt,_ce_crt}",
    "albef": "retrieval_{coco,flickr30k,flickr30k_4m} vqa nlvr2 snli_ve refcoco_plus "
    "zero_shot_{coco,flickr30k,flickr30k_pretrained}",
    "blip": "retrieval_coco{,_web,_129m_web} {retrieval_coco,retrieval_flickr30k,captioning_coco,"
    "zero_shot_flickr30k,nocaps}{,_129m,_capfilt_large,_large} {vqa,nlvr2}{,_129m,_capfilt_large} "
    "msrvtt msrvtt_qa msvd_qa",
    "alpro": "{msrvtt,didemo}_retrieval{,_mlm_vtm,_pem,_vtc,_none} "
    "msrvtt_retrieval_{500,2000}_entities msrvtt_retrieval_{2,4,16}_frames "
    "{msrvtt,msvd}_qa{,_mlm_vtm,_pem,_vtc,_none} msvd_qa_{500,2000}_entities "
    "msvd_qa_{2,4,8}_frames msrvtt_zero_shot{,_vtc,_500_entities,_2000_entities} "
    "didemo_zero_shot",
    "simcal": "lvis_r50_ag{,_simcal,_calibrated,_3fc_ft,_3fc_rand,_2fc_rand} "
    "lvis_r50_ag_{reweighted,effective_number,focal,repeat_factor} lvis_r50{,_simcal,_calibrated} "
    "coco_lt_r50_ag{,_simcal,_calibrated}",
    "pb_ovd": "{coco,voc,objects365,lvis}{,_pseudo}",
}


def expanded(pattern: str) -> set[str]:
    start, brace, rest = pattern.partition("{")
    options, _, end = rest.partition("}")
    return {start + o + e for o in options.split(",") for e in expanded(end)} if brace else {start}


@pytest.mark.parametrize("method", PAPERS)
def test_the_rows_of_the_papers_tables_are_there(method: str) -> None:
    names = set[str]().union(*map(expanded, PAPERS[method].split()))
    assert {name for name, line in rows(method).items() if "metric" in line} == names


@pytest.mark.parametrize(
    ("experiment", "values"),
    [
        ("comatch/cifar10_40",
         {"threshold": 0.95, "graph_threshold": 0.8, "lambda_c": 1.0, "lr": 0.03}),
        ("comatch/stl10_1000", {"lambda_c": 5.0, "temperature": 0.2, "weight_decay": 5e-4}),
        ("comatch/cifar100_400", {"weight_decay": 5e-4, "alpha": 0.9, "alignment_window": 32}),
        ("comatch/usb_cifar100_400", {"weight_decay": 1e-3}),
        ("comatch/imagenet_1pct", {"threshold": 0.6, "graph_threshold": 0.3, "lambda_c": 10.0}),
        ("comatch/imagenet_10pct", {"threshold": 0.5, "graph_threshold": 0.2, "lambda_c": 2.0}),
        ("comatch/imagenet_10pct_moco", {"threshold": 0.5, "graph_threshold": 0.2}),
        ("comatch/imagenet_1pct_moco",
         {"lambda_u": 10.0, "temperature": 0.1, "queue_size": 30000}),
        ("iccl/cifar100_lt_ir100",
         {"lr": 0.1, "weight_decay": 2e-4, "momentum": 0.9, "temperature": 0.1,
          "centroid_momentum": 0.99, "w_agnostic": 1.0, "w_interp": 1.0, "w_centroid": 1.0,
          "data.batch_size": 128, "data.class_aware_gamma": 1.0, "data.first": "agnostic",
          "data.second": "aware", "trainer.max_epochs": 200}),
        ("iccl/imagenet_lt",
         {"lr": 0.2, "weight_decay": 5e-4, "num_classes": 1000, "data.batch_size": 512,
          "trainer.max_epochs": 90}),
        ("iccl/inaturalist2018_200",
         {"lr": 0.2, "weight_decay": 1e-4, "num_classes": 8142, "data.batch_size": 512,
          "trainer.max_epochs": 200}),
        ("iccl/imagenet_lt_crt",
         {"lr": 0.2, "weight_decay": 5e-4, "learnt": "crt", "data.first": "cycles",
          "data.second": None, "data.per_class": 4, "trainer.max_epochs": 10}),
        ("iccl/imagenet_lt_lws",
         {"learnt": "lws", "data.first": "cycles", "trainer.max_epochs": 5}),
        ("iccl/inaturalist2018_crt",
         {"weight_decay": 1e-4, "freeze_bn": True, "trainer.max_epochs": 30}),
    ],
)  # fmt: skip
def test_values_of_the_specification(experiment: str, values: dict[str, Any]) -> None:
    """Those of docs/papers, section 5; keys without a dot are of the method."""
    config = OmegaConf.create(resolved(experiment))
    for key, value in values.items():
        assert OmegaConf.select(config, key if "." in key else f"method.{key}") == value, key


@pytest.mark.parametrize(
    ("experiment", "expected", "features"),
    [
        ("comatch/cifar10_40", 1_492_378, None),
        ("comatch/cifar10_40_fixmatch", 1_467_610, None),
        ("comatch/cifar100_400", 23_696_500, None),
        ("comatch/cifar100_400_fixmatch", 23_401_012, None),
        ("comatch/imagenet_1pct", 30_015_656, None),
        ("iccl/cifar100_lt_ir100", 463_504, 64),  # of the backbone alone
        ("iccl/imagenet_lt", 22_979_904, 2048),
        ("iccl/inaturalist2018", 23_508_032, 2048),
    ],
)
def test_networks_of_the_papers(experiment: str, expected: int, features: int | None) -> None:
    encoder = module_of(resolved(experiment)).encoder
    counted = encoder if features is None else encoder.backbone
    assert sum(p.numel() for p in counted.parameters()) == expected
    if features is not None:
        assert encoder.num_features == features
        shapes = [tuple(fc.weight.shape) for fc in (encoder.projection.fc1, encoder.projection.fc2)]
        assert shapes == [(features, features), (128, features)]


ALBEF = {  # docs/papers/albef.md, section 5: image, batch, epochs, rates, warm-up, ramp, k
    "pretrain_4m": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "pretrain_14m": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "pretrain_webdataset": (256, 512, 30, 1e-4, 1e-5, 1e-5, 20, True, None),
    "text_assignment": (256, 512, 1, 2e-5, 1e-5, 1e-5, 1, None, None),
    "retrieval_coco": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, 256),
    "retrieval_coco_4m": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, 256),
    "retrieval_flickr30k": (384, 256, 10, 1e-5, 1e-6, 1e-5, 1, True, 128),
    "retrieval_flickr30k_4m": (384, 256, 10, 1e-5, 1e-6, 1e-5, 1, True, 128),
    "vqa": (384, 256, 8, 2e-5, 1e-6, 1e-5, 4, True, 128),
    "nlvr2": (384, 128, 10, 2e-5, 1e-6, 1e-5, 1, True, None),
    "snli_ve": (384, 256, 5, 2e-5, 1e-6, 1e-5, 1, False, None),
    "refcoco_plus": (384, 256, 5, 1e-5, 1e-6, 1e-5, 1, True, None),
}


@pytest.mark.parametrize("experiment", ALBEF)
def test_values_of_albefs_specification(experiment: str) -> None:
    config = resolved(f"albef/{experiment}")
    method, data = config["method"], config["data"]
    size, batch, epochs, lr, min_lr, warmup_lr, blocks, ramp, k_test = ALBEF[experiment]
    assert method["vision"]["image_size"] == data["augmentation"]["size"] == size
    assert data["batch_size"] == batch
    assert method["epochs"] == config["trainer"]["max_epochs"] == epochs
    rates = [method[key] for key in ("lr", "min_lr", "warmup_lr")]
    assert rates == [lr, min_lr, warmup_lr]
    assert (method["warmup_blocks"], method["warmup_block"]) == (blocks, 100)
    assert method["weight_decay"] == 0.02
    if ramp is not None:
        assert (method["alpha"], method["encoder_momentum"]) == (0.4, 0.995)
        assert method["ramp"] == ramp
    if k_test is not None:
        assert method.get("evaluation", method)["k_test"] == k_test
    if "queue_size" in method:
        queue = [method[key] for key in ("queue_size", "embed_dim", "temperature")]
        assert queue == [65536, 256, 0.07]
        assert method["queue_size"] % batch == 0


BLIP = {  # docs/papers/blip.md, section 5: image, batch, epochs, rates, ramp, k, drop-path
    "pretrain_14m": (224, 2880, 20, 3e-4, 1e-6, 2, None, 0.0),
    "pretrain_14m_capfilt": (224, 2880, 20, 3e-4, 1e-6, 2, None, 0.0),
    "retrieval_coco": (384, 256, 6, 1e-5, 0.0, 1, 256, 0.0),
    "retrieval_flickr30k": (384, 256, 6, 1e-5, 0.0, 1, 128, 0.0),
    "captioning_coco": (384, 256, 5, 1e-5, 0.0, None, None, 0.0),
    "vqa": (480, 256, 10, 2e-5, 0.0, None, 128, 0.1),
    "nlvr2": (384, 256, 15, 3e-5, 0.0, None, None, 0.1),
    "pretrain_129m_capfilt": (224, 2880, 20, 3e-4, 1e-6, 2, None, 0.0),
    "pretrain_large": (224, 2400, 20, 2e-4, 1e-6, 2, None, 0.1),
    "retrieval_coco_large": (384, 256, 6, 5e-6, 0.0, 1, 256, 0.1),
    "captioning_coco_large": (384, 256, 5, 2e-6, 0.0, None, None, 0.1),
}


@pytest.mark.parametrize("experiment", BLIP)
def test_values_of_blips_specification(experiment: str) -> None:
    config = resolved(f"blip/{experiment}")
    method, data = config["method"], config["data"]
    size, batch, epochs, lr, min_lr, ramp, k_test, drop_path = BLIP[experiment]
    assert method["vision"]["image_size"] == data["augmentation"]["size"] == size
    assert method["vision"]["drop_path"] == drop_path
    assert data["batch_size"] == batch
    assert data.get("text_rules", "blip") == "blip"  # captioning has no other
    assert method["epochs"] == config["trainer"]["max_epochs"] == epochs
    assert (method["lr"], method["min_lr"], method["weight_decay"]) == (lr, min_lr, 0.05)
    assert (method["text"]["vocab_size"], method["text"]["type_vocab_size"]) == (30524, 0)
    assert method.get("bos_id", 30522) == 30522
    assert method.get("enc_id", 30523) == 30523
    assert method.get("label_smoothing", 0.1) == 0.1
    (augment,) = [r for r in data["augmentation"]["recipes"]["train"] if r["op"] == "rand_augment"]
    assert augment == {"op": "rand_augment", "magnitude": 5}
    if ramp is not None:
        assert (method["alpha"], method["encoder_momentum"]) == (0.4, 0.995)
        assert method["ramp"] == ramp
        queue = [method[key] for key in ("queue_size", "embed_dim", "temperature")]
        assert queue == [57600, 256, 0.07]
        assert method["evaluation"]["score"] == "itm+itc"
    if k_test is not None:
        assert {**method, **method.get("evaluation", {})}["k_test"] == k_test
    if experiment.startswith("pretrain"):
        rates = [method[key] for key in ("warmup_lr", "warmup_steps", "lr_decay", "floor")]
        assert rates == [1e-6, 3000, 0.9, 1e-4]
    if experiment == "vqa":
        assert data["single_answer_weight"] == 0.2


@pytest.mark.parametrize("data", ["lvis", "coco_lt"])
def test_values_of_simcals_specification(data: str) -> None:
    """docs/papers/simcal.md, sections 3 to 5."""
    lvis = data == "lvis"
    joint, calibration = (resolved(f"simcal/{data}_r50_ag{end}") for end in ("", "_simcal"))
    for config in (joint, calibration):
        method = config["method"]
        detector = method["detector"]
        assert detector["num_classes"] == (1230 if lvis else 80)
        assert detector["legacy"] is config["data"]["preparation"]["inclusive_corners"] is True
        selection = {"threshold": 0.0 if lvis else 0.05, "nms": 0.5, "limit": 300 if lvis else 100}
        assert method["selection"] == selection
        assert method["evaluation"]["edges"] == ([10, 100, 1000] if lvis else [20, 400, 8000])
        assert config["data"]["batch_size"] == 16
        assert config["trainer"]["max_epochs"] == 12
    method = joint["method"]
    assert (method["lr"], method["momentum"], method["weight_decay"]) == (0.01, 0.9, 1e-4)
    assert joint["trainer"]["gradient_clip_val"] == 35
    epoch = 3547 if lvis else 6214  # steps of 16 images
    assert method["schedule"]["milestones"] == [8 * epoch, 11 * epoch]
    method = calibration["method"]
    assert method["threshold"] == (100 if lvis else 400)
    assert (method["head"], method["lr"], method["momentum"]) == ("3fc_ft", 0.01, 0.0)
    assert (method["drops"], method["regions"]["negative_iou_low"]) == ([7, 10], 0.1)
    sampling = calibration["data"]["sampling"]
    assert sampling["_target_"].endswith(".bilevel")
    assert (sampling["images_per_class"], sampling["steps_per_epoch"]) == (1, 1000)


def test_the_text_transformers_of_blip_have_the_papers_size() -> None:
    """252 million parameters with all but self-attention shared (table 3), momentum copies and the
    rest apart."""
    with torch.device("meta"):
        module = module_of(resolved("blip/pretrain_14m"))
    parts = (module.encoders, module.decoder)
    count = sum({p: p.numel() for part in parts for p in part.parameters()}.values())
    assert round(count / 1e6) == 252


@thirds_or_all
def test_what_a_row_starts_from_is_a_run_of_ours(step: int) -> None:
    """Of a row that is there; of ALBEF that of its kind."""
    kinds = {"pretrained": "pretrain_", "assignment": "text_assignment", "retrieval": "retrieval_"}
    for name in (name for method in METHODS for name in some_rows(method, step)):
        start = resolved(name)["warm_start"]
        if start is None or not str(start.get("path")).startswith("outputs/"):
            continue
        _, method, other, seed, *rest = Path(start["path"]).parts
        assert f"{method}/{other}" in ROWS, name
        kept = (
            "best" if line_of(f"{method}/{other}").get("best") else "last"
        )  # what it is tested by
        assert (seed, *rest) == ("seed0", "checkpoints", f"{kept}.ckpt"), name
        if method == "albef":
            assert other.startswith(kinds[start["kind"]]), name


# --- reading a table ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- rows: [", "is no yaml"),
        ("rows: {}", "no list of blocks"),
        ("- {a: 1}", "no list of blocks"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, words):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "toy.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"toy\.yaml.*{words}"):
        rows("toy", tmp_path)


def test_what_stands_in_a_block_holds_for_its_rows_and_an_arm_may_stand_on_another(tmp_path):
    assert rows("toy", tmp_path) == arms("toy", tmp_path) == {}
    for folder in ("rows", "reproduce"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rows" / "toy.yaml").write_text("[{metric: m, lr: 1, rows: {a: {lr: 2}, b: }}]")
    assert rows("toy", tmp_path) == {"a": {"metric": "m", "lr": 2}, "b": {"metric": "m", "lr": 1}}
    (tmp_path / "reproduce" / "toy.yaml").write_text(
        "{prepare: {p: q/x}, arms: {a: {experiment: b, lr: 2}, b: t/x}, overrides: {seed: 5}}"
    )
    assert arms("toy", tmp_path) == {
        "p": {"experiment": "q/x", "arm": "p"},
        "a": {"experiment": "t/x", "lr": 2, "seed": 5, "arm": "a"},
        "b": {"experiment": "t/x", "seed": 5, "arm": "b"},
    }


def test_figures_of_other_rows_name_rows() -> None:
    for method in METHODS:
        lines = table(method)
        for name, line in lines.items():
            if "of" in line:
                assert line["of"], name
                assert set(line["of"]) <= set(rows(method)), name
                assert {"table", "metric", "value", "source"} <= set(line), name


def test_the_table_of_official_files_names_rows() -> None:
    text = (CONF.parent / "docs" / "weights.md").read_text()
    named = set(re.findall(rf"`((?:{'|'.join(METHODS)})/\w+)`", text))
    assert len(named) > 40
    assert named <= set(ROWS) | set(EXPERIMENTS)
