"""The captioner and the filter that settings need.

They must not be one network: the paper's table 4 has a filter that shares its weights with the
captioner drop 8 % of the texts instead of 25 %, because it believes what it wrote itself.
"""

from dataclasses import dataclass
from pathlib import Path

from methods.blip.capfilt.networks import ModuleCaptioner, ModuleFilter
from methods.blip.capfilt.settings import Settings
from shared.data.captioned.decoding import Decoder
from shared.data.captioned.origins import origin_of
from shared.data.errors import WorkError
from shared.data.readers.model_files import PACKAGE


@dataclass(frozen=True)
class Models:
    """The networks that settings need, and for each its name and SHA-256."""

    captioner: ModuleCaptioner | None
    filter: ModuleFilter | None
    about: dict[str, dict[str, str]]

    def decoder(self, root: str | None, most_pixels: int) -> Decoder:
        """What makes of files the images that the networks see."""
        networks = [network for network in (self.captioner, self.filter) if network is not None]
        if len(grounds := {network.on_white for network in networks}) > 1:
            raise WorkError("one model was trained on transparent images, the other was not")
        sizes = sorted({network.size for network in networks})
        return Decoder(root, tuple(sizes), most_pixels, grounds.pop())


def load_models(
    captioner: str | None, filter: str | None, settings: Settings, device: str
) -> Models:
    """Load what the settings need from checkpoints of ours, official ones or Hugging Face folders;
    WorkError names what is not given or not there. No connection is opened."""
    needed = {"captioner": settings.synthetic, "filter": settings.filtered}
    given = {"captioner": captioner, "filter": filter}
    given = {name: path for name, path in given.items() if needed[name]}
    if missing := [f"--{name}" for name, path in given.items() if not path]:
        kinds = "a checkpoint of ours, an official one or a Hugging Face folder"
        raise WorkError(f"{' and '.join(missing)} not given: {kinds}")
    about = {name: origin_of(Path(path)) for name, path in given.items() if path}
    if settings.vocab and not settings.vocab.startswith(PACKAGE):
        about["vocabulary"] = origin_of(Path(settings.vocab))
    writer, judge = given.get("captioner"), given.get("filter")
    return Models(
        ModuleCaptioner(writer, settings, device) if writer else None,
        ModuleFilter(judge, settings, device) if judge else None,
        about,
    )
