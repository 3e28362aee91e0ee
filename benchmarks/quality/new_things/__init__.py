"""A tiny model, tuned on objects and on a style that its language model never saw: what is won and lost."""
