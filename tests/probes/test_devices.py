"""Probes that compute on a device."""

from __future__ import annotations

import numpy as np
import pytest

import probing as pb
from probing import registry
from probing.contracts.probe import Probe
from probing.probes.linear import LinearProbe
from probing.probes.mass_mean import MassMeanProbe
from probing.probes.mlp import MLPProbe
from probing.probes.ridge import RidgeProbe

PROBES = [LinearProbe(), MLPProbe(hidden=4, max_epochs=3), MassMeanProbe(whitened=True), RidgeProbe()]


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 12)).astype(np.float32)
    return X, (X[:, 0] + rng.normal(size=300) > 0).astype(int)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
def test_the_cpu_by_name_is_the_default(probe):
    X, y = rows()
    moved = probe.on("cpu:0")
    assert moved.device == "cpu:0" and probe.device == "cpu" and moved.with_seed(3).device == "cpu:0"
    for plain, named in zip(
        probe.with_seed(0).fit(X, y).state().values(), moved.fit(X, y).state().values(), strict=True
    ):
        np.testing.assert_array_equal(plain, named)


def test_a_device_is_no_option_and_is_not_saved(tmp_path):
    X, y = rows()
    fit = LinearProbe().on("cpu:0").fit(X, y)
    assert "device" not in fit.get_params()
    fit.save(tmp_path / "probe")
    assert pb.load_probe(tmp_path / "probe").device == "cpu"


def test_a_probe_that_knows_no_devices_stays_on_the_cpu():
    unmoved = [registry.get("probes", name).MEMBER for name in ("sparse", "k_nearest", "prior")]
    assert all(issubclass(kind, Probe) and kind().on("cpu:0").device == "cpu" for kind in unmoved)
