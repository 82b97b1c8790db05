"""Handles text and its labels: corpora, words as character spans, tokens, named positions, chat prompts."""
