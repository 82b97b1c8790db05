"""Files that are written whole, and JSON and YAML from untrusted sources."""
