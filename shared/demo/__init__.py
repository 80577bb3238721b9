"""`tenfold demo`: a local page that asks trained models."""

USAGE = (
    "tenfold demo [METHOD | FILE...] [images=DIR] [texts=PATH] [official=EXPERIMENT] "
    "[overrides=...] [port=N] [device=cuda]"
)
