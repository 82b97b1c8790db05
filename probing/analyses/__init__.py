"""Holds the analyses, one per file; each fits a probe many times at one site and reports a curve or a number."""
