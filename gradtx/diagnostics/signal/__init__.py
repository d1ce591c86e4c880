"""`signal_report`: the signal of each layer, the gradient back through it, and what is wrong."""
