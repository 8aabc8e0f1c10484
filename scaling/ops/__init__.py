"""Pure tensor functions, each fast one with a slow twin."""
