"""Model adapters: one file is one way to hook a model."""
