"""Adapters of writing: captions by beams and by sampling, and answers."""

import torch
from torch import Tensor

from methods.blip import vqa as vqa_module
from methods.blip.network import opened
from shared.nn.generation import CachedDecoder, Generation, discouraged, nucleus

from ..recording import recording
from .building import Config, Inputs, Outputs, answering, batch_of, captioning, gradients


def caption_generate(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    assert config["early_stopping"] is False
    outputs: Outputs = {}
    for name, settings in config["settings"].items():
        length_penalty = {"length_penalty": config["length_penalty"]}
        module = captioning(config, weights, **settings, **length_penalty).eval()
        assert module.generation.end_id == config["eos_token_id"]
        batch = batch_of(inputs)
        with recording((module.decoder, "write")) as calls:
            sequences = module.predict_step(batch, 0)
        outputs[f"{name}.sequences"] = sequences
        outputs[f"{name}.sequences_scores"] = calls["write"][0].result.scores
        outputs["prompt_input_ids"] = sequences[0, : 1 + len(config["prompt_token_ids"])]
    return outputs


def caption_sample_probs(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """The distribution of each next word, after the words that were drawn there."""
    named = ("max_length", "min_length", "repetition_penalty", "top_k", "top_p")
    settings = {name: config[name] for name in named}
    module = captioning(config, weights, sample=True, **settings).eval()
    transformer, head = module.decoder.transformer, module.decoder.head
    context = transformer.project(module.visual_encoder(inputs["image"]))
    sequences, prompt = inputs["sequences"], 1 + len(config["prompt_token_ids"])
    room = sequences.shape[1]
    decoder = CachedDecoder(transformer, head, context, room)
    steps: list[Tensor] = []
    with torch.no_grad():
        unread = sequences[:, :prompt]
        for length in range(prompt, room):
            logits = discouraged(decoder(unread), sequences[:, :length], module.generation)
            steps.append(nucleus(logits, module.generation))
            unread = sequences[:, length : length + 1]
        replayed = _replayed(module.generation, steps, sequences, prompt)
        batch = batch_of(inputs)
        module.caption_draws = lambda indices: replayed  # type: ignore[method-assign]
        drawn = module.predict_step(batch, 0)
    ended = (sequences[:, prompt:] == config["eos_token_id"]).cumsum(dim=1)
    ended = torch.nn.functional.pad(ended, (1, -1)).bool()
    assert torch.equal(drawn[:, prompt:][~ended], sequences[:, prompt:][~ended])
    probabilities = torch.stack(steps, dim=1)
    return {"step_probs": probabilities, "step_kept": (probabilities > 0).long()}


def _replayed(settings: Generation, steps: list[Tensor], sequences: Tensor, prompt: int) -> Tensor:
    """Uniform numbers by which sampling draws the given words."""
    uniforms = torch.zeros(len(sequences), settings.max_length)
    for step, probabilities in enumerate(steps):
        word = sequences[:, prompt + step, None]
        ends = probabilities.double().cumsum(dim=1)
        own = probabilities.double().gather(1, word)
        uniforms[:, step] = (ends.gather(1, word) - own / 2)[:, 0]
    return uniforms


def _questions(inputs: Inputs) -> Inputs:
    named = {name: inputs[f"question_{name}"] for name in ("input_ids", "attention_mask")}
    return batch_of(inputs) | named


def vqa_train_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = answering(config, weights).train()
    batch = _questions(inputs) | {
        "answer_ids": inputs["answer_input_ids"],
        "answer_mask": inputs["answer_attention_mask"],
        "answer_counts": inputs["n"],
        "answer_weights": inputs["weights"],
    }
    hidden: dict[str, Tensor] = {}
    network = module.encoders
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: hidden.update({name: out}))
        for name, part in (("question", network.text_encoder), ("answer", network.text_decoder))
    ]
    with recording((vqa_module, "text_sums")) as calls:
        loss = module.training_step(batch, 0)
    for hook in hooks:
        hook.remove()
    loss.backward()
    return {
        "loss": loss,
        "answer_loss": calls["text_sums"][0].result,
        "answer_logits": network.word_head(hidden["answer"], network.text_decoder.embeddings.word),
        "question_states": hidden["question"],
        **gradients(module),
    }


def vqa_rank_answers(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    ids, mask = inputs["answer_input_ids"], inputs["answer_attention_mask"]
    assert torch.equal(ids, opened(ids, config["special_tokens"]["dec_bos"]))
    rows = zip(ids, mask, strict=True)
    answers = {str(n): row[keep.bool()].tolist() for n, (row, keep) in enumerate(rows)}
    passes = {"candidates_per_pass": 2 * len(inputs["image"])}  # several
    module = answering(config, weights, answers=answers, **passes).eval()
    batch = _questions(inputs)
    names = ("first_token_log_probs", "forward")
    with recording(*((module.ranking, name) for name in names)) as calls, torch.no_grad():
        answered = module.answer(batch)
    first = calls["first_token_log_probs"][0].result.exp()
    candidates, scores = calls["forward"][0].result
    order = candidates.argsort(dim=1)
    return {
        "answer_index": torch.tensor([int(answer) for answer, _ in answered]),
        "first_token_prob": first,
        "topk_prob": first.gather(1, candidates),
        "topk_index_sorted": candidates.gather(1, order),
        "candidate_score_by_sorted_index": scores.gather(1, order),
    }


def vqa_generate(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = answering(config, weights, reads_padding=True).eval()
    assert module.generation.end_id == config["eos_token_id"]
    sequences, scores = module.write(_questions(inputs))
    return {"sequences": sequences, "sequences_scores": scores}
