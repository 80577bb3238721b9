"""Adapters from captions to the annotations of pseudo boxes."""

from itertools import count
from typing import Any

import torch
from torch import Tensor

from methods.pb_ovd.mentions import ObjectWords
from methods.pb_ovd.pseudo_boxes import best_boxes, box_scores, normalised, object_maps
from methods.pb_ovd.pseudo_labels import CocoLabels, PseudoObject, names_of
from shared.data.text.cleaning import clean_caption
from shared.data.text.wordpiece import WordPiece
from shared.evaluation.attention_maps import match_saliency

from ..albef.pretraining import retrieval_module

Inputs, Outputs = dict[str, Any], dict[str, Any]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
        "fusion_layer")  # fmt: skip


def string_matching(config: dict[str, Any], inputs: Inputs, weights: Inputs) -> Outputs:
    tokenizer = WordPiece(inputs["wordpiece_vocab"])
    cleaned = [clean_caption(text, config["max_words"]) for text in inputs["captions"]]
    ids, mask = tokenizer.batch(cleaned)
    words = ObjectWords(inputs["object_vocab"], tokenizer, unknown=True)
    rows = [row[:length].tolist() for row, length in zip(ids, mask.sum(dim=1), strict=True)]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "captions_clean": cleaned,
        "tokens": [[tokenizer.tokens[number] for number in row] for row in rows],
        "object_vocab_tokenized": words.tokenized,
        "objects": [[list(found) for found in words.mentions(row)] for row in rows],
    }


def gradcam_activation(config: dict[str, Any], inputs: Inputs, weights: Inputs) -> Outputs:
    text = {name: config[name] for name in TEXT} | {"dropout": 0.0}
    more = {"text": text, "vision_mlp_ratio": 4.0, "special_tokens": {"pad": 0}, "embed_dim": 8}
    module = retrieval_module(config | more, weights).eval()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    seen = module.encoders.encode_image(inputs["image"])[0]
    found = match_saliency(module, seen, ids, mask, config["block_num"])
    maps = enumerate(found.words(mask))
    return {
        "itm_logits": found.scores,
        "image_embeds": seen,
        "attention_map": found.attention,
        **{f"act_map.{row}": tokens for row, tokens in maps},
        **{f"attention_grad.{row}": gradient for row, gradient in enumerate(found.gradient)},
    }


def box_scoring(config: dict[str, Any], inputs: Inputs, weights: Inputs) -> Outputs:
    vocabulary = inputs["object_vocab"]
    words = sorted({word for texts in vocabulary.values() for t in texts for word in t.split()})
    tokenizer = WordPiece(SPECIAL + words)
    objects = ObjectWords(vocabulary, tokenizer, unknown=False)
    outputs: Outputs = {"object_names": []}
    for row, caption in enumerate(inputs["captions"]):
        found = objects.mentions(tokenizer.batch([caption])[0][0].tolist())
        outputs["object_names"].append([mention.name for mention in found])
        lists = (inputs.get(f"proposals.{row}.{number}") for number in count())
        proposals = torch.cat(list(iter(lambda lists=lists: next(lists), None)))[:, :4]  # type: ignore[misc]
        spans = [(mention.left, mention.right) for mention in found]
        height, width = inputs["image_size"][row].tolist()
        tokens: Tensor = inputs[f"act_map.{row}"]
        maps = normalised(object_maps(tokens, spans, accumulate=True), (height, width))
        scores = box_scores(maps, proposals)
        boxes, best = best_boxes(scores, proposals)
        outputs |= {f"map.{row}.{n}": values for n, values in enumerate(maps.pixels())}
        outputs |= {
            f"best_box.{row}": boxes,
            f"best_score.{row}": best,
            f"proposal_scores.{row}": scores,
        }
    return outputs


def pseudo_label_coco(config: dict[str, Any], inputs: Inputs, weights: Inputs) -> Outputs:
    labels, choice = CocoLabels(), iter(inputs["choice"])
    images, annotations = [], []
    for path, about in inputs["pseudo_labels"].items():
        groups = names_of(PseudoObject(*found) for found in about["objects"])
        draws = [(next(choice) % len(boxes) + 0.5) / len(boxes) for boxes in groups.values()]
        name = path.removeprefix(config["root_directory"])
        image, entries = labels.add(name, (about["height"], about["width"]), groups, draws)
        images.append(image)
        annotations += entries
    return {"images": images, "annotations": annotations, "categories": labels.categories}
