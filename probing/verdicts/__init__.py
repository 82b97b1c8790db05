"""Turns results into verdicts: the criterion of decodability, the rule of use, and the files of a use run."""
