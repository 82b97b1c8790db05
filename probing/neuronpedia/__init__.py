"""Reads exports of Neuronpedia and writes files that its importers accept, without using the network."""
