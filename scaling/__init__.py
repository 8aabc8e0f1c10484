"""Scaling-law studies for offline reinforcement learning: from recorded episodes to a verdict."""

__version__ = "0.1.0"
