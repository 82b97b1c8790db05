"""The command line: turns flags into jobs, shows results on the screen, and ends with an exit code."""
