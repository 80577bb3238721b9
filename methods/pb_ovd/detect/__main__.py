"""`python -m methods.pb_ovd.detect` is the console script `tenfold-detect`."""

from methods.pb_ovd.detect.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
