"""Text and its labels: corpora, words as character spans, pieces (tokens), named positions, chat prompts."""
