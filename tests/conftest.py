"""Eight simulated devices, so that every test of sharding runs on any machine."""

import os

import jax

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nothing of a test stays in the user's cache

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device
