"""Makes forward passes faster on a processor, with the same results."""
