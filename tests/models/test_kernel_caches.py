"""What matrix products of many shapes leave in memory is bounded: every batch has a shape of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from probing.models.cpu_speed import KEPT, bound_kernel_caches

SHAPES = 8 * KEPT
PRODUCTS = """
import sys
from pathlib import Path
import torch
from probing.models.cpu_speed import bound_kernel_caches
from probing.models.cpu_speed import packed_linear_layers

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256

bound_kernel_caches()
torch.set_num_threads(1)
shapes, layer = int(sys.argv[1]), torch.nn.Linear(64, 64)
states = torch.zeros(20 * shapes + 20, 64)
with torch.inference_mode(), packed_linear_layers(layer):
    layer(states)
    before = resident()
    for k in range(shapes):
        layer(states[: 20 * k + 20])
print(resident() - before)
"""


def grown(**more: str) -> float:
    """Megabytes that a process grows by, over products of `SHAPES` shapes."""
    free = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    command = [sys.executable, "-c", PRODUCTS, str(SHAPES)]
    done = subprocess.run(command, env=free | more, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_shapes() -> None:
    unbounded = grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    if unbounded < 20:
        pytest.skip("PyTorch keeps no kernels here")
    assert grown() < unbounded / 2


def test_what_the_environment_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    bound_kernel_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
