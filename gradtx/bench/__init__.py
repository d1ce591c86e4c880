"""Side by side with optax on this machine: `python -m gradtx.bench`."""
