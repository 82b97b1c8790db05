"""Controls: each file is one kind of meaningless but matched labels."""
