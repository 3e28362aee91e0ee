"""What owns the device: who gets a place, how pictures and answers are computed together. It knows no HTTP."""

from janus_jax.serving.engine.thread import ServingEngine, WorkerThread

__all__ = ["ServingEngine", "WorkerThread"]
