"""`python -m gradtx.testing RESULTS.json [PAGE.md ...]`: see `gradtx.testing.survey`."""

from __future__ import annotations

import sys

from gradtx.testing.survey import main

if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python -m gradtx.testing RESULTS.json [PAGE.md ...]")
    main(sys.argv[1:])
