"""Puts states of one prompt into another, and takes components out: tables and heat maps, no verdict."""
