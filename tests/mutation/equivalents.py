"""Changes that no test can notice, or need not, each with the reason."""

EQUIVALENTS: dict[str, str] = {}
