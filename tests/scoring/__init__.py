"""Tests of saved probes on new text."""
