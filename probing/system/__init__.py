"""The operating system: its errors, signals, limits and the terminal, each met in one place."""
