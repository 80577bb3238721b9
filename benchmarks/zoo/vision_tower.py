"""A small vision tower that has learned what drawings show, in a language model's vectors.

Every concept has a vector, at first the direction in which MiniLM reads its name; the tower learns
to point at that of a drawing's concept, among those of all. It sees each drawing placed, bent and
coloured anew: small and filling the view at first, then larger, half of them anywhere in the view.
The file has timm's names: it is an `initial.vision`.

Shapes: B drawings, S their side, s that of a view, K concepts, E width of the vectors.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.progress import track
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks.miniatures.code.sources import minilm
from benchmarks.zoo.data import STYLES
from benchmarks.zoo.projections import projection_of
from benchmarks.zoo.text_tower import directions
from shared.checkpoints.reading import load_checkpoint
from shared.data.text.cleaning import clean_caption
from shared.files import read_json, replacing, write_json
from shared.nn.building import call
from shared.nn.heads import unit_norm
from shared.nn.vision_transformer import VisionTransformer, interpolate_positions
from shared.randomness import torch_generator

BATCH, SEED = 128, 0
KEPT_EVERY = 250  # steps
GROUND = 0.6  # share of the views on white; the others have any colour around


class Phase(NamedTuple):
    """Views of one size, and how long and how fast the tower learns from them."""

    side: int
    steps: int
    rate: float
    least: float  # half of the drawings are shown at down to this share of their size, anywhere


PHASES = (Phase(32, 8000, 2e-3, 1.0), Phase(64, 1000, 1e-3, 0.4))


class Namer(nn.Module):
    """A vision transformer whose class token points at one of the `names` (K, E)."""

    def __init__(self, vision: Mapping[str, Any], names: Tensor, side: int):
        super().__init__()
        self.vision = VisionTransformer(**{**vision, "image_size": side, "drop_path": 0.05})
        self.project = nn.Linear(self.vision.embed_dim, names.shape[1])
        self.names = nn.Parameter(names.clone())
        self.log_scale = nn.Parameter(torch.tensor(15.0).log())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) -> cosines (B, K)."""
        return unit_norm(self.project(self.vision(images)[:, 0])) @ unit_norm(self.names).T

    def continue_from(self, other: "Namer") -> None:
        """Take the weights of another whose views are of another size."""
        state, positions = other.state_dict(), "vision.pos_embed"
        state[positions] = interpolate_positions(state[positions], self.vision.grid)
        self.load_state_dict(state)


def placed(drawings: Tensor, phase: Phase, generator: Generator) -> Tensor:
    """(B, 4, S, S) in 0..1 with premultiplied colours -> (B, 4, s, s): each zoomed, stretched,
    turned, sheared, moved and bent by itself. The second half of them may be small."""
    count, side = len(drawings), phase.side

    def normal(spread: float, *shape: int) -> Tensor:
        return spread * torch.randn(count, *shape, generator=generator)

    def even(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom, stretch = even(0.75, 1.15), even(-0.2, 0.2).exp()
    if phase.least < 1:
        zoom[count // 2 :] = even(1.0, 1 / phase.least)[count // 2 :]
    angle, shear = normal(0.15), normal(0.1)
    across, down = zoom * stretch, zoom / stretch
    moves = torch.empty(count, 2, 3)
    moves[:, 0, 0], moves[:, 0, 1] = angle.cos() * across, (shear - angle.sin()) * down
    moves[:, 1, 0], moves[:, 1, 1] = angle.sin() * across, angle.cos() * down
    moves[:, :, 2] = even(-1, 1, 2) * (zoom - 1).clamp(min=0.15)[:, None]
    grid = F.affine_grid(moves, [count, 4, side, side], align_corners=False)
    bends = F.interpolate(normal(0.04, 2, 4, 4), (side, side), mode="bilinear")
    grid = grid + bends.permute(0, 2, 3, 1)
    parts = (slice(None),) if phase.least == 1 else (slice(count // 2), slice(count // 2, None))
    reduced = (
        F.interpolate(drawings[part], (side * quarters // 4,) * 2, mode="area")
        for part, quarters in zip(parts, (5, 3), strict=False)  # small ones from fewer pixels
    )
    seen = [
        F.grid_sample(small, grid[part], align_corners=False)
        for small, part in zip(reduced, parts, strict=True)
    ]
    return torch.cat(seen)


def coloured(drawings: Tensor, generator: Generator) -> Tensor:
    """(B, 4, s, s) with premultiplied colours -> (B, 3, s, s) in 0..1 on a ground: colours mixed,
    some grey, some brighter or darker, and a square of half of them covered."""
    count, side = len(drawings), drawings.shape[-1]

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    alpha = drawings[:, 3:]
    colours = drawings[:, :3] / (alpha + 1e-3)
    mix = torch.eye(3) + 0.12 * randn(3, 3)
    colours = torch.einsum("bij,bjhw->bihw", mix, colours - 0.5) + 0.5 + 0.1 * randn(3, 1, 1)
    colours = torch.where(rand(1, 1, 1) < 0.15, colours.mean(dim=1, keepdim=True), colours)
    colours = colours.clamp(1e-4, 1) ** (0.3 * randn(1, 1, 1)).exp()
    ground = torch.where(rand(1, 1, 1) < GROUND, 1.0, rand(3, 1, 1))
    images = colours * alpha + (1 - alpha) * ground
    middle = side * rand(2, 1)
    reach = torch.where(rand(1) < 0.5, side * (1 + 1.67 * rand(1)) / 16, 0.0)
    near = (torch.arange(side) - middle).abs() < reach[:, None]  # (B, 2, s): rows and columns
    covered = near[:, 0, :, None] & near[:, 1, None, :]
    return torch.where(covered[:, None], rand(3, 1, 1), images)


def step(
    module: Namer, drawings: Tensor, concepts: Tensor, views: Any, phase: Phase, number: int
) -> Tensor:
    """The loss of uint8 drawings (B, 4, S, S) of `concepts` (B,), in the views of that step."""
    generator = torch_generator(SEED, number, f"views of {phase.side}")
    straight = drawings.float() / 255
    premultiplied = torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], dim=1)
    images = coloured(placed(premultiplied, phase, generator), generator)
    images = (images - views["mean"]) / views["std"]
    cosines = module(images.contiguous(memory_format=torch.channels_last))
    scale = module.log_scale.exp().clamp(max=100)
    return F.cross_entropy(scale * cosines, concepts, label_smoothing=0.1)


def train(
    module: Namer,
    drawings: Tensor,
    concepts: Tensor,
    views: Any,
    phase: Phase,
    kept: Path,
    held: tuple[Tensor, Tensor],
) -> None:
    """Train on `drawings` (N, styles, 4, S, S): half of the time their own style, else another. The
    state is `kept` on the way, and continued from."""
    bare = [module.names, module.log_scale]
    rest = [p for p in module.parameters() if not any(p is other for other in bare)]
    groups = [{"params": rest, "weight_decay": 0.05}, {"params": bare, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, phase.rate, betas=(0.9, 0.98), foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, phase.rate, total_steps=phase.steps, pct_start=0.1
    )
    parts: dict[str, Any] = {"module": module, "optimizer": optimizer, "schedule": schedule}
    start = 0
    if kept.is_file():
        state = load_checkpoint(kept)
        start = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    per_pass = len(drawings) // BATCH
    told = f"vision tower, {phase.side} px"
    for number in track(range(start, phase.steps), told, disable=not sys.stderr.isatty()):
        order = torch_generator(SEED, number // per_pass, f"order of {phase.side}")
        rows = torch.randperm(len(drawings), generator=order)
        rows = rows[number % per_pass * BATCH :][:BATCH]
        draws = torch_generator(SEED, number, f"styles of {phase.side}")
        styles = torch.randint(drawings.shape[1], rows.shape, generator=draws)
        styles *= torch.rand(rows.shape, generator=draws) < 0.5
        torch.manual_seed(SEED + number)  # of stochastic depth
        loss = step(module, drawings[rows, styles], concepts[rows], views, phase, number)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        optimizer.step()
        schedule.step()
        if (number + 1) % KEPT_EVERY == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            with replacing(kept) as file:
                torch.save({"step": number + 1, **state}, file)
            found = named(module, *held, views)
            print(f"{told}, step {number + 1}: loss {loss:.3f}, names {found:.1f} %", flush=True)


@torch.inference_mode()
def named(module: Namer, images: Tensor, concepts: Tensor, views: Any) -> float:
    """The share in percent of uint8 pictures (N, 3, S, S) whose concept the module names."""
    module.eval()
    size = module.vision.patch_embed.img_size
    small = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
    parts = ((small - views["mean"]) / views["std"]).split(BATCH)
    right = torch.cat([module(part).argmax(dim=1) for part in parts]) == concepts
    module.train()
    return 100 * right.float().mean().item()


def pictures(entries: list[dict[str, Any]], root: Path) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, S, S) of the images that the entries name, each once, and their concepts."""
    known = {entry["image"]: entry["image_id"] for entry in entries}
    read = np.stack([np.asarray(Image.open(root / name)) for name in known])
    return torch.from_numpy(read).permute(0, 3, 1, 2).contiguous(), torch.tensor([*known.values()])


def main(path: Path, given: DictConfig) -> None:
    """Train the tower that the experiment `given` starts from, and write it to `path`."""
    config: Any = OmegaConf.to_container(given, resolve=True)
    data, method = config["data"], config["method"]
    call(config["source"])
    minilm(folder := Path(config["data_root"]) / "minilm")
    lists = {name: Path(data["files"][name]) for name in ("val", "test")}
    lists["train"] = Path(data["files"]["train"][0])
    entries = {name: read_json(file) for name, file in lists.items()}
    first: dict[int, str] = {}
    for entry in entries["train"]:
        first.setdefault(entry["image_id"], clean_caption(entry["caption"]))
    names = directions([first[concept] for concept in sorted(first)], folder, method["embed_dim"])
    drawings, concepts = pictures(entries["train"], lists["train"].parent)
    drawings, concepts = drawings.unflatten(0, (-1, STYLES)), concepts[::STYLES]
    views = {
        name: torch.tensor(data["augmentation"][name])[:, None, None] for name in ("mean", "std")
    }
    held = {name: pictures(entries[name], lists[name].parent) for name in ("val", "test")}
    torch.manual_seed(SEED)
    module: Any = None
    path.parent.mkdir(parents=True, exist_ok=True)
    for phase in PHASES:
        before, module = module, Namer(method["vision"], names, phase.side)
        if before is not None:
            module.continue_from(before)
        module = module.to(memory_format=torch.channels_last)
        kept = path.with_suffix(f".{phase.side}.ckpt")
        train(module, drawings, concepts, views, phase, kept, held["val"])
    projection = {**module.project.state_dict(), "names": unit_norm(module.names.detach())}
    weights = (projection_of(path), projection), (path, module.vision.state_dict())
    for place, content in weights:
        with replacing(place) as file:
            file.write(save({key: value.contiguous() for key, value in content.items()}))
    write_json(metrics_of(path), {"names": named(module, *held["test"], views)})


def metrics_of(path: Path) -> Path:
    """Beside the tower: `names`, the share of the held-out artist's drawings that it named."""
    return path.with_suffix(".json")
