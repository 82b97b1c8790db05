"""The results of measurements, as JSON lines and Parquet: no verdicts."""
