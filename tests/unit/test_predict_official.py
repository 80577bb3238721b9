"""`tenfold predict` with an official checkpoint, which an experiment of ours explains."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.nn.building import build
from shared.training.method import Method
from tests.configs import composed
from tests.unit import test_predict
from tests.unit.test_data_videos import written
from tests.unit.test_predict import read, run

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "is", "this", "yes", "no"]
WORDS += [f"w{n}" for n in range(32 - len(WORDS))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, a vocabulary and a list of answers."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "answers.json").write_text('["yes", "no", "red", "green"]')
    return tmp_path


def module_of(experiment: str, folder: Path) -> tuple[Any, list[str]]:
    """A module of the experiment, as an official file in `folder`, and the arguments that name it;
    large weights give each pair a score of its own."""
    overrides = [f"data.vocab={folder}/vocab.txt", f"data_root={folder}"]
    if "vqa" in experiment:
        overrides.append(f"data.answer_list={folder}/answers.json")
    torch.manual_seed(0)
    module: Any = build(composed(experiment, *overrides).method, Method)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    official = import_module(f"methods.{experiment.partition('/')[0]}.official")
    torch.save({"model": official.export(module), "epoch": 3}, folder / "last.ckpt")
    return module.eval(), [f"official={experiment}", listed(*overrides)]


def listed(*overrides: str) -> str:
    """The argument, with quotes as Hydra needs them."""
    return f"overrides={[*overrides]}"


def test_retrieval_as_from_our_own_checkpoint(folder: Path) -> None:
    module, arguments = module_of("albef/smoke_retrieval", folder)
    texts = "texts=[red, green, this is red]"
    found = read(run(folder, *arguments, texts), "scores.csv")
    augmentation = composed("albef/smoke_retrieval").data.augmentation
    plain = {key: augmentation[key] for key in ("_target_", "size", "mean", "std")}
    plain |= {"test_resize": None, "interpolation": "bicubic", "recipes": {}}
    plain |= {key: list(plain[key]) for key in ("mean", "std")}
    test_predict.save(module, folder / "last.ckpt", plain, vocabulary=WORDS)
    shutil.rmtree(folder / "out")
    assert found == read(run(folder, texts), "scores.csv")
    assert len({row["match_probability"] for row in found}) == 9


def test_questions_of_a_list_that_the_data_name(folder: Path) -> None:
    module, arguments = module_of("albef/smoke_vqa", folder)
    rows = read(run(folder, *arguments, "questions=[is this red]"), "answers.csv")
    module.choose_among({"yes": [2, 9, 3], "no": [2, 10, 3], "red": [2, 5, 3], "green": [2, 6, 3]})
    assert len(rows) == 3
    assert {row["answer"] for row in rows} <= set(module.ranking.answers)


def test_alpro_sees_videos(folder: Path) -> None:
    for number in range(2):
        written(folder / f"{number}.mp4", frames=8 + 8 * number, codec="libx264")
    videos = "images=null", f"videos={folder}"
    _, arguments = module_of("alpro/smoke_retrieval", folder)
    found = read(run(folder, *videos, *arguments, "texts=[red, green]"), "scores.csv")
    assert len({row["similarity"] for row in found}) == len(found) == 4
    _, arguments = module_of("alpro/smoke_vqa", folder)
    rows = read(run(folder, *videos, *arguments, "questions=[is this red]"), "answers.csv")
    assert [row["path"] for row in rows] == ["0.mp4", "1.mp4"]
    assert {row["answer"] for row in rows} <= {"yes", "no", "red", "green"}


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, arguments = module_of("albef/smoke_retrieval", folder)
    places = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]

    def said(*given: str) -> str:
        return test_predict.refused(capsys, [*places, *given, "texts=[red]"], composed=True)

    assert "albef/smoke_retrievel" in said("official=albef/smoke_retrievel")
    message = said(arguments[0], listed(f"data.vocab={folder}/none.txt"))
    assert "overrides=\"['data.KEY=PATH']\"" in message
    assert "embed_dim_" in said(arguments[0], listed("method.embed_dim_=3"))
    wider = listed("method.vision.depth=3", f"data.vocab={folder}/vocab.txt")
    with pytest.raises(SystemExit):
        test_predict.main([*places, arguments[0], wider, "texts=[red]"])
    assert "visual_encoder.blocks.2" in capsys.readouterr().err
    module_of("albef/smoke_vqa", folder)
    lacking = listed(f"data.vocab={folder}/vocab.txt", f"data.answer_list={folder}/none.json")
    assert "none.json" in said("official=albef/smoke_vqa", lacking)
    module_of("alpro/smoke_vqa", folder)
    lacking = listed(f"data.vocab={folder}/vocab.txt", "data.answer_list=null")
    assert "data.answer_list names none" in said("official=alpro/smoke_vqa", lacking)
