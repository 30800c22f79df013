"""Metrics: from the ranks, without waiting, to a hub; from there to files, terminal and report.

May import run and what is below it, and Ray.
"""
