"""`tenfold predict`: one file a kind of answer."""
