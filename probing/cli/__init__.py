"""The command line: flags to jobs, records to the screen, errors to exit codes."""
