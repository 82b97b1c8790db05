"""Write the stores of tests/golden that are not there yet; those that are stay as they are, for ever.

    python scripts/make_golden_stores.py [--to tests/golden]

Every later reader must decode them exactly (tests/states/test_golden_stores.py). They are written once for each version
of the format, by the formula in tests/samples/golden_samples.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from probing.states.store import StoreWriter
from tests.samples.golden_samples import GOLDEN, LATENTS, STORES, Golden, content, identity


def write(golden: Golden, folder: Path) -> Path:
    """One store; the only part of its environment that its bytes depend on is the version of HDF5."""
    environment = {"hdf5": h5py.version.hdf5_version}
    writer = StoreWriter.open(folder / golden.name, identity=identity(golden), environment=environment)
    for shard in golden.shards:
        writer.commit(shard, content(shard, golden))
    if not writer.missing():
        writer.seal()
    return folder / golden.name


def main() -> None:
    """Write what is missing and say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=GOLDEN)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for golden in (*STORES, LATENTS):
        if (options.to / golden.name).exists():
            print(f"{golden.name}: is there, and stays as it is")
            continue
        path = write(golden, options.to)
        print(f"{golden.name}: {sum(file.stat().st_size for file in path.rglob('*') if file.is_file()):,} bytes")


if __name__ == "__main__":
    main()
