"""Tests of looking inside a model."""
