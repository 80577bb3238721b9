"""BLIP and transformers' port of it: folders load and are written, and both compute the same.

What the port computes was recorded by its version 5.24 (`tests.unit.blip_transformers`); where
transformers is installed, its present version is asked, too.
"""

import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from methods.blip import exporting, official
from methods.blip.filtering import PairFilter
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.data.text.wordpiece import WordPiece
from shared.nn.building import build as build_module
from shared.training.method import Method
from tests.configs import composed
from tests.unit import test_predict
from tests.unit.blip_toy import BOS, ENC, PAD, SEP, TEXT, VISION, WORDS, build, lively
from tests.unit.blip_transformers import (
    ANSWERS,
    CLASSES,
    KINDS,
    LONGEST,
    PROMPT,
    SHORTEST,
    SQUARE,
    ended,
    record,
)

RECORDED = Path(__file__).parents[1] / "fixtures" / "blip"
INSTALLED = find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not INSTALLED, reason="transformers is not installed")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "square", "disc"]
TOKENS += ["dog", "cat", "##gy", "what", "is", "this", "yes", "?", "[DEC]", "[ENC]"]
WRITING = {"max_length": LONGEST, "min_length": SHORTEST, "end_id": SEP, "pad_id": PAD}


@pytest.fixture(
    scope="module", params=["recorded", pytest.param("installed", marks=needs_transformers)]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the port with its outputs: those of the fixture, or new ones."""
    if request.param == "recorded":
        return RECORDED
    made = tmp_path_factory.mktemp("port")
    record(made, seed=8)
    return made


def ours(kind: str, folder: Path, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    """A module in float64 that has loaded the folder, and the port's inputs and outputs."""
    module = build(kind, seed=5, **{"vision": SQUARE, **changes}).eval()
    report = official.load(module, folder / kind)
    assert report.complete
    return module.double(), load_file(folder / kind / "outputs.safetensors")


def close(mine: Tensor, theirs: Tensor) -> None:
    """Up to rounding in the precision of ours."""
    small = 1e-10 if mine.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(mine.double(), theirs.double(), rtol=10 * small, atol=small)


# --- both compute the same ---


@torch.no_grad()
def test_captions(folder: Path) -> None:
    module, port = ours("captioning", folder)
    mask, decoder = port["mask"], module.decoder
    context = module.look(port["images"])
    hidden = decoder.transformer(port["written"], mask, context, causal=True)
    logits = decoder.head(hidden, decoder.transformer.embeddings.word)
    close(logits[mask.bool()], port["out/logits"][mask.bool()])
    for name, settings in (
        ("greedy", {"num_beams": 1}),
        ("beams_of_sums", {"num_beams": 3, "length_penalty": 0.0}),
    ):
        module, _ = ours("captioning", folder, prompt_ids=PROMPT, generation=WRITING | settings)
        written = module.predict_step({"images": port["images"]}, 0)
        assert torch.equal(ended(written), port[f"out/{name}"]), name


@torch.no_grad()
def test_the_port_divides_beams_by_the_words_after_the_prompt(folder: Path) -> None:
    """Ours divide by all words but the end, so that captions may differ: the port's score of the
    caption that it chose is the sum of our log-probabilities over its own length."""
    module, port = ours("captioning", folder)
    decoder, ids = module.decoder, port["out/beams"]
    hidden = decoder.transformer(
        ids, torch.ones_like(ids), module.look(port["images"]), causal=True
    )
    logits = decoder.head(hidden, decoder.transformer.embeddings.word)
    prompt = 1 + len(PROMPT)
    words = logits[:, :-1].log_softmax(dim=2).gather(2, ids[:, 1:, None])[..., 0]
    new = (ids != PAD)[:, prompt:]
    sums = torch.where(new, words[:, prompt - 1 :], 0).sum(dim=1)
    close((sums / new.sum(dim=1)).float(), port["out/beam_scores"])


def test_matching_with_and_without_enc_and_cosines(folder: Path) -> None:
    module, port = ours("retrieval", folder)
    images, ids, mask = port["images"], port["ids"], port["mask"]
    close(PairFilter(module).logits(images, ids, mask), port["out/enc"])
    close(PairFilter(module, enc_token=False).logits(images, ids, mask), port["out/cls"])
    assert (port["out/enc"] - port["out/cls"]).abs().max() > 0.01
    with torch.no_grad():
        image = module.encoders.encode_image(images)[1]
        text = module.encoders.encode_text(ids, mask)[1]
    close(image @ text.T, port["out/cosines"])


@torch.no_grad()
def test_answers(folder: Path) -> None:
    """With no prompt but [DEC], both rules of lengths agree. The port's decoder sees a question's
    padding, whatever its mask says; that of the first question has none."""
    settings = {"generation": WRITING | {"min_length": 3}, "reads_padding": True, "k_test": 4}
    module, port = ours("vqa", folder, **settings)
    mask, candidates, theirs = port["mask"], port["answers"], port["out/logits"]
    questions = {"images": port["images"], "input_ids": port["ids"], "attention_mask": mask}
    assert torch.equal(ended(module.write(questions).sequences), port["out/written"])
    module.choose_among({name: [0, *words, SEP] for name, words in ANSWERS.items()})
    masked = module.read(questions)
    unmasked = [keys_values._replace(mask=None) for keys_values in masked]
    places, scores = module.ranking(module.encoders, unmasked)
    close(scores, -port["out/losses"].gather(1, places))
    ids = candidates.repeat(len(mask), 1)
    spoken = theirs.flatten(0, 1)[:, :-1][ids[:, 1:] != PAD]
    close(module.encoders.write(ids, (ids != PAD).long(), unmasked), spoken)
    own = module.encoders.write(ids, (ids != PAD).long(), masked)
    first = int((candidates[:, 1:] != PAD).sum())
    close(own[:first], spoken[:first])
    assert (own[first:] - spoken[first:]).abs().max() > 1e-6


# --- reading ---


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    """Copies a recorded folder and changes its config.json by `section.key=value`."""

    def copy(kind: str, **changes: Any) -> Path:
        shutil.copytree(RECORDED / kind, tmp_path / kind, dirs_exist_ok=True)
        path = tmp_path / kind / "config.json"
        content = json.loads(path.read_text())
        for place, value in changes.items():
            section, _, key = place.rpartition("__")
            (content[section] if section else content)[key] = value
        path.write_text(json.dumps(content))
        return tmp_path / kind

    return copy


def fresh(kind: str, **changes: Any) -> Any:
    return build(kind, seed=7, vision=SQUARE, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_explained(kind: str, copied: Any) -> None:
    """Also of files of older versions, which are pickled and hold tied tensors and constants."""
    module = fresh(kind)
    report = official.load(module, RECORDED / kind)
    assert report.complete
    assert set(report.fresh.values()) <= {
        "copied from the encoders", "a file that only scores pairs has none",
        "starts with random directions", "not kept by the official code",
        "no identities there: what is queued is a negative",
        "the queue of pre-training is overwritten from its start",
    } | {why for why in report.fresh.values() if why.startswith("a queue of")}  # fmt: skip
    old = copied(kind)
    state = load_file(old / "model.safetensors")
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    if words in state:
        bias = state["text_decoder.cls.predictions.bias"]
        state |= {"text_decoder.cls.predictions.decoder.weight": state[words]}
        state |= {"text_decoder.cls.predictions.decoder.bias": bias}
    else:
        state["text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
    (old / "model.safetensors").unlink()
    torch.save(state, old / "pytorch_model.bin")
    again = fresh(kind)
    official.load(again, old)
    for (name, mine), theirs in zip(again.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(RECORDED / "captioning")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    module = fresh("captioning")
    official.load(module, "hub:Salesforce/blip-image-captioning-base")
    official.warm_start(fresh("captioning"), "hub:Salesforce/blip", "captioning")
    assert asked == ["Salesforce/blip-image-captioning-base", "Salesforce/blip"]


def test_a_config_that_does_not_fit_names_its_keys(copied: Any) -> None:
    folder = copied("captioning", vision_config__image_size=384, text_config__vocab_size=30524)
    module = fresh("captioning")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"config\.json does not fit") as told:
        official.load(module, folder)
    assert "vision_config.image_size 384 there, 16 here" in str(told.value)
    assert "text_config.vocab_size 30524 there, 20 here" in str(told.value)
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_is_left_out_has_the_default_of_the_port(copied: Any) -> None:
    folder = copied("captioning", text_config=None)
    with pytest.raises(CheckpointError, match=r"text_config\.num_hidden_layers 12 there, 2 here"):
        official.load(fresh("captioning"), folder)


def test_the_default_eps_of_the_port_is_not_the_official_one(copied: Any, caplog: Any) -> None:
    """It is told and not followed; any other is refused."""
    folder = copied("captioning", vision_config__layer_norm_eps=1e-5)
    module = fresh("captioning")
    with caplog.at_level(logging.INFO):
        official.load(module, folder)
    assert "vision_config.layer_norm_eps 1e-05 there, 1e-06 here" in caplog.text
    assert module.visual_encoder.norm.eps == 1e-6
    with pytest.raises(CheckpointError, match=r"layer_norm_eps 0\.1 there"):
        official.load(module, copied("captioning", vision_config__layer_norm_eps=0.1))


@pytest.mark.parametrize("other", ["BlipModel", "BlipForQuestionAnswering", "AlbertModel"])
def test_other_classes_are_refused(copied: Any, other: str) -> None:
    folder = copied("captioning", architectures=[other])
    reason = "BlipModel is not BLIP: its loss is CLIP's" if other == "BlipModel" else other
    with pytest.raises(CheckpointError, match=reason):
        official.load(fresh("captioning"), folder)


def test_weights_of_the_clip_like_class_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"text_model.pooler.dense.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="BlipModel is not BLIP"):
        official.load(fresh("captioning"), tmp_path / "a.safetensors")


def test_what_the_port_has_no_class_for_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no class for BLIP's NLVR"):
        official.load(fresh("nlvr"), RECORDED / "retrieval")


def test_weights_of_another_task_or_without_names(copied: Any) -> None:
    folder = copied("captioning")
    shutil.copy(RECORDED / "retrieval" / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match="nothing loaded"):
        official.load(fresh("captioning"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({3: torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no names"):
        official.load(fresh("captioning"), folder)


def test_training_starts_from_a_folder_at_another_size_of_images() -> None:
    larger = SQUARE | {"image_size": 32}
    module = build("retrieval", seed=3, vision=larger)
    report = official.warm_start(module, RECORDED / "retrieval", "retrieval")
    assert report.interpolated
    head = load_file(RECORDED / "retrieval" / "model.safetensors")["itm_head.weight"]
    assert torch.equal(module.matching.head.weight, head)
    with pytest.raises(CheckpointError, match=r"warm_start\.kind=retrieval"):
        official.warm_start(module, RECORDED / "retrieval", "captioning")
    with pytest.raises(CheckpointError, match=r"hidden_size 8 there, 12 here"):
        official.warm_start(build("retrieval", vision=VISION), RECORDED / "retrieval", "retrieval")


def test_a_folder_predicts_as_an_official_file(tmp_path: Path) -> None:
    tokens = [*TOKENS[:-2], *(f"w{n}" for n in range(28 - len(TOKENS[:-2])))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    overrides = [f"data.vocab={tmp_path}/vocab.txt", f"data_root={tmp_path}"]
    experiment, path = "blip/smoke_captioning", tmp_path / "last.ckpt"
    torch.manual_seed(0)
    module: Any = lively(build_module(composed(experiment, *overrides).method, Method))
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    arguments = [f"official={experiment}", f"overrides={overrides}"]
    exporting.export_folder(module, path, WordPiece(tokens, ["[DEC]", "[ENC]"], closed=True))
    captions = test_predict.read(test_predict.run(tmp_path, *arguments), "captions.csv")
    shutil.rmtree(path)
    shutil.rmtree(tmp_path / "out")
    torch.save({"model": official.export(module)}, path)
    assert test_predict.read(test_predict.run(tmp_path, *arguments), "captions.csv") == captions
    assert len(captions) == 3
    assert all(row["caption"] for row in captions)


# --- writing ---


def words() -> WordPiece:
    return WordPiece(TOKENS, ["[DEC]", "[ENC]"], closed=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(kind: str, tmp_path: Path) -> None:
    module = lively(fresh(kind))
    exporting.export_folder(module, tmp_path / "out", words())
    again = build(kind, seed=9, vision=SQUARE)
    official.load(again, tmp_path / "out")
    for (name, mine), theirs in zip(again.named_parameters(), module.parameters(), strict=True):
        if not name.startswith(("momentum_encoders.", "contrast.")):
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_is_written_as_it_was(kind: str, tmp_path: Path) -> None:
    module = fresh(kind)
    official.load(module, RECORDED / kind)
    exporting.export_folder(module, tmp_path / "out", words())
    theirs = load_file(RECORDED / kind / "model.safetensors")
    mine = load_checkpoint(tmp_path / "out" / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    recorded = json.loads((RECORDED / kind / "config.json").read_text())
    assert config["architectures"] == recorded["architectures"] == [CLASSES[kind]]
    for section in ("vision_config", "text_config"):
        same = config[section].keys() & recorded[section].keys()
        assert len(same) > 7
        for key in same - {"label_smoothing"} - {k for k in same if "dropout" in k}:
            assert config[section][key] == recorded[section][key], key
    smoothing = 0.0 if kind == "retrieval" else 0.1
    assert config["text_config"]["label_smoothing"] == smoothing
    assert config["text_config"]["sep_token_id"] == SEP


def test_the_written_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    exporting.export_folder(fresh("captioning"), tmp_path / "out", words())
    written = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("A red doggy?", "a zebra", ""):
        assert written.encode(text).ids == words().batch([text])[0][0].tolist()
    assert written.decode([BOS, 6, 10, 12, SEP]) == "red doggy"


def test_what_the_port_cannot_be_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    wide = build("vqa", vision=VISION)
    with pytest.raises(CheckpointError, match="images of width 12, but questions of 8"):
        exporting.export_folder(wide, out, words())
    with pytest.raises(CheckpointError, match="no class for BLIP's Pretraining"):
        exporting.export_folder(fresh("pretraining"), out, words())
    swapped = WordPiece([*TOKENS[:-2], "[ENC]", "[DEC]"], ["[DEC]", "[ENC]"], closed=True)
    with pytest.raises(CheckpointError, match="the vocabulary is not the module's"):
        exporting.export_folder(fresh("captioning"), out, swapped)
    longer = WordPiece([*TOKENS, "more"], ["[DEC]", "[ENC]"], closed=True)
    typed = fresh("captioning", text=TEXT | {"type_vocab_size": 2})
    with pytest.raises(CheckpointError, match="no place for type_vocab_size"):
        exporting.export_folder(typed, out, words())
    with pytest.raises(CheckpointError, match="21 words"):
        exporting.export_folder(fresh("captioning"), out, longer)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    module, out = fresh("captioning"), tmp_path / "out"

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shared.files.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            exporting.export_folder(module, out, words())
    assert not list(tmp_path.iterdir())
    exporting.export_folder(module, out, words())
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError):
        exporting.export_folder(lively(module), out, words())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == written


RECIPE = {
    "_target_": "shared.data.views.recipes.RecipeViews", "size": 16, "test_resize": None,
    "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "recipes": {},
}  # fmt: skip


def checkpoint(folder: Path, module: Any) -> Path:
    """A run's checkpoint, whose data clean texts as BLIP's."""
    path = folder / "last.ckpt"
    test_predict.save(module, path, RECIPE, vocabulary=TOKENS)
    content = torch.load(path, weights_only=True)
    content["datamodule_hyper_parameters"]["text_rules"] = "blip"
    torch.save(content, path)
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = lively(fresh("captioning"))
    path, out = checkpoint(tmp_path, module), tmp_path / "out"
    assert exporting.main([f"checkpoint={path}", f"output={out}"]) == 0
    assert "BlipForConditionalGeneration" in capsys.readouterr().out
    shown = json.loads((out / "preprocessor_config.json").read_text())
    assert shown["image_mean"] == RECIPE["mean"]
    assert shown["size"] == {"height": 16, "width": 16}
    assert (out / "vocab.txt").read_text().splitlines() == TOKENS
    again = fresh("captioning")
    official.load(again, out)
    assert torch.equal(again.decoder.head.bias, module.decoder.head.bias)
    assert exporting.main([f"checkpoint={path}", f"output={out}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert exporting.main([f"checkpoint={tmp_path / 'none'}", f"output={out}2"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    for bad in ([], [f"checkpoint={path}"], [f"checkpoint={path}", "output=o", "layout=keras"]):
        assert exporting.main(bad) == 2
        assert "usage:" in capsys.readouterr().err


@needs_transformers
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_is_written(kind: str, tmp_path: Path) -> None:
    import transformers

    module = fresh(kind)
    official.load(module, RECORDED / kind)
    exporting.export_folder(module, tmp_path / "out", words())
    load = getattr(transformers, CLASSES[kind]).from_pretrained
    port, told = load(tmp_path / "out", output_loading_info=True)
    assert not any(told.values()), told
    port = port.double()
    given = load_file(RECORDED / kind / "outputs.safetensors")
    with torch.no_grad():
        if kind == "captioning":
            logits = port(given["images"], given["written"], attention_mask=given["mask"]).logits
            close(logits, given["out/logits"])
        elif kind == "retrieval":
            arguments = given["grounded"], given["images"]
            close(port(*arguments, attention_mask=given["mask"]).itm_score, given["out/enc"])
        else:
            arguments = given["grounded"], given["images"]
            lengths = {"max_length": LONGEST, "min_length": 3, "num_beams": 3, "do_sample": False}
            written = port.generate(*arguments, attention_mask=given["mask"], **lengths)
            assert torch.equal(ended(written), given["out/written"])
    processor = transformers.BlipProcessor.from_pretrained(tmp_path / "out")
    texts = ["A red doggy?", "what is this"]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = words().batch(texts)
    assert torch.equal(tokens["input_ids"], ids)
    assert torch.equal(tokens["attention_mask"], mask)
    written = torch.tensor([[BOS, 6, 10, 12, SEP], [ENC, 5, 8, PAD, PAD]])
    decoded = processor.batch_decode(written, skip_special_tokens=True)
    assert decoded == words().decode(written) == ["red doggy", "a square"]
    picture = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(picture.byte().numpy())
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    mean, std = map(torch.tensor, exporting.CLIP)
    torch.testing.assert_close(pixels, (picture / 255 - mean).div(std).permute(2, 0, 1))
    assert len(processor.tokenizer) == WORDS
