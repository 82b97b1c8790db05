"""Write the saved probes of tests/golden_probes that are not there yet; those that are stay as they are, for ever.

    python scripts/make_golden_probes.py [--to tests/golden_probes]

Every later reader must load them and give their predictions (tests/probes/test_golden_probes.py): one for each class
of the registered probes that read states one by one. They are written once for each version of the format.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.golden_probes import FOLDER, fitted, kinds, predictions


def main() -> None:
    """Write what is missing and say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for name, kind in kinds().items():
        if (options.to / f"{name}.json").exists():
            print(f"{name}: is there, and stays as it is")
            continue
        probe = fitted(kind)
        probe.save(options.to / name)
        (options.to / f"{name}.predictions").write_text(json.dumps(predictions(probe)) + "\n", encoding="utf-8")
        print(f"{name}: written")


if __name__ == "__main__":
    main()
