"""Hidden states: extracted, stored, imported."""
