"""A client of the server's engine for tests: submits jobs together and keeps what comes back."""

import queue

import numpy as np

from janus_jax.serving.jobs import Delta, Failed, Finished, Message, Picture

WAIT = 60  # seconds after which a test fails rather than hangs


def user(text, *pictures):
    return Message("user", text, pictures)


def ask(engine, *jobs):
    """The events of each job."""
    ended, seen = queue.Queue(), [[] for _ in jobs]

    def listen(events):
        def on_event(event):
            events.append(event)
            if isinstance(event, Finished | Failed):
                ended.put(event)

        return on_event

    with engine._changed:  # the engine sees all of them at once
        for job, events in zip(jobs, seen, strict=True):
            engine.submit(job, listen(events))
    for _ in jobs:
        ended.get(timeout=WAIT)
    return seen


def pictures(events):
    """uint8 [n, H, W, 3] of a job that went well."""
    assert isinstance(events[-1], Finished), events[-1]
    found = {event.index: event.picture for event in events if isinstance(event, Picture)}
    return np.stack([found[index] for index in sorted(found)])


def text(events):
    """The answer of a job that went well."""
    assert isinstance(events[-1], Finished), events[-1]
    return "".join(event.text for event in events if isinstance(event, Delta))
