"""Writes files completely or not at all, and reads JSON and YAML from untrusted sources."""
