"""Holds the tasks, one a file; each gives one kind of label to words, spans, pairs or sentences."""
