"""Holds the results of measurements, and reads and writes them as JSON lines and Parquet. Verdicts are in
`verdicts/`.
"""
