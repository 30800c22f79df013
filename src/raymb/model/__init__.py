"""What a Hugging Face model says in its files: which they are, its shape and parameters; one record a family;
the sample model.

May import spec, storage and what is below them.
"""
