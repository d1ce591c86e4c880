"""Runnable examples, each with a picture: `python -m examples.NAME --help`."""
