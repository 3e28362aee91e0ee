"""PyTorch implementations of drawing that ours is compared with, and a check that they agree."""
