"""What one does with data before a run: look at it, prepare it."""
