"""Data before a run: how fast it is prepared, and how fast what was prepared is read."""
