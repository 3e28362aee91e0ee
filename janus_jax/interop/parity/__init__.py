"""Equal numbers: what the official code computes, recorded and computed again."""
