"""Writes files whole or not at all, and reads JSON and YAML from untrusted sources."""
