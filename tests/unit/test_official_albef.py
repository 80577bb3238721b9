"""Official ALBEF files, with random weights, in and out of our modules; and starts from them.

The keys are written down here from docs/papers/albef.md, section 9, not taken from our tables.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods.albef import official
from methods.albef.classification import Classification
from methods.albef.module import Pretraining
from methods.albef.retrieval import Retrieval
from methods.albef.text_assignment import TextAssignment
from methods.albef.vqa import VQA
from methods.comatch.module import Supervised
from shared.checkpoints.official import KeyReport
from shared.checkpoints.reading import CheckpointError
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.training.method import Method

GOLDEN = Path(__file__).parents[1] / "golden" / "albef"


@dataclass(frozen=True)
class Sizes:
    """Of a model; `layers` and `fusion` count those of pre-training's text encoder."""

    grid: int = 2
    patch: int = 8
    width: int = 12
    depth: int = 2
    hidden: int = 8
    inner: int = 16
    vocab: int = 20
    positions: int = 10
    layers: int = 4
    fusion: int = 2
    decoder: int = 2
    embed: int = 6
    queue: int = 8

    @property
    def paired(self) -> int:
        """Layers of the text encoder that looks at two images."""
        return 2 * self.layers - self.fusion


TINY = Sizes()
FULL = Sizes(16, 16, 768, 12, 768, 3072, 30522, 512, 12, 6, 6, 256, 65536)
Shapes = dict[str, tuple[int, ...]]


# --- the official files ---


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit(name: str, s: Sizes) -> Shapes:
    w = s.width
    shapes: Shapes = {
        f"{name}.cls_token": (1, 1, w),
        f"{name}.pos_embed": (1, 1 + s.grid**2, w),
        f"{name}.patch_embed.proj.weight": (w, 3, s.patch, s.patch),
        f"{name}.patch_embed.proj.bias": (w,),
    } | norm(f"{name}.norm", w)
    for n in range(s.depth):
        block = f"{name}.blocks.{n}"
        shapes |= norm(f"{block}.norm1", w) | norm(f"{block}.norm2", w)
        shapes |= linear(f"{block}.attn.qkv", w, 3 * w) | linear(f"{block}.attn.proj", w, w)
        shapes |= linear(f"{block}.mlp.fc1", w, 4 * w) | linear(f"{block}.mlp.fc2", 4 * w, w)
    return shapes


def bert(name: str, s: Sizes, layers: int, fusion: int, context: int) -> Shapes:
    h, embeddings = s.hidden, f"{name}.embeddings"
    shapes: Shapes = {
        f"{embeddings}.position_ids": (1, s.positions),
        f"{embeddings}.word_embeddings.weight": (s.vocab, h),
        f"{embeddings}.position_embeddings.weight": (s.positions, h),
        f"{embeddings}.token_type_embeddings.weight": (2, h),
    } | norm(f"{embeddings}.LayerNorm", h)
    for n in range(layers):
        layer = f"{name}.encoder.layer.{n}"
        for attention in ("attention", "crossattention")[: 1 + (n >= fusion)]:
            source = h if attention == "attention" else context
            shapes |= linear(f"{layer}.{attention}.self.query", h, h)
            shapes |= linear(f"{layer}.{attention}.self.key", source, h)
            shapes |= linear(f"{layer}.{attention}.self.value", source, h)
            shapes |= linear(f"{layer}.{attention}.output.dense", h, h)
            shapes |= norm(f"{layer}.{attention}.output.LayerNorm", h)
        shapes |= linear(f"{layer}.intermediate.dense", h, s.inner)
        shapes |= linear(f"{layer}.output.dense", s.inner, h)
        shapes |= norm(f"{layer}.output.LayerNorm", h)
    return shapes


def words(name: str, s: Sizes) -> Shapes:
    head = f"{name}.cls.predictions"
    return {
        f"{head}.bias": (s.vocab,),
        **linear(f"{head}.transform.dense", s.hidden, s.hidden),
        **norm(f"{head}.transform.LayerNorm", s.hidden),
        **linear(f"{head}.decoder", s.hidden, s.vocab),
    }


def heads(s: Sizes, *names: str) -> Shapes:
    """What is not encoders."""
    shapes: Shapes = {}
    for name in names:
        part = name.removesuffix("_m")
        match part:
            case "vision_proj":
                shapes |= linear(name, s.width, s.embed)
            case "text_proj":
                shapes |= linear(name, s.hidden, s.embed)
            case "itm_head":
                shapes |= linear(name, s.hidden, 2)
            case "ta_head":
                shapes |= linear(name, s.hidden, 3)
            case "cls_head_2" | "cls_head_3":
                name = name.replace(part, "cls_head")
                shapes |= linear(f"{name}.0", s.hidden, s.hidden)
                shapes |= linear(f"{name}.2", s.hidden, int(part[-1]))
            case "temp":
                shapes[name] = ()
            case "queues":
                shapes |= dict.fromkeys(("image_queue", "text_queue"), (s.embed, s.queue))
                shapes["queue_ptr"] = (1,)
            case "idx_queue":
                shapes[name] = (1, s.queue)
    return shapes


def tree(kind: str, s: Sizes) -> Shapes:
    """The keys of an official file of a kind, with their shapes."""
    if kind == "assignment":  # without momentum model
        return (
            vit("visual_encoder", s)
            | bert("text_encoder", s, s.paired, s.fusion, s.width)
            | heads(s, "temp", "vision_proj", "text_proj", "ta_head")
        )
    shapes: Shapes = {}
    for m in ("", "_m"):
        shapes |= vit(f"visual_encoder{m}", s)
        text = f"text_encoder{m}"
        match kind:
            case "pretraining":
                shapes |= bert(f"{text}.bert", s, s.layers, s.fusion, s.width) | words(text, s)
                shapes |= heads(s, f"vision_proj{m}", f"text_proj{m}")
            case "retrieval":
                shapes |= bert(text, s, s.layers, s.fusion, s.width)
                shapes |= heads(s, f"vision_proj{m}", f"text_proj{m}")
            case "vqa":
                shapes |= bert(text, s, s.layers, s.fusion, s.width)
                shapes |= bert(f"text_decoder{m}.bert", s, s.decoder, 0, s.hidden)
                shapes |= words(f"text_decoder{m}", s)
            case "nlvr":
                shapes |= bert(text, s, s.paired, s.fusion, s.width) | heads(s, f"cls_head_2{m}")
            case "entailment":
                shapes |= bert(text, s, s.layers, s.fusion, s.width) | heads(s, f"cls_head_3{m}")
    if kind in ("pretraining", "retrieval"):
        shapes |= heads(s, "temp", "itm_head", "queues")
    return shapes | (heads(s, "idx_queue") if kind == "retrieval" else {})


KINDS = ("pretraining", "retrieval", "vqa", "nlvr", "entailment", "assignment")
UNUSED = {"temp", "text_proj.weight", "text_proj.bias"}  # by the official text assignment itself


def with_ties(state: dict[str, Tensor], s: Sizes) -> dict[str, Tensor]:
    """What PyTorch saves several times: tied weights, and keys and values that twins share."""
    for key in state:
        text, of_decoder, part = key.partition("cls.predictions.decoder.")
        if of_decoder:
            other = "bert.embeddings.word_embeddings.weight"
            state[key] = state[text + (other if part == "weight" else "cls.predictions.bias")]
        layer = re.search(r"layer\.(\d+)\.crossattention\.self\.(key|value)", key)
        second = layer and (int(layer[1]) - s.fusion) % 2
        if layer and second and f"layer.{s.paired - 1}." in "".join(state):
            state[key] = state[key.replace(f".{layer[1]}.", f".{int(layer[1]) - 1}.")]
    return state


def random_state(kind: str, s: Sizes = TINY, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in tree(kind, s).items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(s.positions)[None]
        elif key == "queue_ptr":
            state[key] = torch.tensor([4])
        elif key == "idx_queue":
            state[key] = torch.randint(-100, 3000, shape, generator=generator)
        elif s is FULL and "pos_embed" not in key and shape:
            # Takes no memory, but loaded the wrong way round it would not be equal.
            state[key] = torch.randn(shape[-1:], generator=generator).expand(shape)
        else:
            state[key] = torch.randn(shape, generator=generator)
    return with_ties(state, s)


def without_momentum(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As fine-tuned files are released: neither momentum copies nor queues."""
    kept = {key: value for key, value in state.items() if not key.split(".")[0].endswith("_m")}
    return {key: value for key, value in kept.items() if "queue" not in key}


# --- our modules ---


def build(kind: str, s: Sizes = TINY, **changes: Any) -> Method:
    torch.manual_seed(1)
    vision = {"image_size": s.grid * s.patch, "patch_size": s.patch, "width": s.width}
    vision |= {"depth": s.depth, "heads": 4}
    text = {"vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.inner}
    text |= {"num_layers": s.paired if kind in ("nlvr", "assignment") else s.layers}
    text |= {"num_heads": 4, "max_positions": s.positions, "cross_attention_from": s.fusion}
    values: dict[str, Any] = {"vision": vision, "text": text, "lr": 1e-2, "min_lr": 1e-3}
    values |= {"warmup_lr": 1e-3, "warmup_blocks": 1, "epochs": 2, "weight_decay": 0.02}
    if kind == "assignment":
        return TextAssignment(**values | {"embed_dim": s.embed, "seed": 0} | changes)
    values |= {"encoder_momentum": 0.995, "alpha": 0.4, "ramp": True}
    if kind in ("nlvr", "entailment"):
        images, names = (2, ["no", "yes"]) if kind == "nlvr" else (1, ["no", "maybe", "yes"])
        values |= {"images_per_text": images, "class_names": names}
        return Classification(**values | changes)
    if kind == "vqa":
        return VQA(**values | {"decoder_layers": s.decoder, "k_test": 2} | changes)
    values |= {"embed_dim": s.embed, "queue_size": s.queue, "temperature": 0.07, "seed": 0}
    values |= {"hard_negatives": True, "negatives": "local", "evaluation": {"k_test": 2}}
    if kind == "pretraining":
        tokens = {"mlm_probability": 0.15, "cls_id": 2, "mask_id": 4}
        return Pretraining(**values | tokens | changes)
    return Retrieval(**values | changes)


def built_in_full(kind: str, s: Sizes = FULL) -> Method:
    """Of real tensors; drawing their initial values would take most of the time."""
    with torch.device("meta"):
        module = build(kind, s)
    module.to_empty(device="cpu")
    if isinstance(module, Retrieval | Pretraining):
        module.contrast.queue.written.zero_()
    return module


def exported(module: Method) -> dict[str, Tensor]:
    """What the official code would have saved."""
    state = official.export(module)
    state.pop("tenfold", None)
    return state


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def assert_accounted(report: KeyReport, kind: str, state: dict[str, Tensor]) -> None:
    assert report.complete
    constants = {key for key in state if key.endswith("position_ids") or ".decoder." in key}
    constants |= UNUSED if kind == "assignment" else set()
    assert set(report.dropped) == constants
    assert {key for key, _ in report.mapped} == state.keys() - constants
    assert set(report.fresh) <= {"contrast.queue.written", "contrast.queue.idx"}
    assert not report.interpolated


def assert_copies(module: Method) -> None:
    copies: Any = module.momentum_encoders
    names = dict(module.encoders.named_parameters())  # type: ignore[union-attr]
    assert names.keys() == dict(copies.module.named_parameters()).keys()
    for name, copy in copies.module.named_parameters():
        assert torch.equal(copy, names[name]), name


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("pretraining", "pretrain_losses"),
        ("retrieval", "retrieval_losses"),
        ("vqa", "vqa"),
        ("nlvr", "nlvr"),
        ("entailment", "ve"),
        ("assignment", "nlvr_text_assignment"),
    ],
)
def test_the_keys_written_here_are_those_of_the_official_code(kind: str, case: str) -> None:
    """Which made the golden files."""
    weights = load_file(GOLDEN / case / "weights.safetensors").items()
    theirs = {key: tuple(value.shape) for key, value in weights}
    c = json.loads((GOLDEN / case / "case.json").read_text())["config"]
    t = c["text"]
    sizes = Sizes(
        grid=c["image_size"] // c["patch_size"], patch=c["patch_size"], width=c["vision_width"],
        depth=c["vision_depth"], hidden=t["hidden_size"], inner=t["intermediate_size"],
        vocab=t["vocab_size"], positions=t["max_position_embeddings"],
        layers=t["num_hidden_layers"], fusion=t["fusion_layer"],
        decoder=c.get("decoder_num_hidden_layers", 0), embed=c.get("embed_dim", 0),
        queue=c.get("queue_size", 0),
    )  # fmt: skip
    assert tree(kind, sizes) == theirs


# --- in and out ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_in_and_out(kind: str, tmp_path: Path) -> None:
    """From the file of a training script: the weights are under `model`."""
    state, module = random_state(kind), build(kind)
    content = {"model": state, "optimizer": {"state": {}}, "config": {"k": 1}, "epoch": 4}
    torch.save(content, tmp_path / "checkpoint_04.pth")
    report = official.load(module, tmp_path / "checkpoint_04.pth")
    assert_accounted(report, kind, state)
    for key in UNUSED if kind == "assignment" else ():
        del state[key]
    assert_equal(exported(module), state)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_every_key_in_and_out_at_full_size(kind: str) -> None:
    state, module = random_state(kind, FULL), built_in_full(kind)
    assert_accounted(official.load_weights(module, state), kind, state)
    for key in UNUSED if kind == "assignment" else ():
        del state[key]
    assert_equal(exported(module), state)


def test_names_of_ours() -> None:
    """Some of each kind, so that a table that is wrong both ways does not pass."""
    state, module = random_state("pretraining"), build("pretraining")
    official.load_weights(module, state)
    ours = module.state_dict()
    bert_layer, layer = "text_encoder.bert.encoder.layer.3", "encoders.text_encoder.layers.3"
    for theirs, mine in {
        "text_encoder.bert.embeddings.position_embeddings.weight": (
            "encoders.text_encoder.embeddings.position.weight"
        ),
        f"{bert_layer}.attention.self.query.weight": f"{layer}.self_attention.query.weight",
        f"{bert_layer}.attention.output.dense.weight": f"{layer}.self_attention.output.weight",
        f"{bert_layer}.attention.output.LayerNorm.bias": f"{layer}.self_attention.norm.bias",
        f"{bert_layer}.crossattention.self.value.bias": f"{layer}.cross_attention.value.bias",
        f"{bert_layer}.output.dense.weight": f"{layer}.output.weight",
        f"{bert_layer}.output.LayerNorm.weight": f"{layer}.norm.weight",
        "text_encoder.cls.predictions.transform.dense.weight": "encoders.word_head.dense.weight",
        "text_encoder_m.cls.predictions.bias": "momentum_encoders.module.word_head.bias",
        "visual_encoder_m.blocks.1.attn.qkv.weight": (
            "momentum_encoders.module.visual_encoder.blocks.1.attn.qkv.weight"
        ),
    }.items():
        assert torch.equal(state[theirs], ours[mine]), theirs
    assert torch.equal(state["image_queue"].T, ours["contrast.queue.features"])
    assert int(ours["contrast.queue.pointer"]) == 4


# --- files that lack something, and files that do not fit ---


@pytest.mark.parametrize("kind", ["retrieval", "vqa", "nlvr"])
def test_released_files_lack_momentum_copies_and_queues(kind: str) -> None:
    state, module = without_momentum(random_state(kind)), build(kind)
    state = {key: value for key, value in state.items() if "position_ids" not in key}
    queue: Any = getattr(getattr(module, "contrast", None), "queue", None)
    before = None if queue is None else {k: v.clone() for k, v in queue.state_dict().items()}
    report = official.load_weights(module, {"model": state})
    assert report.complete
    assert "left as initialised: copied from the encoders" in str(report)
    assert_copies(module)
    found = exported(module)
    assert_equal({key: found[key] for key in state}, state)
    if queue is not None:
        assert "left as initialised: starts with random directions" in str(report)
        assert all(torch.equal(value, before[key]) for key, value in queue.state_dict().items())


def test_a_queue_of_another_length_is_left_out() -> None:
    state, module = random_state("retrieval"), build("retrieval", queue_size=12)
    before: Any = module.contrast.queue  # type: ignore[union-attr]
    features = before.features.clone()
    report = official.load_weights(module, state)
    assert report.dropped["image_queue"] == "a queue of 8 pairs, but queue_size=12"
    assert {"text_queue", "idx_queue", "queue_ptr"} < set(report.dropped)
    assert torch.equal(before.features, features)
    assert int(before.pointer) == int(before.written) == 0
    assert (before["idx"] == -100).all()


def fault(module: Method, state: dict[str, Any]) -> str:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        official.load_weights(module, state)
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "was changed"
    return str(caught.value)


def comatch() -> Supervised:
    network = {
        "_target_": "shared.nn.resnet.ResNet", "block": "basic", "layers": [1], "base_width": 12,
        "stem": "small", "stem_channels": 6, "strides": [2],
    }  # fmt: skip
    frame = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.0, "no_decay": ["bn"],
             "total_steps": 9, "ema_decay": 0.9, "ema_warm_up": False}  # fmt: skip
    return Supervised(
        backbone=network, num_classes=3, projection=None, channels_last=False, **frame
    )


def changed(kind: str, **changes: Any) -> dict[str, Any]:
    """A random file with keys replaced, added or, by None, left out; `__` is a dot."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    state = random_state(kind) | given
    return {key: value for key, value in state.items() if value is not None}


Z = torch.zeros


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        ("entailment", lambda: comatch().state_dict(), r"unexpected:(.|\n)*encoder\.backbone"),
        ("pretraining", lambda: random_state("retrieval"), r"text_encoder\.embeddings"),
        ("nlvr", lambda: random_state("entailment"), r"missing:(.|\n)*layers\.5\."),
        ("vqa", lambda: {}, "missing"),
        ("vqa", lambda: {"model": Z(2)}, "unexpected"),
        ("vqa", lambda: changed("vqa", image_queue=Z(6, 8)), "1 unexpected:\n  image_queue"),
        (
            "retrieval",
            lambda: changed("retrieval", text_queue=None),
            r"1 missing:\n  contrast\.queue\.text",
        ),
        (
            "retrieval",
            lambda: changed("retrieval", image_queue=Z(8)),
            r"1 resized:\n  image_queue \(8,\) there, contrast\.queue\.features \(8, 6\) here",
        ),
        (
            "nlvr",
            lambda: changed("nlvr", visual_encoder_m__norm__bias=None),
            r"1 missing:\n  momentum_encoders\.module\.visual_encoder\.norm\.bias",
        ),
        (
            "entailment",
            lambda: (
                without_momentum(random_state("entailment")) | {"cls_head_m.0.bias": Z(TINY.hidden)}
            ),
            r"missing:(.|\n)*momentum_encoders\.module\.visual_encoder\.cls_token",
        ),
        (
            "retrieval",
            lambda: changed("retrieval", visual_encoder__blocks__2__norm1__bias=Z(12)),
            r"1 unexpected:\n  visual_encoder\.blocks\.2\.norm1\.bias \(as encoders",
        ),
        (
            "assignment",
            lambda: changed("assignment", ta_head__weight=Z(2, 8)),
            r"1 resized:\n  ta_head\.weight \(2, 8\) there, encoders\.classifier\.weight \(3, 8\)",
        ),
        (
            "vqa",
            lambda: random_state("vqa", replace(TINY, vocab=30)),
            r"text_encoder\.embeddings\.word_embeddings\.weight \(30, 8\) there, "
            r"encoders\.text_encoder\.embeddings\.word\.weight \(20, 8\) here",
        ),
        (
            "entailment",
            lambda: changed("entailment", visual_encoder__pos_embed=Z(1, 6, 12)),
            "visual_encoder.pos_embed cannot become .*: 5 position embeddings form no square grid",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    kind: str, state: Callable[[], dict[str, Any]], message: str
) -> None:
    found = fault(build(kind), state())
    assert re.search(message, found), found


# --- another image size ---


def test_a_file_of_another_size_is_interpolated_when_loaded_too() -> None:
    state, module = random_state("retrieval"), build("retrieval", replace(TINY, grid=3))
    report = official.load_weights(module, state)
    assert report.interpolated == [
        f"visual_encoder{m}.pos_embed (1, 5, 12) -> (1, 10, 12)" for m in ("", "_m")
    ]


# --- what tasks start from ---


# An answer decoder looks at the question with what looked at the image: equally wide.
EVEN = replace(TINY, width=TINY.hidden)


def assert_started(kind: str, module: Method, state: dict[str, Tensor]) -> None:
    """All that the task shares with pre-training is there; else the module is as it was."""
    found, fresh = exported(module), exported(build(kind, EVEN))
    expected = official.renamed(state, module)  # as the golden case `checkpoint_remap`
    shared = found.keys() & expected.keys()
    own = found.keys() - shared
    heads = {"nlvr": "cls_head", "entailment": "cls_head", "assignment": "ta_head"}
    identities = {"idx_queue"} if kind == "retrieval" else set()
    assert own == {k for k in found if k.startswith(heads.get(kind, "/"))} | identities
    assert_equal({key: found[key] for key in shared}, {key: expected[key] for key in shared})
    assert_equal({key: found[key] for key in own}, {key: fresh[key] for key in own})


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_start_from_an_official_pretraining(kind: str, tmp_path: Path) -> None:
    state, module = random_state("pretraining", EVEN), build(kind, EVEN)
    torch.save({"model": state, "epoch": 29}, tmp_path / "ALBEF.pth")
    report = official.warm_start(module, tmp_path / "ALBEF.pth", "pretrained")
    assert report.complete
    assert_started(kind, module, state)
    if kind != "assignment":  # where the file has no copy, it is made anew, whatever was there
        torch.save(without_momentum(state), tmp_path / "without.pth")
        official.warm_start(module, tmp_path / "without.pth", "pretrained")
        assert_copies(module)


def test_nlvr_starts_from_an_official_text_assignment(tmp_path: Path) -> None:
    state, module = random_state("assignment"), build("nlvr")
    torch.save({"model": state}, tmp_path / "pretrain_model_nlvr.pth")
    report = official.warm_start(module, tmp_path / "pretrain_model_nlvr.pth", "assignment")
    unused = {"temp", "ta_head.weight", "text_proj.bias", "vision_proj.weight"}
    assert {report.dropped[key] for key in unused} == {"no part of this task's model"}
    found, fresh = exported(module), exported(build("nlvr"))
    for key, value in found.items():
        if not key.split(".")[0].endswith("_m"):
            assert torch.equal(value, (fresh if "cls_head" in key else state)[key]), key
    assert_copies(module)


def test_queue_and_temperature_of_pretraining_go_into_retrieval(tmp_path: Path) -> None:
    """The identities do not: another data set numbers its images otherwise."""
    trained: Any = build("pretraining")
    trained.contrast.queue["idx"].copy_(torch.arange(8)[:, None])
    trained.contrast.queue.written.fill_(16)
    trained.contrast.temp.data.fill_(0.031)
    torch.save(official.export(trained), tmp_path / "ours.pth")
    module: Any = build("retrieval")
    official.warm_start(module, tmp_path / "ours.pth", "pretrained")
    assert float(module.contrast.temp.detach()) == pytest.approx(0.031)
    assert torch.equal(module.contrast.queue.features, trained.contrast.queue.features)
    assert (module.contrast.queue["idx"] == -100).all()

    shorter: Any = build("retrieval", queue_size=4)
    official.warm_start(shorter, tmp_path / "ours.pth", "pretrained")
    assert int(shorter.contrast.queue.written) == 0


def test_retrieval_on_another_data_set(tmp_path: Path) -> None:
    """From a fine-tuned file, with or without momentum copies, and from a run of ours."""
    state = random_state("retrieval")
    torch.save(state, tmp_path / "with.pth")
    torch.save(without_momentum(state), tmp_path / "without.pth")
    trained = build("retrieval")
    official.load_weights(trained, state)
    save_run(trained, tmp_path / "run.ckpt")
    for name in ("with.pth", "without.pth", "run.ckpt"):
        module: Any = build("retrieval")
        official.warm_start(module, tmp_path / name, "retrieval")
        found = exported(module)
        kept = without_momentum(state)
        assert_equal({key: found[key] for key in kept}, kept)
        assert (module.contrast.queue["idx"] == -100).all()


# --- runs of ours ---


def save_run(module: Method, path: Path) -> None:
    """A checkpoint of the module as a run would have saved it."""
    target = f"{type(module).__module__}.{type(module).__qualname__}"
    content = {"_target_": target, "hyper_parameters": dict(module.hparams), "epoch": 3}
    io = AtomicCheckpointIO()
    io.save_checkpoint(content | {"state_dict": module.state_dict()}, path)


def test_loaded_weights_are_not_replaced_by_initial_ones(tmp_path: Path) -> None:
    """`initial` names what a new pre-training starts from; one that is loaded goes on."""
    run = tmp_path / "last.ckpt"
    save_run(build("pretraining", EVEN), run)
    for start in (
        lambda module: official.warm_start(module, run, "pretrained"),
        lambda module: official.load_weights(module, random_state("pretraining", EVEN)),
    ):
        module: Any = build("pretraining", EVEN, initial={"vision": "none.pth", "text": None})
        start(module)
        before = module.encoders.visual_encoder.pos_embed.clone()
        module.setup("fit")
        assert torch.equal(module.encoders.visual_encoder.pos_embed, before)


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("retrieval", "vqa", "warm_start.kind 'vqa' is unknown: pretrained, assignment, retrieval"),
        ("vqa", "pretrained", "is no file of pre-training; of no known kind"),
        (
            "assignment",
            "pretrained",
            "is no file of pre-training; it is of text assignment: warm_start.kind=assignment",
        ),
        (
            "pretraining",
            "assignment",
            "is no file of text assignment; it is of pre-training: warm_start.kind=pretrained",
        ),
        ("retrieval", "pretrained", "it is of retrieval or grounding: warm_start.kind=retrieval"),
    ],
)
def test_another_kind_is_refused(kind: str, wanted: str, message: str, tmp_path: Path) -> None:
    torch.save({"model": random_state(kind)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError) as caught:
        official.warm_start(build("nlvr"), tmp_path / "file.pth", wanted)
    assert message in str(caught.value)


def test_what_cannot_be_a_start_is_refused(tmp_path: Path) -> None:
    module = build("nlvr")
    missing = (
        r"no checkpoint at .*none\.ckpt: make it first \(pre-training, .*warm_start\.path=FILE"
    )
    with pytest.raises(CheckpointError, match=missing):
        official.warm_start(module, tmp_path / "none.ckpt", "pretrained")

    save_run(comatch(), tmp_path / "comatch.ckpt")
    with pytest.raises(
        CheckpointError, match=r"a run of methods\.comatch\.module\.Supervised, not"
    ):
        official.warm_start(module, tmp_path / "comatch.ckpt", "pretrained")

    torch.save({"model": comatch().state_dict()}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="is no file of pre-training"):
        official.warm_start(module, tmp_path / "official.pth", "pretrained")

    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="refused checkpoint"):
        official.warm_start(module, tmp_path / "text.pth", "pretrained")

    torch.save(changed("pretraining", visual_encoder__norm__bias=None), tmp_path / "lacks.pth")
    with pytest.raises(CheckpointError, match=r"1 missing:\n  encoders\.visual_encoder\.norm"):
        official.warm_start(module, tmp_path / "lacks.pth", "pretrained")
