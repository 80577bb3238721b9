"""Encoders, losses and training steps."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from methods.cascode.losses import match_scores, matching_loss, pairs_with
from methods.cascode.model import CodeEncoder
from methods.cascode.module import Fast, Shared, Slow
from methods.cascode.official import load_weights
from shared.losses.contrastive import InBatchContrast, in_batch_nce, similarity_logits

Config = dict[str, Any]
Values = dict[str, Any]
Weights = dict[str, Tensor]


class Layout:
    """The special tokens that a case's pairs are made of: those of RoBERTa."""

    kind = "roberta"
    start_id, separator_id = 0, 2

    def __init__(self, c: Config):
        self.pad_id, self.size = c["pad_token_id"], c["vocab_size"]

    def __len__(self) -> int:
        return self.size

    def pair(self, query: list[int], code: list[int], *_: int) -> tuple[list[int], list[int]]:
        ids = [self.start_id, *query, self.separator_id, *code, self.separator_id]
        return ids, [0] * len(ids)


def text(c: Config) -> Config:
    return {
        "vocab_size": c["vocab_size"],
        "hidden_size": c["hidden_size"],
        "num_layers": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "intermediate_size": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "type_vocab_size": c["type_vocab_size"],
        "dropout": 0.0,
        "eps": c["layer_norm_eps"],
        "pad_id": c["pad_token_id"],
        "positions_after_pad": True,
    }


def masked(ids: Tensor, c: Config) -> tuple[Tensor, Tensor]:
    return ids, (ids != c["pad_token_id"]).long()


def batch_of(queries: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor]) -> Values:
    names = "query_ids", "query_mask", "code_ids", "code_mask"
    return {
        "indices": torch.arange(len(codes[0])),
        **dict(zip(names, queries + codes, strict=True)),
    }


def encoder(weights: Weights, c: Config, pooling: str, normalize: bool) -> CodeEncoder:
    module = Fast(text=text(c), pooling=pooling, normalize=normalize)
    load_weights(module, weights)
    return module.encoder.eval()


def roberta_encoder_pooling(c: Config, inputs: Values, weights: Weights) -> Values:
    mean = encoder(weights, c, "mean", True)
    first, pooler = (encoder(weights, c, pooling, False) for pooling in ("cls", "pooler"))
    found: Values = {}
    with torch.no_grad():
        for side in ("code", "nl"):
            ids, mask = masked(inputs[f"{side}_ids"], c)
            found[f"{side}.hidden"] = mean.text.encode(ids, mask) * mask[..., None]
            found[f"{side}.cls"] = first(ids, mask)
            found[f"{side}.pooler"] = pooler(ids, mask)
            found[f"{side}.mean_l2"] = mean(ids, mask)
    for name, vector in (("unixcoder", "mean_l2"), ("graphcodebert", "pooler")):
        found[f"scores.{name}"] = similarity_logits(
            found[f"nl.{vector}"], found[f"code.{vector}"], 1
        )
    return found


def infonce_loss(c: Config, inputs: Values, weights: Weights) -> Values:
    found: Values = {}
    for name, variant in c["variants"].items():
        raw = {side: inputs[side].clone().requires_grad_() for side in ("nl_vec", "code_vec")}
        sides = list(raw.values())
        if variant["normalize"]:
            sides = [torch.nn.functional.normalize(side, dim=1) for side in sides]
        queries, codes = sides
        temperature = variant["temperature"]
        logits = similarity_logits(queries, codes, temperature)
        loss = in_batch_nce(queries, codes, temperature)
        loss.backward()
        found |= {
            f"{name}.scores": similarity_logits(queries, codes, 1.0),
            f"{name}.probs": logits.softmax(dim=1),
            f"{name}.per_sample": torch.stack(
                [in_batch_nce(queries[i : i + 1], codes, temperature, i) for i in range(len(codes))]
            ),
            f"{name}.loss": loss,
            f"{name}.loss_symmetric": InBatchContrast(symmetric=True)(queries, codes, temperature),
            **{f"{name}.grad.{side}": value.grad for side, value in raw.items()},
        }
    return found


class Record(pl.Callback):
    """What a training run does, under the official names."""

    def __init__(self, names: dict[str, str]):
        self.names, self.found, self.rates = names, {}, []

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        parameters = dict(module.named_parameters())
        if trainer.global_step == 0:
            for official, ours in self.names.items():
                self.found[f"grad.{official}"] = parameters[ours].grad.clone()
            norms = [p.grad.norm() for p in parameters.values()]
            self.found["grad_norm"] = torch.stack(norms).norm()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        parameters = dict(module.named_parameters())
        step = trainer.global_step
        if step == 1:
            self.found["loss"] = outputs["loss"].detach()
        for official, ours in self.names.items():
            self.found[f"after{step}.{official}"] = parameters[ours].detach().clone()


class Data(pl.LightningDataModule):
    """The same batch in every step."""

    lengths: ClassVar[dict[str, int]] = {}

    def __init__(self, batch: Values, c: Config):
        super().__init__()
        self.batch, self.steps, self.tokenizer = batch, c["total_steps"], Layout(c)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps, batch_size=None)


def biencoder_step(c: Config, inputs: Values, weights: Weights) -> Values:
    module = Fast(
        text=text(c),
        pooling=c["pooling"],
        normalize=c["normalize"],
        temperature=1 / c["scale"],
        lr=c["lr"],
        betas=c["betas"],
        eps=c["eps"],
        weight_decay=c["weight_decay"],
        clip_norm=c["max_grad_norm"],
    )
    report = load_weights(module, weights)
    queries, codes = (masked(inputs[f"{side}_ids"], c) for side in ("nl", "code"))
    with torch.no_grad():
        found: Values = {"nl_vec": module.encoder(*queries), "code_vec": module.encoder(*codes)}
    found["scores"] = similarity_logits(found["nl_vec"], found["code_vec"], 1.0)
    record = Record(dict(report.mapped))
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=c["total_steps"],
        callbacks=[record],
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(module, datamodule=Data(batch_of(queries, codes), c))
    return found | record.found | {"lr_steps": torch.tensor(record.rates[: c["steps_run"]])}


biencoder_step_unixcoder = biencoder_step_graphcodebert = biencoder_step


def cross_encoder(c: Config, inputs: Values, weights: Weights) -> Values:
    module = Slow(fast="", text=text(c), head_dropout=0.0)
    report = load_weights(module, weights)
    first = module.encoder.first(*masked(inputs["input_ids"], c))
    logits = module.classifier(first)
    scores = match_scores(logits)
    loss = matching_loss(scores, inputs["labels"].float())
    loss.backward()
    parameters = dict(module.named_parameters())
    return {
        "logits": logits,
        "loss": loss,
        "p_match": scores.sigmoid(),
        "score_logit_difference": scores,
        **{f"grad.{official}": parameters[ours].grad for official, ours in report.mapped},
    }


def binary_rerank_loss(c: Config, inputs: Values, weights: Weights) -> Values:
    positive, negative = (inputs[name].clone().requires_grad_() for name in ("z_pos", "z_neg"))
    pairs = pairs_with(inputs["neg_index"])
    scores = torch.cat([positive, negative])
    loss = matching_loss(scores, pairs.labels)
    loss.backward()
    two_class = matching_loss(match_scores(inputs["two_class_logits"]), pairs.labels)
    each = [matching_loss(scores[i : i + 1], pairs.labels[i : i + 1]) for i in range(len(scores))]
    return {
        "pair_rows": pairs.queries,
        "pair_cols": pairs.codes,
        "labels": pairs.labels,
        "per_pair": torch.stack(each),
        "loss": loss,
        "loss_sum_form": (1 + c["negatives_per_query"]) * loss,
        "two_class_loss": two_class,
        "grad.z_pos": positive.grad,
        "grad.z_neg": negative.grad,
    }


def shared_joint_loss(c: Config, inputs: Values, weights: Weights) -> Values:
    module = Shared(
        text=text(c),
        pooling=c["pooling"],
        normalize=c["normalize"],
        temperature=c["temperature"],
        weight_fast=c["weight_fast"],
        weight_slow=c["weight_slow"],
        head_dropout=0.0,
    )
    report = load_weights(module, weights)
    layout = Layout(c)
    module.tokenizer, module.lengths = layout, {"pair": 512, "query": 512}
    queries, codes = (masked(inputs[f"{side}_ids"], c) for side in ("nl", "code"))

    def body(ids: Tensor, mask: Tensor) -> list[list[int]]:
        """Without <s> and </s>."""
        return [row[keep.bool()][1:-1].tolist() for row, keep in zip(ids, mask, strict=True)]

    tokens = {"query_tokens": body(*queries), "code_tokens": body(*codes)}
    batch = batch_of(queries, codes) | tokens
    module.draw_pairs = lambda *_: pairs_with(inputs["neg_index"])
    terms: dict[str, Tensor] = {}
    original = module.total_loss

    def note(losses: dict[str, Tensor], *rest: Any) -> Tensor:
        terms.update(losses)
        return original(losses, *rest)

    module.total_loss = note
    loss = module.training_step(batch, 0)

    pairs = pairs_with(inputs["neg_index"])
    rows = [
        torch.tensor(layout.pair(batch["query_tokens"][q], batch["code_tokens"][k])[0])
        for q, k in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
    ]
    pair_ids = torch.full((len(rows), queries[0].shape[1] + codes[0].shape[1] - 1), layout.pad_id)
    for row, ids in zip(pair_ids, rows, strict=True):
        row[: len(ids)] = ids
    with torch.no_grad():
        vectors = {"nl_vec": module.encoder(*queries), "code_vec": module.encoder(*codes)}
        logits = module.classifier(module.encoder.first(*masked(pair_ids, c)))
    found: Values = {
        **vectors,
        "scores": similarity_logits(vectors["nl_vec"], vectors["code_vec"], 1.0),
        "pair_ids": pair_ids,
        "logits": logits,
        "loss": loss,
        "loss_fast": terms["loss_fast"],
        "loss_slow": terms["loss_slow"],
        "loss_unweighted_sum": terms["loss_fast"] + terms["loss_slow"],
    }
    parameters = dict(module.named_parameters())
    sources = {"": loss, "fast.": terms["loss_fast"], "slow.": terms["loss_slow"]}
    for prefix, source in sources.items():
        module.zero_grad()
        source.backward(retain_graph=True)
        for official, ours in report.mapped:
            if (gradient := parameters[ours].grad) is not None:
                found[f"{prefix}grad.{official}"] = gradient.clone()
    return found
