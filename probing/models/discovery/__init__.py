"""Discovery of the parts of a model by running a small text: no family is known by name."""
