"""Readers, rules and scores beside those of the official packages and scripts, which are no part of this."""
