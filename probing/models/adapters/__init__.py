"""Model adapters: each file is a way to hook a model."""
