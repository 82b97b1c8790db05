"""Models: loading, discovery of their parts, and reading of their states."""
