"""Official ALBEF files, with random weights, in and out of our modules; and starts from them.

The keys are written down here from docs/papers/albef.md, section 9, not taken from our tables.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from methods.albef import official
from methods.albef.entailment import Entailment
from methods.albef.grounding import Grounding
from methods.albef.module import Pretraining
from methods.albef.nlvr import NLVR, TextAssignment
from methods.albef.retrieval import Retrieval
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
            case "retrieval" | "grounding":
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
    if kind in ("pretraining", "retrieval", "grounding"):
        shapes |= heads(s, "temp", "itm_head", "queues")
    return shapes | (heads(s, "idx_queue") if kind in ("retrieval", "grounding") else {})


KINDS = ("pretraining", "retrieval", "grounding", "vqa", "nlvr", "entailment", "assignment")
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
        return (NLVR if kind == "nlvr" else Entailment)(**values | changes)
    if kind == "vqa":
        return VQA(**values | {"decoder_layers": s.decoder, "k_test": 2} | changes)
    values |= {"embed_dim": s.embed, "queue_size": s.queue, "temperature": 0.07, "seed": 0}
    values |= {"hard_negatives": True, "negatives": "local", "evaluation": {"k_test": 2}}
    if kind == "pretraining":
        tokens = {"mlm_probability": 0.15, "cls_id": 2, "mask_id": 4}
        return Pretraining(**values | tokens | changes)
    if kind == "retrieval":
        return Retrieval(**values | changes)
    return Grounding(**values | {"cam_layer": s.layers - 1} | changes)


def built_in_full(kind: str, s: Sizes = FULL) -> Method:
    """Of real tensors; drawing their initial values would take most of the time."""
    with torch.device("meta"):
        module = build(kind, s)
    module.to_empty(device="cpu")
    if isinstance(module, Retrieval | Pretraining):
        module.queue.written.zero_()
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
    assert set(report.fresh) <= {"queue.written", "queue.idx"}
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
    theirs = {
        k: tuple(v.shape) for k, v in load_file(GOLDEN / case / "weights.safetensors").items()
    }
    head = "text_encoder.bert" if kind == "pretraining" else "text_encoder"
    embeddings = f"{head}.embeddings"
    layers = max(int(m[1]) for k in theirs if (m := re.search(r"text_encoder.*layer\.(\d+)", k)))
    first = min(int(m[1]) for k in theirs if (m := re.search(r"layer\.(\d+)\.crossatt", k)))
    if kind == "vqa":
        pattern = re.compile(r"text_encoder\..*layer\.(\d+)\.crossatt")
        first = min(int(m[1]) for k in theirs if (m := pattern.search(k)))
    decoder = [int(m[1]) for k in theirs if (m := re.search(r"text_decoder\..*layer\.(\d+)", k))]
    blocks = [int(m[1]) for k in theirs if (m := re.search(r"blocks\.(\d+)", k))]
    layers = first + (layers + 1 - first) // (2 if kind in ("nlvr", "assignment") else 1)
    sizes = Sizes(
        grid=round((theirs["visual_encoder.pos_embed"][1] - 1) ** 0.5),
        patch=theirs["visual_encoder.patch_embed.proj.weight"][-1],
        width=theirs["visual_encoder.norm.bias"][0],
        depth=max(blocks) + 1,
        hidden=theirs[f"{embeddings}.LayerNorm.bias"][0],
        inner=theirs[f"{head}.encoder.layer.0.intermediate.dense.bias"][0],
        vocab=theirs[f"{embeddings}.word_embeddings.weight"][0],
        positions=theirs[f"{embeddings}.position_ids"][1],
        layers=layers,
        fusion=first,
        decoder=max(decoder, default=0) + 1,
        embed=theirs.get("text_proj.bias", (0,))[0],
        queue=theirs.get("image_queue", (0, 0))[1],
    )
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


@pytest.mark.parametrize(
    "kind", ["pretraining", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_every_key_in_and_out_at_full_size(kind: str) -> None:
    state, module = random_state(kind, FULL), built_in_full(kind)
    assert_accounted(official.load_weights(module, state), kind, state)
    for key in UNUSED if kind == "assignment" else ():
        del state[key]
    assert_equal(exported(module), state)


def test_sizes_of_the_full_model() -> None:
    """BERT 123.7 M parameters with its word prediction, ViT 85.8 M, as the paper says."""
    with torch.device("meta"):
        module: Any = build("pretraining", FULL)
    encoders = module.encoders
    counts = [
        sum(p.numel() for network in networks for p in network.parameters()) / 1e6
        for networks in ([encoders.text_encoder, encoders.word_head], [encoders.visual_encoder])
    ]
    assert counts == pytest.approx([123.7, 85.8], abs=0.05)


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
    assert torch.equal(state["image_queue"].T, ours["queue.features"])
    assert int(ours["queue.pointer"]) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_state_survives_the_detour(kind: str) -> None:
    """What the official code does not keep, too: identities of pre-training, rows written."""
    module: Any = build(kind)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    if hasattr(module, "queue"):
        module.queue["idx"].copy_(torch.arange(100, 100 + TINY.queue)[:, None])
        module.queue.written.fill_(24)
    other = build(kind)
    official.load_weights(other, official.export(module))
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# --- files that lack something, and files that do not fit ---


@pytest.mark.parametrize("kind", ["retrieval", "grounding", "vqa", "nlvr", "entailment"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_released_files_lack_momentum_copies_and_queues(kind: str, wrapped: bool) -> None:
    state, module = without_momentum(random_state(kind)), build(kind)
    queue: Any = getattr(module, "queue", None)
    before = None if queue is None else {k: v.clone() for k, v in queue.state_dict().items()}
    report = official.load_weights(module, {"model": state} if wrapped else state)
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
    before: Any = module.queue
    features = before.features.clone()
    report = official.load_weights(module, state)
    assert report.dropped["image_queue"] == "a queue of 8 pairs, but queue_size=12"
    assert {"text_queue", "idx_queue", "queue_ptr"} < set(report.dropped)
    assert torch.equal(before.features, features)
    assert int(before.pointer) == int(before.written) == 0
    assert (before["idx"] == -100).all()


def test_the_position_constants_may_be_missing() -> None:
    state = {k: v for k, v in random_state("vqa").items() if "position_ids" not in k}
    assert official.load_weights(build("vqa"), state).complete


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
        ("pretraining", lambda: {"model": comatch().state_dict()}, "unexpected"),
        ("pretraining", lambda: random_state("retrieval"), r"text_encoder\.embeddings"),
        ("retrieval", lambda: random_state("pretraining"), r"text_encoder\.bert\."),
        ("nlvr", lambda: random_state("entailment"), r"missing:(.|\n)*layers\.5\."),
        ("vqa", lambda: {}, "missing"),
        ("vqa", lambda: {"model": Z(2)}, "unexpected"),
        ("vqa", lambda: changed("vqa", image_queue=Z(6, 8)), "1 unexpected:\n  image_queue"),
        (
            "pretraining",
            lambda: changed("pretraining", text_encoder__cls__predictions__bias=None),
            r"1 missing:\n  encoders\.word_head\.bias",
        ),
        ("retrieval", lambda: changed("retrieval", temp=None), r"1 missing:\n  temp"),
        (
            "retrieval",
            lambda: changed("retrieval", text_queue=None),
            r"1 missing:\n  queue\.text",
        ),
        (
            "retrieval",
            lambda: changed("retrieval", image_queue=None),
            r"1 missing:\n  queue\.features",
        ),
        (
            "retrieval",
            lambda: changed("retrieval", image_queue=Z(8)),
            r"1 resized:\n  image_queue \(8,\) there, queue\.features \(8, 6\) here",
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
            "grounding",
            lambda: changed("grounding", visual_encoder__blocks__2__norm1__bias=Z(12)),
            r"1 unexpected:\n  visual_encoder\.blocks\.2\.norm1\.bias \(as encoders",
        ),
        (
            "grounding",
            lambda: changed("grounding", cls_head__0__bias=Z(8)),
            r"1 unexpected:\n  cls_head\.0\.bias",
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
        (
            "entailment",
            lambda: changed("entailment", visual_encoder__pos_embed=Z(5, 12)),
            r"visual_encoder\.pos_embed cannot become .*: position embeddings are \(1, 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    kind: str, state: Callable[[], dict[str, Any]], message: str
) -> None:
    found = fault(build(kind), state())
    assert re.search(message, found), found


# --- another image size ---


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    a, t = -0.75, np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def resized(positions: Tensor, side: int) -> np.ndarray:
    """(1, 1 + s^2, C) -> (1, 1 + side^2, C): both axes by a matrix of bicubic weights; pixel
    centres are aligned, what lies beyond the border is the border."""
    table = positions[0].double().numpy()
    s = round((len(table) - 1) ** 0.5)
    weights = np.zeros((side, s))
    for i in range(side):
        centre = (i + 0.5) * s / side - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, min(max(tap, 0), s - 1)] += cubic(np.array(centre - tap))
    plane = np.einsum("is,jt,stc->ijc", weights, weights, table[1:].reshape(s, s, -1))
    return np.concatenate([table[:1], plane.reshape(side * side, -1)])[None]


@pytest.mark.parametrize(
    ("kind", "width"),
    [("retrieval", 768), ("vqa", 8), ("nlvr", 8), ("entailment", 8), ("assignment", 8)],
)
def test_positions_of_256_px_become_those_of_384_px(kind: str, width: int, tmp_path: Path) -> None:
    """16 x 16 patches become 24 x 24, of encoder and momentum copy."""
    sizes = replace(TINY, grid=16, width=width, depth=1)
    state, module = random_state("pretraining", sizes), build(kind, replace(sizes, grid=24))
    torch.save(state, tmp_path / "ALBEF.pth")
    report = official.warm_start(module, tmp_path / "ALBEF.pth", "pretrained")
    found = exported(module)
    copies = ("",) if kind == "assignment" else ("", "_m")
    for m in copies:
        key = f"visual_encoder{m}.pos_embed"
        expected = torch.from_numpy(resized(state[key], 24)).float()
        torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-5)
        assert f"interpolated: {key} (1, 257, {width}) -> (1, 577, {width})" in str(report)
    assert len(report.interpolated) == len(copies)


def test_a_file_of_another_size_is_interpolated_when_loaded_too() -> None:
    state, module = random_state("grounding"), build("grounding", replace(TINY, grid=3))
    report = official.load_weights(module, state)
    assert report.interpolated == [
        f"visual_encoder{m}.pos_embed (1, 5, 12) -> (1, 10, 12)" for m in ("", "_m")
    ]


# --- what tasks start from ---


# An answer decoder looks at the question with what looked at the image: equally wide.
EVEN = replace(TINY, width=TINY.hidden)


def of_joint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what a pre-training file holds, what retrieval, grounding and SNLI-VE take."""
    return {
        key.replace("text_encoder.bert.", "text_encoder.").replace("_m.bert.", "_m."): value
        for key, value in state.items()
        if ".cls." not in key
    }


def of_vqa(state: dict[str, Tensor], s: Sizes = TINY) -> dict[str, Tensor]:
    taken = of_joint({k: v for k, v in state.items() if k.startswith(("visual", "text_encoder"))})
    for m in ("", "_m"):
        there, here = f"text_encoder{m}", f"text_decoder{m}"
        for key, value in state.items():
            if key.startswith((f"{there}.bert.embeddings", f"{there}.cls.")):
                taken[key.replace(there, here)] = value
            for n in range(s.layers - s.fusion):
                layer = f"{there}.bert.encoder.layer.{s.fusion + n}."
                if key.startswith(layer):
                    taken[key.replace(layer, f"{here}.bert.encoder.layer.{n}.")] = value
    return taken


def of_paired(state: dict[str, Tensor], s: Sizes = TINY) -> dict[str, Tensor]:
    taken = {}
    for key, value in of_joint(state).items():
        layer = re.match(r"(text_encoder\w*\.encoder\.layer\.)(\d+)(\..*)", key)
        if not layer or int(layer[2]) < s.fusion:
            taken[key] = value
            continue
        for twin in range(2):
            taken[f"{layer[1]}{s.fusion + 2 * (int(layer[2]) - s.fusion) + twin}{layer[3]}"] = value
    return taken


RENAMED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "pretraining": dict,
    "retrieval": of_joint,
    "grounding": of_joint,
    "entailment": of_joint,
    "vqa": of_vqa,
    "nlvr": of_paired,
    "assignment": of_paired,
}


def assert_started(kind: str, module: Method, state: dict[str, Tensor]) -> None:
    """All that the task shares with pre-training is there; else the module is as it was."""
    found, expected, fresh = exported(module), RENAMED[kind](state), exported(build(kind, EVEN))
    shared = found.keys() & expected.keys()
    own = found.keys() - shared
    heads = {"nlvr": "cls_head", "entailment": "cls_head", "assignment": "ta_head"}
    identities = {"idx_queue"} if kind in ("retrieval", "grounding") else set()
    assert own == {k for k in found if k.startswith(heads.get(kind, "/"))} | identities
    assert_equal({key: found[key] for key in shared}, {key: expected[key] for key in shared})
    assert_equal({key: found[key] for key in own}, {key: fresh[key] for key in own})


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tasks_start_from_an_official_pretraining(kind: str, wrapped: bool, tmp_path: Path) -> None:
    state, module = random_state("pretraining", EVEN), build(kind, EVEN)
    torch.save({"model": state, "epoch": 29} if wrapped else state, tmp_path / "ALBEF.pth")
    report = official.warm_start(module, tmp_path / "ALBEF.pth", "pretrained")
    assert report.complete
    assert_started(kind, module, state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retrieval", "vqa", "nlvr"])
def test_tasks_start_at_full_size(kind: str, tmp_path: Path) -> None:
    """From 256 px to 384 px."""
    state = without_momentum(random_state("pretraining", FULL))
    module = built_in_full(kind, replace(FULL, grid=24))
    path = tmp_path / "ALBEF.pth"
    torch.save({"model": {key: value.half() for key, value in state.items()}}, path)
    report = official.warm_start(module, path, "pretrained")
    assert report.complete
    assert report.interpolated == ["visual_encoder.pos_embed (1, 257, 768) -> (1, 577, 768)"]
    found = module.state_dict()["encoders.text_encoder.layers.7.output.weight"]
    layer = 6 if kind == "nlvr" else 7
    key = f"text_encoder.bert.encoder.layer.{layer}.output.dense.weight"
    assert torch.equal(found, state[key].half().float())
    assert_copies(module)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "assignment"])
def test_momentum_copies_start_as_the_encoders_where_the_file_has_none(
    kind: str, tmp_path: Path
) -> None:
    state, module = without_momentum(random_state("pretraining", EVEN)), build(kind, EVEN)
    torch.save(state, tmp_path / "ALBEF.pth")
    with torch.no_grad():  # the copy is made anew, whatever was there
        for parameter in module.momentum_encoders.parameters():  # type: ignore[union-attr]
            parameter.fill_(7.0)
    official.warm_start(module, tmp_path / "ALBEF.pth", "pretrained")
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
    trained.queue["idx"].copy_(torch.arange(8)[:, None])
    trained.queue.written.fill_(16)
    trained.temp.data.fill_(0.031)
    torch.save(official.export(trained), tmp_path / "ours.pth")
    module: Any = build("retrieval")
    official.warm_start(module, tmp_path / "ours.pth", "pretrained")
    assert float(module.temp.detach()) == pytest.approx(0.031)
    assert torch.equal(module.queue.features, trained.queue.features)
    assert (module.queue["idx"] == -100).all()

    shorter: Any = build("retrieval", queue_size=4)
    official.warm_start(shorter, tmp_path / "ours.pth", "pretrained")
    assert int(shorter.queue.written) == 0


def test_retrieval_on_another_data_set(tmp_path: Path) -> None:
    """From a fine-tuned file, with or without momentum copies, and from a run of ours."""
    state = random_state("retrieval")
    torch.save(state, tmp_path / "with.pth")
    torch.save(without_momentum(state), tmp_path / "without.pth")
    trained = build("retrieval")
    official.load_weights(trained, state)
    save_run(trained, tmp_path / "run.ckpt")
    for name in ("with.pth", "without.pth", "run.ckpt"):
        for kind in ("retrieval", "grounding"):
            module: Any = build(kind)
            official.warm_start(module, tmp_path / name, "retrieval")
            found = exported(module)
            kept = without_momentum(state)
            assert_equal({key: found[key] for key in kept}, kept)
            assert (module.queue["idx"] == -100).all()


# --- runs of ours ---


def save_run(module: Method, path: Path) -> None:
    """A checkpoint of the module as a run would have saved it."""
    target = f"{type(module).__module__}.{type(module).__qualname__}"
    content = {"_target_": target, "hyper_parameters": dict(module.hparams), "epoch": 3}
    io = AtomicCheckpointIO()
    io.save_checkpoint(content | {"state_dict": module.state_dict()}, path)


def batches(count: int, size: int = 4, length: int = 5) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    side = TINY.grid * TINY.patch
    for _ in range(count):
        ids = torch.randint(5, TINY.vocab, (size, length), generator=generator)
        ids[:, 0] = 2
        yield {
            "images": torch.randn(size, 3, side, side, generator=generator),
            "indices": torch.arange(size),
            "image_ids": torch.arange(size),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a pre-training of two steps."""
    folder = tmp_path_factory.mktemp("run")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        limit_val_batches=0, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(list(batches(2)), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(build("pretraining", EVEN, identity="image"), loader)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_start_from_our_own_pretraining(kind: str, run: Path) -> None:
    weights = torch.load(run, weights_only=True)["state_dict"]
    module = build(kind, EVEN)
    report = official.warm_start(module, run, "pretrained")
    assert report.complete
    trained: Any = build("pretraining", EVEN)
    trained.load_state_dict(weights)
    assert_started(kind, module, exported(trained))
    assert int(trained.queue.written) == 8, "two steps were taken"


def test_nlvr_starts_from_our_own_text_assignment(tmp_path: Path) -> None:
    trained, module = build("assignment", seed=4), build("nlvr")
    save_run(trained, tmp_path / "last.ckpt")
    official.warm_start(module, tmp_path / "last.ckpt", "assignment")
    expected = exported(trained)
    for key, value in exported(module).items():
        if key.startswith(("visual_encoder.", "text_encoder.")):
            assert torch.equal(value, expected[key]), key
    assert_copies(module)


def test_loaded_weights_are_not_replaced_by_initial_ones(run: Path, tmp_path: Path) -> None:
    """`initial` names what a new pre-training starts from; one that is loaded goes on."""
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
        ("grounding", "pretrained", "it is of retrieval or grounding: warm_start.kind=retrieval"),
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
