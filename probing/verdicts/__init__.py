"""From results to words: the rule of decodability, the rule of use, and what is kept of a run."""
