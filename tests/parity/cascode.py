"""Adapters of the CasCode cases; what each name means is said in the case's `case.json`."""

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader

from methods.cascode import cleaning, duplicates
from methods.cascode.losses import match_scores, matching_loss, pairs_with
from methods.cascode.model import CodeEncoder
from methods.cascode.module import Fast, Shared, Slow
from methods.cascode.official import load
from methods.cascode.ranking import Cascade, diagonal_ranks, mrr, ranks, recall, top_k
from methods.cascode.scoring import pad
from methods.cascode.tokenizer import CodeTokenizer
from shared.losses.contrastive import InBatchContrast, in_batch_nce, similarity_logits

from .recording import quiet_trainer, recording

Config = dict[str, Any]
Values = dict[str, Any]
Weights = dict[str, Tensor]


# --- encoders, losses and training steps ---


class Layout:
    """The special tokens that a case's pairs are made of: those of RoBERTa."""

    kind = "roberta"
    start_id, separator_id = 0, 2

    def __init__(self, c: Config):
        self.pad_id = c["pad_token_id"]

    def pair(self, query: list[int], code: list[int], *_: int) -> tuple[list[int], list[int]]:
        ids = [self.start_id, *query, self.separator_id, *code, self.separator_id]
        return ids, [0] * len(ids)


def text(c: Config) -> Config:
    return {
        "vocab_size": c["vocab_size"], "hidden_size": c["hidden_size"],
        "num_layers": c["num_hidden_layers"], "num_heads": c["num_attention_heads"],
        "intermediate_size": c["intermediate_size"],
        "max_positions": c["max_position_embeddings"],
        "type_vocab_size": c["type_vocab_size"], "dropout": 0.0, "eps": c["layer_norm_eps"],
        "pad_id": c["pad_token_id"], "positions_after_pad": True,
    }  # fmt: skip


def masked(ids: Tensor, c: Config) -> tuple[Tensor, Tensor]:
    return ids, (ids != c["pad_token_id"]).long()


def batch_of(queries: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor]) -> Values:
    names = ("query_ids", "query_mask", "code_ids", "code_mask", "indices")
    return dict(zip(names, (*queries, *codes, torch.arange(len(codes[0]))), strict=True))


def encoder(weights: Weights, c: Config, pooling: str, normalize: bool) -> CodeEncoder:
    module = Fast(text=text(c), pooling=pooling, normalize=normalize)
    load(module, weights)
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


def biencoder_step(c: Config, inputs: Values, weights: Weights) -> Values:
    same = ("pooling", "normalize", "lr", "betas", "eps", "weight_decay")
    options = {name: c[name] for name in same} | {"clip_norm": c["max_grad_norm"]}
    module = Fast(text=text(c), temperature=1 / c["scale"], **options)
    report = load(module, weights)
    queries, codes = (masked(inputs[f"{side}_ids"], c) for side in ("nl", "code"))
    with torch.no_grad():
        found: Values = {"nl_vec": module.encoder(*queries), "code_vec": module.encoder(*codes)}
    found["scores"] = similarity_logits(found["nl_vec"], found["code_vec"], 1.0)
    record = Record(dict(report.mapped))
    module.attach = lambda _: None  # the batches need no tokeniser
    trainer = quiet_trainer(record, max_epochs=1, limit_train_batches=c["total_steps"])
    batches = [batch_of(queries, codes)] * c["total_steps"]
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return found | record.found | {"lr_steps": torch.tensor(record.rates[: c["steps_run"]])}


biencoder_step_unixcoder = biencoder_step_graphcodebert = biencoder_step


def cross_encoder(c: Config, inputs: Values, weights: Weights) -> Values:
    module = Slow(fast="", text=text(c), head_dropout=0.0)
    report = load(module, weights)
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
    same = ("pooling", "normalize", "temperature", "weight_fast", "weight_slow")
    module = Shared(text=text(c), head_dropout=0.0, **{name: c[name] for name in same})
    report = load(module, weights)
    layout = Layout(c)
    module.tokenizer, module.lengths = layout, {"pair": 512, "query": 512}
    queries, codes = (masked(inputs[f"{side}_ids"], c) for side in ("nl", "code"))

    def body(ids: Tensor, mask: Tensor) -> list[list[int]]:
        """Without <s> and </s>."""
        return [row[keep.bool()][1:-1].tolist() for row, keep in zip(ids, mask, strict=True)]

    tokens = {"query_tokens": body(*queries), "code_tokens": body(*codes)}
    batch = batch_of(queries, codes) | tokens
    module.judge.draw_pairs = lambda *_: pairs_with(inputs["neg_index"])
    with recording((module, "total_loss")) as calls:
        loss = module.training_step(batch, 0)
    terms = calls["total_loss"][0].arguments["terms"]

    pairs = pairs_with(inputs["neg_index"])
    rows = [
        layout.pair(batch["query_tokens"][q], batch["code_tokens"][k])[0]
        for q, k in zip(pairs.queries.tolist(), pairs.codes.tolist(), strict=True)
    ]
    pair_ids, _ = _padded(rows, queries[0].shape[1] + codes[0].shape[1] - 1, layout.pad_id)
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


# --- layout and truncation of pairs and of single sequences ---


def pair_encoding(config: Config, inputs: Values, weights: Weights) -> Values:
    """Padded as the case is: pairs with the official script's id, which the mask hides anyway."""
    tokenizer = _whitespace_tokenizer(inputs["vocab"])
    texts = {
        side: tokenizer.encode([" ".join(item[f"{side}_tokens"]) for item in inputs["items"]])
        for side in ("query", "code")
    }
    limits = config["max_seq_length"], config["max_query_tokens_in_pair"]
    pairs = [tokenizer.pair(q, c, *limits) for q, c in zip(*texts.values(), strict=True)]
    assert not any(any(types) for _, types in pairs), "RoBERTa has no token types"
    rows = [ids for ids, _ in pairs]
    pair_ids, pair_mask = _padded(rows, limits[0], config["pair_pad_id_official"])
    singles = {
        name: [tokenizer.single(ids, config[f"{name}_length"]) for ids in texts[side]]
        for name, side in (("nl", "query"), ("code", "code"))
    }
    padded = {
        name: _padded(rows, config[f"{name}_length"], tokenizer.pad_id)[0]
        for name, rows in singles.items()
    }
    return {
        "pair_ids": pair_ids,
        "pair_mask": pair_mask,
        "pair_length": [len(row) for row in rows],
        "code_ids": padded["code"],
        "nl_ids": padded["nl"],
    }


def _whitespace_tokenizer(vocabulary: dict[str, int]) -> CodeTokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return CodeTokenizer(path, mode="<encoder-only>")


def _padded(rows: list[list[int]], length: int, value: int) -> tuple[Any, Any]:
    """To a given length, by a row of that length that is then taken away."""
    ids, mask = pad([*rows, [value] * length], value)
    return ids[:-1], mask[:-1]


# --- ranks, protocols and the order of the cascade ---


def mrr_protocol(config: Config, inputs: Values, weights: Weights) -> Values:
    def of(scores: str, ties: Any = "pessimistic") -> Tensor:
        ids = inputs["query_ids"], inputs["code_ids"]
        return ranks(inputs[scores], *ids, ties=ties, allow_missing=True)

    found = of("scores")
    outputs: Values = {
        "scores.rank": found,
        "scores.mrr": mrr(found, config["cutoff"]),
        "scores.mrr_small_cutoff": mrr(found, config["small_cutoff"]),
        "batched.rank": diagonal_ranks(inputs["batched_scores"]),
    }
    outputs["batched.mrr"] = mrr(outputs["batched.rank"])
    for name, scores, ties in (
        ("tied", "tied_scores", "optimistic"),
        ("tied", "tied_scores", "pessimistic"),
        ("constant", "constant_scores", "pessimistic"),
    ):
        found = of(scores, ties)
        outputs |= {f"{name}.rank_{ties}": found, f"{name}.mrr_{ties}": mrr(found)}
    return outputs


def cascade_ranking(config: Config, inputs: Values, weights: Weights) -> Values:
    fast, slow, truth = inputs["fast_scores"], inputs["slow_scores"], inputs["gt"]
    ids = truth, torch.arange(config["candidates"])
    positions = ranks(fast, *ids, ties="index", allow_missing=True)
    outputs: Values = {
        "fast.ranking": top_k(fast, config["candidates"]),
        **_ranked("fast", positions, ranks(fast, *ids, allow_missing=True)),
    }
    for k in config["K"]:
        chosen = top_k(fast, k)
        order = Cascade(fast, chosen, slow.gather(1, chosen))
        outputs[f"k{k}.topk"] = chosen
        outputs[f"k{k}.ranking"] = order.ranking()
        outputs[f"k{k}.recall"] = recall(positions, k)
        outputs |= _ranked(
            f"k{k}",
            order.ranks(*ids, allow_missing=True, ties="index"),
            order.ranks(*ids, allow_missing=True),
        )
    return outputs


def _ranked(name: str, positions: Tensor, pessimistic: Tensor) -> Values:
    return {
        f"{name}.rank": positions,
        f"{name}.rank_pessimistic": pessimistic,
        f"{name}.mrr": mrr(positions),
        f"{name}.mrr_pessimistic": mrr(pessimistic),
    }


# --- cleaning of data ---


def docstring_rules(config: Config, inputs: Values, weights: Weights) -> Values:
    summaries = [cleaning.summary(text) for text in inputs["docstrings"]]
    return {
        "summary": summaries,
        "tokens": [cleaning.documentation_tokens(text) for text in summaries],
        "stripped": [cleaning.strip_comment_delimiters(comment) for comment in inputs["comments"]],
    }


def code_cleaning(config: Config, inputs: Values, weights: Weights) -> Values:
    return {
        "python": [cleaning.without_comments(source, "python") for source in inputs["python"]],
        "c_like": [cleaning.without_comments(source, "java") for source in inputs["c_like"]],
    }


def near_duplicates(config: Config, inputs: Values, weights: Weights) -> Values:
    documents = [cleaning.identifiers(tokens, config["language"]) for tokens in inputs["documents"]]
    accepted = [len(tokens) >= config["min_identifier_tokens"] for tokens in documents]
    compared = [i for i, long_enough in enumerate(accepted) if long_enough]
    clusters = duplicates.near_duplicates(
        [documents[i] for i in compared], config["set_threshold"], config["multiset_threshold"]
    )
    return {
        "accepted": accepted,
        "clusters": [[compared[i] for i in cluster] for cluster in clusters],
    }
