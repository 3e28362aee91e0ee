"""Converting checkpoints of true size: memory and time."""
