"""Wrappers: functions that take a transformation and return one that runs it in another way."""
