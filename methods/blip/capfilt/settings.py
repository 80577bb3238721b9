"""What decides a result of CapFilt: equal settings, models and inputs give equal bytes."""

from dataclasses import dataclass

from shared.data.errors import WorkError


@dataclass(frozen=True)
class Settings:
    """Settings of the paper and its official code where these name one.

    A text stays if its match probability is above `threshold`: the maintainers drop "texts with a
    score below 0.5" (salesforce/BLIP issue #54). Captions are sampled from the nucleus `top_p`
    (paper, section 4.3) of the `top_k` likeliest tokens, the default of the library that the
    official code calls, or searched for with so many `beams`. Lengths are in tokens and count the
    prompt, as `models/blip.py:BLIP_Decoder.generate` does; 20 and 5 are those of its demo.
    """

    threshold: float = 0.5
    beams: int = 0  # 0 samples
    top_p: float = 0.9
    top_k: int = 50
    max_length: int = 20
    min_length: int = 5
    prompt: str = "a picture of "
    web: bool = True  # whether texts of the input may stay
    synthetic: bool = True  # whether captions are written
    filtered: bool = True  # whether the filter judges; else all texts stay
    batch_size: int = 32
    seed: int = 0
    limit: int | None = None  # entries that are read
    max_pixels: int = 1 << 26  # of an image
    vocab: str = ""  # of official files: a vocab.txt, its folder, or package:NAME
    licence: str = ""  # of the data, as the user states it

    def __post_init__(self) -> None:
        """WorkError if these settings leave nothing to do."""
        if not (self.web or self.synthetic):
            raise WorkError("--no-web and --no-synthetic leave no text")
        if not (self.filtered or self.synthetic):
            raise WorkError("--caption-only and --no-synthetic leave nothing to do")
        if self.min_length > self.max_length:
            raise WorkError("--min-length is above --max-length")
