"""Launchers: each wraps a command line for one kind of site, and knows nothing of what it starts."""
