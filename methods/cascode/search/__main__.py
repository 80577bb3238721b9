"""`python -m methods.cascode.search` is the console script `tenfold-search`."""

from methods.cascode.search.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
