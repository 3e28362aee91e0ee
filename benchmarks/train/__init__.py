"""The training step: what it takes beside PyTorch's, and what parts of a run cost."""
