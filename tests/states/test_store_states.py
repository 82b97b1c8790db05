"""F12 as hypothesis searches for it: other steps at every run, and the shortest that break a law are shown."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.reliability.store_states import StoreStates

TestStoreStates = StoreStates.TestCase
TestStoreStates.settings = settings(
    max_examples=6, stateful_step_count=20, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
