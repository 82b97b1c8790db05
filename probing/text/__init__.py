"""Text and its labels: corpora, words as character spans, pieces, positions, chats."""
