"""The operating system: its errors, signals, limits and the terminal, each handled in one place."""
