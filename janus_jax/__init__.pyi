# What `__getattr__` of the package gives, for editors and type checkers.
from janus_jax.inference import GenerationConfig as GenerationConfig
from janus_jax.inference import ImageSamples as ImageSamples
from janus_jax.inference import Janus as Janus
from janus_jax.inference import Preview as Preview

__version__: str
