"""Sources of episodes, one per file."""
