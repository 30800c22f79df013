"""A run's directory and every path in it, the job that its workers get, its fingerprint, lock and copy at a URI.

May import data, recipes, plan, model, spec, storage.
"""
