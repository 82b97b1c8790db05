"""Text and its labels: corpora, words as character spans, pieces, named positions, chat prompts."""
