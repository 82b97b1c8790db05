"""Interventions: what is done to states; one file is one member."""
