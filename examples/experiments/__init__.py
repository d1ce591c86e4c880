"""The lecture notes' experiments: each states a claim, measures it and draws a picture."""
