"""Probes: each file is one family of probes or one baseline."""
