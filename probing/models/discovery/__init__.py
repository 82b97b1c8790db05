"""What the parts of a model are, found by running a small text: no family is known by name."""
