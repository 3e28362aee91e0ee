"""Looking at the data of a run: what is in it, how it is mixed and packed, what the model is shown."""
