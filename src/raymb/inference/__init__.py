"""A tuned model after the run: finding it, engines, generate, evaluate, scores.

May import export and what is below it.
"""
