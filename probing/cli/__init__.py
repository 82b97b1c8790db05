"""Makes the command line: turns flags into jobs, prints their results, and ends with an exit code."""
