"""Serving one model to many: requests are batched on one device, in blocks, so that none waits for all others."""
