"""Wrappers: a transformation in, a transformation out, with another way to run it."""
