"""Eight simulated devices, so that every test of sharding runs on any machine."""

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device
