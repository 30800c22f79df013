"""Files and URIs: atomic writes, locks, transfer, the cache directory. Knows no run.

May import cpu, child and errors.
"""
