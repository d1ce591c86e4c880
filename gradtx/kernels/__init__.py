"""The papers, on one array: a file per family."""
