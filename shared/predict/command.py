"""`tenfold predict checkpoint=FILE images=DIR [output=DIR]`: a folder of images through a model.

Writes predictions.csv (path, class, probability, one probability per class) and contact_sheet.png.
A self-supervised model knows no classes: its embeddings are grouped by k-means, and the group
stands for the class, the cosine to the group's centre for the probability, followed by the
embedding itself.

With `texts=FILE` (one a line) or `texts='[a dog, a red apple]'` an image-text model compares each
image with each text: scores.csv, predictions.csv with the best text of each image, and
contact_sheet.png with the best images of each text; `overlays=N` draws where it looks in the N
best. With `questions=...` a model for visual question answering writes answers.csv.
"""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from shared.checkpoints.reading import CheckpointError
from shared.overrides import CONF, OverrideError, validate
from shared.predict import USAGE
from shared.predict.answers import answers_questions, predict_answers
from shared.predict.images import predict_images
from shared.predict.inputs import (
    PredictError,
    find_images,
    load_predictor,
    open_images,
    read_texts,
)
from shared.predict.texts import predict_texts

MOST = 100_000  # images of a batch or a sheet, groups, overlays


def main(argv: Sequence[str], checked: bool = False) -> None:
    """Console entry. What is wrong goes to stderr in one line, with exit status 2.

    What nobody foresaw says its type as well, and ends with 1; Ctrl-C ends with 130.

    Args:
        checked: whether the names of the keys have been checked already.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        if not checked:
            validate(argv, "predict")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("predict", list(argv))
        predict(config)
    except (OverrideError, PredictError, CheckpointError, FileNotFoundError) as error:
        print(f"tenfold predict: {error}", file=sys.stderr)
        sys.exit(2)
    except (OSError, OmegaConfBaseException) as error:
        print(f"tenfold predict: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("tenfold predict: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        said = " ".join(str(error).split())
        print(
            f"tenfold predict: {type(error).__name__}: {said} (HYDRA_FULL_ERROR=1 shows where)",
            file=sys.stderr,
        )
        sys.exit(1)


def predict(config: DictConfig) -> Path:
    """Predict as conf/predict.yaml says; returns the folder written to.

    Raises:
        PredictError: no images, none readable, a checkpoint without an image transform, or texts
            or questions that its model cannot read.
        CheckpointError, FileNotFoundError: from reading the checkpoint.
    """
    missing = [key for key in ("checkpoint", "images") if key not in config or not config[key]]
    if missing:
        raise PredictError(f"{' and '.join(missing)} not given; usage: {USAGE}")
    if config.texts is not None and config.questions is not None:
        raise PredictError("texts and questions are given: choose one of them")
    least = {"batch_size": 1, "sheet_images": 0, "groups": 1, "overlays": 0}
    for key, smallest in least.items():
        if not (isinstance(config[key], int) and smallest <= config[key] <= MOST):
            raise PredictError(f"{key}={config[key]}: a whole number from {smallest} to {MOST}")
    layer = config.overlay_layer
    if not (layer is None or (isinstance(layer, int) and 0 <= layer <= MOST)):
        raise PredictError(f"overlay_layer={layer}: a whole number from 0 on, or null")
    root, output = Path(str(config.images)), Path(str(config.output))
    paths = find_images(root)
    texts = None if config.texts is None else read_texts(config.texts, "texts")
    questions = None if config.questions is None else read_texts(config.questions, "questions")
    predictor = load_predictor(Path(str(config.checkpoint)), str(config.device))
    images = open_images(paths, predictor.image_mode)
    base = root if root.is_dir() else root.parent
    sizes = {"batch_size": config.batch_size, "sheet_images": config.sheet_images}

    if texts is not None:
        shown = {"overlays": config.overlays, "overlay_layer": config.overlay_layer}
        written = predict_texts(predictor, images, base, output, texts, **sizes, **shown)
    elif questions is not None:
        written = predict_answers(predictor, images, base, output, questions, **sizes)
    elif answers_questions(predictor.module):
        name = type(predictor.module).__name__
        raise PredictError(f"{name} answers questions: give questions=FILE or a list of them")
    else:
        written = predict_images(predictor, images, base, output, **sizes, groups=config.groups)

    for path, reason in images.corrupt.items():
        print(f"skipped, unreadable: {path} ({reason})", file=sys.stderr)
    read, skipped = len(images) - len(images.corrupt), len(images.corrupt)
    files = ", ".join(map(str, written))
    print(f"{read} images predicted, {skipped} unreadable skipped: {files}")
    return output
