"""The machinery behind the reliability figures F1 to F12: `scripts/reliability.py` and the tests run the same code."""
