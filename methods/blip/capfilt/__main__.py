"""`python -m methods.blip.capfilt` is the console script `tenfold-capfilt`."""

from methods.blip.capfilt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
