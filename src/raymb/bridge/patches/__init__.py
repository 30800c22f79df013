"""Upstream's defects that raymb steps around, a file a subject."""
