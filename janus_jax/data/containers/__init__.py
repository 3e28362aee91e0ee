"""Where records lie: files that are read at random, one module a kind.

Nothing is imported here: what reads Parquet, ArrayRecord and TFDS needs packages that may not be installed.
"""
