"""A small text tower that has learned which texts name the same things.

Its first layers, those which ALBEF contrasts with images, learn to read a caption as the vector
that the vision tower has learned for its concept, and any word of the vocabulary as MiniLM does;
all of them learn to fill in words. The file has BERT's names: it is an `initial.text`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.miniatures.code.sources import minilm
from benchmarks.miniatures.sentences import sentence_vectors
from benchmarks.zoo.projections import projection_of
from shared.checkpoints.official import KeyTable, export_official
from shared.checkpoints.pretrained_text import bert_rules, word_head_rules
from shared.data.text.cleaning import clean_caption
from shared.data.text.wordpiece import WordPiece
from shared.files import read_json, replacing
from shared.losses.language import IGNORED, MaskDraws, mask_tokens, masked_lm_loss
from shared.nn.building import call
from shared.nn.text_transformer import LanguageHead, TextTransformer, attention_mask

STEPS, BATCH, RATE, SEED = 2500, 128, 2e-3, 0


class Student(nn.Module):
    """Layers as in ALBEF's text encoder, whose first `reading` ones end in a sentence vector."""

    def __init__(self, sizes: dict[str, Any], width: int):
        super().__init__()
        self.reading = sizes["cross_attention_from"]
        kept = {key: value for key, value in sizes.items() if key != "cross_attention_from"}
        self.text = TextTransformer(**kept)
        self.word_head = LanguageHead(
            kept["vocab_size"], self.text.width, initial_std=kept["initial_std"]
        )
        self.sentence = nn.Linear(self.text.width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> sentence vectors (B, width) of unit norm, hidden states (B, L, D)."""
        hidden, visible = self.text.embeddings(ids), attention_mask(mask)
        for layer in self.text.layers[: self.reading]:
            hidden = layer(hidden, visible)
        vectors = F.normalize(self.sentence(hidden[:, 0]), dim=1)
        for layer in self.text.layers[self.reading :]:
            hidden = layer(hidden, visible)
        return vectors, hidden


def directions(texts: list[str], teacher: Path, width: int) -> Tensor:
    """(N, width) of unit norm: the teacher's vectors in the directions of their largest spread."""
    found = sentence_vectors(texts, teacher)
    centred = F.normalize(found - found.mean(dim=0), dim=1)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    return F.normalize(centred @ basis.T, dim=1)


def train(method: dict[str, Any], texts: list[str], vocab: Path, targets: Tensor) -> Student:
    """A student of the sizes in `method` that reads `texts` as `targets` (N, width) say."""
    torch.manual_seed(SEED)
    sizes, generator = method["text"], torch.Generator().manual_seed(SEED)
    student, tokenizer = Student(sizes, targets.shape[1]), WordPiece(vocab)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in track(range(STEPS), "text tower", disable=not sys.stderr.isatty()):
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        ids, mask = tokenizer.batch([texts[row] for row in rows])
        uniforms = torch.rand(*ids.shape, 4, generator=generator)
        draws = MaskDraws.from_uniforms(uniforms, sizes["vocab_size"], 0.15)
        masked, labels = mask_tokens(
            ids, draws, student.text.pad_id, method["cls_id"], method["mask_id"]
        )
        vectors, hidden = student(torch.cat([ids, masked]), torch.cat([mask, mask]))
        selected = labels != IGNORED
        words = student.word_head(hidden[BATCH:][selected], student.text.embeddings.word)
        alike = 1 - (vectors[:BATCH] * targets[rows]).sum(dim=1).mean()
        loss = alike + 0.1 * masked_lm_loss(words, labels[selected])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            cosine = 1 - alike.item()
            print(f"text tower, step {step + 1}: cosine {cosine:.3f} to the teacher", flush=True)
    return student


def write(student: Student, path: Path) -> None:
    """Write the tower under BERT's names and beside it its projection, each whole or not at all."""
    rules = [*bert_rules("", "text."), *word_head_rules("cls.", "word_head.")]
    table = KeyTable(rules, fresh={"sentence.{rest}": "the projection"})
    state = export_official(student, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, content in ((projection_of(path), student.sentence.state_dict()), (path, state)):
        with replacing(place) as file:
            file.write(save({key: value.contiguous() for key, value in content.items()}))


def captions_and_words(data: dict[str, Any]) -> tuple[dict[str, set[int]], list[str]]:
    """Each cleaned caption with the concepts that it is said of, and the other words there are."""
    concepts: dict[str, set[int]] = {}
    for pair in read_json(data["files"]["train"][0]):
        caption = clean_caption(pair["caption"], data["max_words"])
        concepts.setdefault(caption, set()).add(pair["image_id"])
    words = {word for word in Path(data["vocab"]).read_text().split() if word.isalpha()}
    return concepts, sorted(words - concepts.keys())


def main(path: Path, given: DictConfig, names: Tensor) -> None:
    """Train the tower that the experiment `given` starts from, towards the `names` (K, E) of the
    concepts, and write it to `path`."""
    config: Any = OmegaConf.to_container(given, resolve=True)
    data, method = config["data"], config["method"]
    call(config["source"])
    minilm(folder := Path(config["data_root"]) / "minilm")
    concepts, words = captions_and_words(data)
    captions = sorted(concepts)
    # The names have moved away from MiniLM's vectors; words are turned as these have been.
    read = directions([*captions, *words], folder, method["embed_dim"])
    learned = torch.stack([names[sorted(concepts[text])].mean(dim=0) for text in captions])
    turn = torch.linalg.lstsq(read[: len(captions)], learned).solution
    targets = F.normalize(torch.cat([learned, read[len(captions) :] @ turn]), dim=1)
    write(train(method, [*captions, *words], Path(data["vocab"]), targets), path)
