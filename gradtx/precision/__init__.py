"""Parameters in half precision that move: exact, compensated or stochastic rounding."""
