"""Reads a traced loss: where its values come from, where its layers are, and what they hold."""
