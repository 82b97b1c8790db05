"""Reads exports of Neuronpedia and writes what its importers take; nothing here reaches the network."""
