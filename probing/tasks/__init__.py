"""Holds the tasks, one per file; each gives one kind of label to words, spans, pairs or sentences."""
