"""Turns results into verdicts: judges whether a property is decodable and whether it is used, and writes the files of a
use run.
"""
