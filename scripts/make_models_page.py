"""Write docs/models.md: what becomes of every architecture of text of the installed transformers.

    python scripts/make_models_page.py [--to docs/models.md] [KIND ...]

Takes some minutes; with names of model types only these are tried, and their outcomes are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.samples.family_samples import architectures
from tests.samples.family_survey import Outcome, page, survey


def main() -> None:
    """Try all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("docs/models.md"))
    parser.add_argument("kinds", nargs="*")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for kind in options.kinds or architectures():
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(survey(kind, Path(folder)))
        print(outcomes[-1], flush=True)
    if not options.kinds:
        options.to.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
