"""Handles errors, signals and limits of the operating system, and the terminal."""
