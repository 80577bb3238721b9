"""`tenfold predict checkpoint=FILE images=DIR [output=DIR]`: a folder of images through a model.

With `videos=DIR` instead a model of videos sees some frames of each, chosen as in the evaluation of
its data; all below that speaks of images then holds for videos.

Writes predictions.csv (path, class, probability, one probability per class) and contact_sheet.png.
A self-supervised model knows no classes: its embeddings are grouped by k-means, and the group
stands for the class, the cosine to the group's centre for the probability, followed by the
embedding itself.

With `texts=FILE` (one a line) or `texts='[a dog, a red apple]'` an image-text model compares each
image with each text: scores.csv, predictions.csv with the best text of each image, and
contact_sheet.png with the best images of each text; `overlays=N` draws where it looks in the N
best. With `questions=...` a model for visual question answering writes answers.csv. A model that
writes captions needs neither, and writes captions.csv.

A detector writes detections.json, which has an entry in COCO's form for each object with a score of
`min_score` or more, at most `max_detections` of an image; picture_N.png of each image of the sheet,
and contact_sheet.png.

An official checkpoint names neither module nor data: `official=albef/retrieval_coco` does.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shared.checkpoints.reading import CheckpointError
from shared.experiments import CONF
from shared.predict import USAGE, missing
from shared.predict.answers import predict_answers
from shared.predict.captions import predict_captions
from shared.predict.detections import predict_detections
from shared.predict.images import predict_images
from shared.predict.inputs import (
    Pictures,
    PredictError,
    Videos,
    find_inputs,
    load_predictor,
    read_texts,
)
from shared.predict.official import load_official
from shared.predict.outputs import write
from shared.predict.texts import predict_texts
from shared.showing import printable

MOST_NAMED = 10  # of the files that are written
MOST = 100_000  # images of a batch or a sheet, groups, overlays, layers
LEAST = {"batch_size": 1, "sheet_images": 0, "groups": 1, "overlays": 0, "overlay_layer": 0}
LEAST["max_detections"] = 1


def main(argv: Sequence[str]) -> None:
    """Predict as overrides that are spelt right say. Errors: see `one_line_errors`."""
    with one_line_errors("predict"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("predict", list(argv))
        predict(config)


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Ends the program where the block fails. What is wrong goes to stderr in one line, with exit
    status 2; what nobody foresaw says its type and ends with 1, Ctrl-C with 130."""

    def end(status: int, said: str) -> None:
        print(f"tenfold {command}: {said}", file=sys.stderr)
        sys.exit(status)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (PredictError, CheckpointError, FileNotFoundError) as error:
        end(2, str(error))
    except (OSError, HydraException, OmegaConfBaseException) as error:
        end(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        end(130, "stopped")
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        end(1, f"{said} (HYDRA_FULL_ERROR=1 shows where)")


def predict(config: DictConfig) -> Path:
    """Predict as conf/predict.yaml says; returns the folder written to. PredictError of what cannot
    be used, CheckpointError and FileNotFoundError from reading the checkpoint."""
    keys = ("checkpoint", "images", "videos")
    given = {key for key in keys if not OmegaConf.is_missing(config, key) and config[key]}
    if lacking := missing(given):
        raise PredictError(f"{lacking} not given; usage: {USAGE}")
    if {"images", "videos"} <= given:
        raise PredictError("images and videos are given: choose one of them")
    if config.texts is not None and config.questions is not None:
        raise PredictError("texts and questions are given: choose one of them")
    for key, least in LEAST.items():
        automatic = key == "overlay_layer" and config[key] is None
        if not (automatic or (isinstance(config[key], int) and least <= config[key] <= MOST)):
            raise PredictError(f"{key}={config[key]}: a whole number from {least} to {MOST}")
    score = config.min_score
    if isinstance(score, bool) or not (isinstance(score, int | float) and 0 <= score <= 1):
        raise PredictError(f"min_score={score}: a number from 0 to 1")
    kind = "videos" if "videos" in given else "images"
    root, output = Path(str(config[kind])), Path(str(config.output))
    paths = find_inputs(root, kind)
    texts, questions = (
        None if config[key] is None else read_texts(config[key], key)
        for key in ("texts", "questions")
    )
    checkpoint, device = Path(str(config.checkpoint)), str(config.device)
    if config.official is None:
        predictor = load_predictor(checkpoint, device)
    else:
        predictor = load_official(checkpoint, config.official, config.overrides, device)
    predictor = predictor.showing(config.frames)
    if kind == "videos":
        images: Pictures = Videos(root, paths, predictor)
    else:
        images = Pictures(root, paths, predictor.image_mode)
    sizes = config.batch_size, config.sheet_images

    if texts is not None:
        layer = config.overlay_layer
        found = predict_texts(predictor, images, texts, *sizes, config.overlays, layer)
    elif questions is not None:
        found = predict_answers(predictor, images, questions, *sizes)
    elif hasattr(predictor.module, "answer"):
        name = type(predictor.module).__name__
        raise PredictError(f"{name} answers questions: give questions=FILE or a list of them")
    elif predictor.framing is not None:
        found = predict_detections(predictor, images, *sizes, score, config.max_detections)
    elif hasattr(predictor.module, "captions"):
        found = predict_captions(predictor, images, *sizes)
    else:
        found = predict_images(predictor, images, *sizes, config.groups)
    written = [write(output / name, content) for name, content in found]

    for path, reason in images.corrupt.items():
        print(printable(f"skipped, unreadable: {path} ({reason})"), file=sys.stderr)
    skipped, files = len(images.corrupt), ", ".join(map(str, written[-MOST_NAMED:]))
    if len(written) > MOST_NAMED:
        files = f"{len(written) - MOST_NAMED} pictures, {files}"
    print(f"{len(images) - skipped} {kind} predicted, {skipped} unreadable skipped: {files}")
    return output
