"""`tenfold predict`: one file a kind of answer."""

USAGE = (
    "tenfold predict checkpoint=FILE images=DIR [output=DIR] [texts=FILE] [questions=FILE] "
    "[min_score=S] [official=EXPERIMENT] [batch_size=N] [device=cuda]"
)
