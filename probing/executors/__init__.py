"""Holds the executors, one per file, which run units of work (shards of an extraction, fits of probes) in one or
several processes.
"""
