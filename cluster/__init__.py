"""Launchers, one site's way of starting a command per file."""
