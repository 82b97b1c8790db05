"""Bootstrap by clusters, intervals, and many tests at once."""
