"""Tasks: each file is one kind of label."""
