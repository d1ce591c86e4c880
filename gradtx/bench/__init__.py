"""Compares gradtx with optax and flax on this machine: `python -m gradtx.bench`."""
