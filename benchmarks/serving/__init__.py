"""A server under load: how fast, how long it lasts, whether it answers meanwhile, how it stops. See `run`."""
