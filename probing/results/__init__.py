"""What was measured, as JSON lines and Parquet: no verdicts."""
