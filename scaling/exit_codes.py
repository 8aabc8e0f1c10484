"""Exit codes beside 0, all done."""

FAILED_RUNS = 1
"""Some runs failed."""
USER_ERROR = 2
"""The input cannot be used."""
INTERRUPTED = 75
"""Work is left, and the same command goes on (EX_TEMPFAIL)."""
