"""`check_up`: what is wrong with a training set-up, from a loss, its parameters and one batch."""
