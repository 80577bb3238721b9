"""Official ALBEF files, with random weights, in and out of our modules; and starts from them.

The keys are written down here and in `bert_files` from docs/papers/albef.md, section 9, not taken
from our tables.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bert_files
import pytest
import torch
from bert_files import Shapes, attention, bert_words, encoder, linear, norm
from safetensors.torch import load_file
from torch import Tensor

from methods.albef import official
from methods.comatch.module import Supervised
from shared.checkpoints.official import KeyReport
from shared.checkpoints.reading import CheckpointError
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.training.method import Method
from tests.unit import albef_toy

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

    def text(self, layers: int = 0) -> bert_files.Sizes:
        return bert_files.Sizes(
            self.vocab, self.positions, 2, self.hidden, self.inner, layers or self.layers
        )


TINY = Sizes()
FULL = Sizes(16, 16, 768, 12, 768, 3072, 30522, 512, 12, 6, 6, 256, 65536)
KINDS = {  # of files, with the golden case that holds one
    "pretraining": "pretrain_losses",
    "retrieval": "retrieval_losses",
    "vqa": "vqa",
    "nlvr": "nlvr",
    "entailment": "ve",
    "assignment": "nlvr_text_assignment",
}
PAIRED, PROJECTED = ("nlvr", "assignment"), ("pretraining", "retrieval", "assignment")
UNUSED = {"temp", "text_proj.weight", "text_proj.bias"}  # by the official text assignment itself


# --- the official files ---


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


def bert(prefix: str, s: Sizes, layers: int, fusion: int, context: int) -> Shapes:
    shapes = encoder(prefix, s.text(layers))
    shapes[f"{prefix}embeddings.position_ids"] = (1, s.positions)
    for n in range(fusion, layers):
        shapes |= attention(f"{prefix}encoder.layer.{n}.crossattention", s.hidden, context)
    return shapes


def tree(kind: str, s: Sizes) -> Shapes:
    """The keys of an official file of a kind, with their shapes."""
    shapes: Shapes = {}
    for m in ("", "_m")[: 1 if kind == "assignment" else 2]:
        text = f"text_encoder{m}.bert." if kind == "pretraining" else f"text_encoder{m}."
        layers = s.paired if kind in PAIRED else s.layers
        shapes |= vit(f"visual_encoder{m}", s) | bert(text, s, layers, s.fusion, s.width)
        if kind in PROJECTED:
            shapes |= linear(f"vision_proj{m}", s.width, s.embed)
            shapes |= linear(f"text_proj{m}", s.hidden, s.embed)
        if kind == "pretraining":
            shapes |= bert_words(f"text_encoder{m}.", s.text())
        if kind == "vqa":
            shapes |= bert(f"text_decoder{m}.bert.", s, s.decoder, 0, s.hidden)
            shapes |= bert_words(f"text_decoder{m}.", s.text())
        if classes := {"nlvr": 2, "entailment": 3}.get(kind):
            shapes |= linear(f"cls_head{m}.0", s.hidden, s.hidden)
            shapes |= linear(f"cls_head{m}.2", s.hidden, classes)
    if kind == "assignment":
        shapes |= {"temp": ()} | linear("ta_head", s.hidden, 3)
    if kind in ("pretraining", "retrieval"):
        shapes |= {"temp": (), "queue_ptr": (1,)} | linear("itm_head", s.hidden, 2)
        shapes |= dict.fromkeys(("image_queue", "text_queue"), (s.embed, s.queue))
    return shapes | ({"idx_queue": (1, s.queue)} if kind == "retrieval" else {})


def random_state(kind: str, s: Sizes = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
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
    # What PyTorch saves several times: tied weights, and keys and values that twins share.
    for key in state:
        text, tied, part = key.partition("cls.predictions.decoder.")
        if tied:
            other = "bert.embeddings.word_embeddings.weight"
            state[key] = state[text + (other if part == "weight" else "cls.predictions.bias")]
        layer = re.search(r"layer\.(\d+)\.crossattention\.self\.(key|value)", key)
        if layer and kind in PAIRED and (int(layer[1]) - s.fusion) % 2:
            state[key] = state[key.replace(f".{layer[1]}.", f".{int(layer[1]) - 1}.")]
    return state


def without_momentum(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As fine-tuned files are released: neither momentum copies nor queues."""
    kept = {key: value for key, value in state.items() if not key.split(".")[0].endswith("_m")}
    return {key: value for key, value in kept.items() if "queue" not in key}


# --- our modules ---


def build(kind: str, s: Sizes = TINY, **changes: Any) -> Any:
    vision = {"image_size": s.grid * s.patch, "patch_size": s.patch, "width": s.width}
    vision |= {"depth": s.depth, "heads": 4}
    text = {"vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.inner}
    text |= {"num_layers": s.paired if kind in PAIRED else s.layers}
    text |= {"num_heads": 4, "max_positions": s.positions, "cross_attention_from": s.fusion}
    sizes = {"embed_dim": s.embed, "queue_size": s.queue, "decoder_layers": s.decoder}
    own = {name: value for name, value in sizes.items() if name in albef_toy.MODULES[kind][1]}
    return albef_toy.build(kind, **{"vision": vision, "text": text} | own | changes)


def built_in_full(kind: str) -> Any:
    """Of real tensors; drawing their initial values would take most of the time."""
    with torch.device("meta"):
        module = build(kind, FULL)
    module.to_empty(device="cpu")
    if hasattr(module, "contrast"):
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


def assert_holds(module: Method, expected: dict[str, Tensor]) -> None:
    found = exported(module)
    assert_equal({key: found[key] for key in expected}, expected)


def assert_accounted(report: KeyReport, kind: str, state: dict[str, Tensor]) -> None:
    assert report.complete
    constants = {key for key in state if key.endswith("position_ids") or ".decoder." in key}
    constants |= UNUSED if kind == "assignment" else set()
    assert set(report.dropped) == constants
    assert {key for key, _ in report.mapped} == state.keys() - constants
    assert set(report.fresh) <= {"contrast.queue.written", "contrast.queue.idx"}
    assert not report.interpolated


def assert_copies(module: Any) -> None:
    names = dict(module.encoders.named_parameters())
    copies = dict(module.momentum_encoders.module.named_parameters())
    assert names.keys() == copies.keys()
    for name, copy in copies.items():
        assert torch.equal(copy, names[name]), name


@pytest.mark.parametrize(("kind", "case"), KINDS.items())
def test_the_keys_written_here_are_those_of_the_official_code(kind: str, case: str) -> None:
    """Which made the golden files."""
    weights = load_file(GOLDEN / case / "weights.safetensors").items()
    c = json.loads((GOLDEN / case / "case.json").read_text())["config"]
    t = c["text"]
    sizes = Sizes(
        c["image_size"] // c["patch_size"], c["patch_size"], c["vision_width"], c["vision_depth"],
        t["hidden_size"], t["intermediate_size"], t["vocab_size"], t["max_position_embeddings"],
        t["num_hidden_layers"], t["fusion_layer"], c.get("decoder_num_hidden_layers", 0),
        c.get("embed_dim", 0), c.get("queue_size", 0),
    )  # fmt: skip
    assert tree(kind, sizes) == {key: tuple(value.shape) for key, value in weights}


# --- in and out ---


@pytest.mark.parametrize("s", [TINY, pytest.param(FULL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_in_and_out(kind: str, s: Sizes, tmp_path: Path) -> None:
    """From the file of a training script: the weights are under `model`."""
    state, module = random_state(kind, s), build(kind) if s is TINY else built_in_full(kind)
    content = {"model": state, "optimizer": {"state": {}}, "config": {"k": 1}, "epoch": 4}
    torch.save(content, tmp_path / "checkpoint_04.pth")
    assert_accounted(official.load(module, tmp_path / "checkpoint_04.pth"), kind, state)
    for key in UNUSED if kind == "assignment" else ():
        del state[key]
    assert_equal(exported(module), state)


def test_names_of_ours() -> None:
    """Some of each kind, so that a table that is wrong both ways does not pass."""
    state, module = random_state("pretraining"), build("pretraining")
    official.load(module, state)
    ours = module.state_dict()
    theirs, mine = "text_encoder.bert.encoder.layer.3", "encoders.text_encoder.layers.3"
    copies = "momentum_encoders.module"
    for name, expected in [
        (
            "text_encoder.bert.embeddings.position_embeddings.weight",
            "encoders.text_encoder.embeddings.position.weight",
        ),
        (f"{theirs}.attention.self.query.weight", f"{mine}.self_attention.query.weight"),
        (f"{theirs}.attention.output.dense.weight", f"{mine}.self_attention.output.weight"),
        (f"{theirs}.attention.output.LayerNorm.bias", f"{mine}.self_attention.norm.bias"),
        (f"{theirs}.crossattention.self.value.bias", f"{mine}.cross_attention.value.bias"),
        (f"{theirs}.output.dense.weight", f"{mine}.output.weight"),
        (f"{theirs}.output.LayerNorm.weight", f"{mine}.norm.weight"),
        (
            "text_encoder.cls.predictions.transform.dense.weight",
            "encoders.word_head.dense.weight",
        ),
        ("text_encoder_m.cls.predictions.bias", f"{copies}.word_head.bias"),
        (
            "visual_encoder_m.blocks.1.attn.qkv.weight",
            f"{copies}.visual_encoder.blocks.1.attn.qkv.weight",
        ),
    ]:
        assert torch.equal(state[name], ours[expected]), name
    assert torch.equal(state["image_queue"].T, ours["contrast.queue.features"])
    assert int(ours["contrast.queue.pointer"]) == 4


# --- files that lack something, and files that do not fit ---


@pytest.mark.parametrize("kind", ["retrieval", "vqa", "nlvr"])
def test_released_files_lack_momentum_copies_and_queues(kind: str) -> None:
    state, module = without_momentum(random_state(kind)), build(kind)
    state = {key: value for key, value in state.items() if "position_ids" not in key}
    queue = getattr(getattr(module, "contrast", None), "queue", None)
    before = {k: v.clone() for k, v in queue.state_dict().items()} if queue else {}
    report = official.load(module, {"model": state})
    assert report.complete
    assert "left as initialised: copied from the encoders" in str(report)
    assert_copies(module)
    assert_holds(module, state)
    if queue:
        assert "left as initialised: starts with random directions" in str(report)
        assert all(torch.equal(value, before[key]) for key, value in queue.state_dict().items())


def test_a_queue_of_another_length_is_left_out() -> None:
    state, module = random_state("retrieval"), build("retrieval", queue_size=12)
    queue = module.contrast.queue
    features = queue.features.clone()
    report = official.load(module, state)
    assert report.dropped["image_queue"] == "a queue of 8 pairs, but queue_size=12"
    assert {"text_queue", "idx_queue", "queue_ptr"} < set(report.dropped)
    assert torch.equal(queue.features, features)
    assert int(queue.pointer) == int(queue.written) == 0
    assert (queue["idx"] == -100).all()


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


def changed(kind: str, **changes: Any) -> Callable[[], dict[str, Any]]:
    """A random file with keys replaced, added or, by None, left out; `__` is a dot."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return lambda: {k: v for k, v in (random_state(kind) | given).items() if v is not None}


Z = torch.zeros
NORM = {"visual_encoder_m__norm__bias": None}
HEAD_COPY = {"cls_head_m.0.bias": Z(TINY.hidden)}


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        ("entailment", lambda: comatch().state_dict(), r"unexpected:(.|\n)*encoder\.backbone"),
        ("pretraining", changed("retrieval"), r"text_encoder\.embeddings"),
        ("nlvr", changed("entailment"), r"missing:(.|\n)*layers\.5\."),
        ("vqa", lambda: {}, "missing"),
        ("vqa", lambda: {"model": Z(2)}, "unexpected"),
        ("vqa", changed("vqa", image_queue=Z(6, 8)), "1 unexpected:\n  image_queue"),
        (
            "retrieval",
            changed("retrieval", text_queue=None),
            r"1 missing:\n  contrast\.queue\.text",
        ),
        (
            "retrieval",
            changed("retrieval", image_queue=Z(8)),
            r"1 resized:\n  image_queue \(8,\) there, contrast\.queue\.features \(8, 6\) here",
        ),
        (
            "nlvr",
            changed("nlvr", **NORM),
            r"1 missing:\n  momentum_encoders\.module\.visual_encoder\.norm\.bias",
        ),
        (
            "entailment",
            lambda: without_momentum(random_state("entailment")) | HEAD_COPY,
            r"missing:(.|\n)*momentum_encoders\.module\.visual_encoder\.cls_token",
        ),
        (
            "retrieval",
            changed("retrieval", visual_encoder__blocks__2__norm1__bias=Z(12)),
            r"1 unexpected:\n  visual_encoder\.blocks\.2\.norm1\.bias \(as encoders",
        ),
        (
            "assignment",
            changed("assignment", ta_head__weight=Z(2, 8)),
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
            changed("entailment", visual_encoder__pos_embed=Z(1, 6, 12)),
            "visual_encoder.pos_embed cannot become .*: 5 position embeddings form no square grid",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    kind: str, state: Callable[[], dict[str, Any]], message: str
) -> None:
    module = build(kind)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        official.load(module, state())
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "was changed"


# --- another image size ---


def test_a_file_of_another_size_is_interpolated_when_loaded_too() -> None:
    state, module = random_state("retrieval"), build("retrieval", replace(TINY, grid=3))
    report = official.load(module, state)
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
    own = found.keys() - expected.keys()
    heads = {"nlvr": "cls_head", "entailment": "cls_head", "assignment": "ta_head"}
    identities = {"idx_queue"} if kind == "retrieval" else set()
    assert own == {k for k in found if k.startswith(heads.get(kind, "/"))} | identities
    assert_equal(found, {key: (fresh if key in own else expected)[key] for key in found})


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
    trained = build("pretraining")
    trained.contrast.queue["idx"].copy_(torch.arange(8)[:, None])
    trained.contrast.queue.written.fill_(16)
    trained.contrast.temp.data.fill_(0.031)
    torch.save(official.export(trained), tmp_path / "ours.pth")
    module = build("retrieval")
    official.warm_start(module, tmp_path / "ours.pth", "pretrained")
    assert float(module.contrast.temp.detach()) == pytest.approx(0.031)
    assert torch.equal(module.contrast.queue.features, trained.contrast.queue.features)
    assert (module.contrast.queue["idx"] == -100).all()


def test_retrieval_on_another_data_set(tmp_path: Path) -> None:
    """From a fine-tuned file, with or without momentum copies, and from a run of ours."""
    state = random_state("retrieval")
    torch.save(state, tmp_path / "with.pth")
    torch.save(without_momentum(state), tmp_path / "without.pth")
    trained = build("retrieval")
    official.load(trained, state)
    save_run(trained, tmp_path / "run.ckpt")
    for name in ("with.pth", "without.pth", "run.ckpt"):
        module = build("retrieval")
        official.warm_start(module, tmp_path / name, "retrieval")
        assert_holds(module, without_momentum(state))
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
        lambda module: official.load(module, random_state("pretraining", EVEN)),
    ):
        module = build("pretraining", EVEN, initial={"vision": "none.pth", "text": None})
        start(module)
        before = module.encoders.visual_encoder.pos_embed.clone()
        module.setup("fit")
        assert torch.equal(module.encoders.visual_encoder.pos_embed, before)


OTHER, NAME = "is no file of pre-training; ", "warm_start.kind"


@pytest.mark.parametrize(
    ("state", "wanted", "message"),
    [
        (
            changed("retrieval"),
            "vqa",
            f"{NAME} 'vqa' is unknown: pretrained, assignment, retrieval",
        ),
        (changed("vqa"), "pretrained", f"{OTHER}of no known kind"),
        (lambda: comatch().state_dict(), "pretrained", OTHER),
        (changed("retrieval"), "pretrained", f"it is of retrieval or grounding: {NAME}=retrieval"),
        (
            changed("assignment"),
            "pretrained",
            f"{OTHER}it is of text assignment: {NAME}=assignment",
        ),
        (
            changed("pretraining"),
            "assignment",
            f"is no file of text assignment; it is of pre-training: {NAME}=pretrained",
        ),
        (
            changed("pretraining", visual_encoder__norm__bias=None),
            "pretrained",
            r"1 missing:\n  encoders.visual_encoder.norm",
        ),
    ],
)
def test_what_is_no_such_start_is_refused(
    state: Callable[[], dict[str, Any]], wanted: str, message: str, tmp_path: Path
) -> None:
    torch.save({"model": state()}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        official.warm_start(build("nlvr"), tmp_path / "file.pth", wanted)


def test_what_cannot_be_a_start_is_refused(tmp_path: Path) -> None:
    save_run(comatch(), tmp_path / "comatch.ckpt")
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name, message in [
        (
            "none.ckpt",
            r"no checkpoint at .*none\.ckpt: make it first \(pre-training, .*\.path=FILE",
        ),
        ("comatch.ckpt", r"a run of methods\.comatch\.module\.Supervised, not"),
        ("text.pth", "refused checkpoint"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            official.warm_start(build("nlvr"), tmp_path / name, "pretrained")
