"""Metrics: from the ranks, without waiting, to a hub; from there to files and the terminal."""
