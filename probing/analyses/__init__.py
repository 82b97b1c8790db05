"""Analyses: what many fits of a probe at one site say together; one file is one member."""
