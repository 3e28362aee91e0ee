"""SIGTERM and Ctrl-C: a request while there is something to save, the end of the process otherwise."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from janus_jax.signals import StopSignals

TERM, INT = signal.SIGTERM, signal.SIGINT


def run(code: str) -> subprocess.CompletedProcess:
    """Runs a program that may send itself signals with `send` and wait until one is marked."""
    head = """
        import os, signal, sys, time
        from janus_jax.signals import StopSignals
        def send(*numbers):
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.1)
    """
    program = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=25
    )


@pytest.mark.parametrize(("number", "code"), [(TERM, 0), (INT, 130)])
def test_a_signal_where_nothing_is_to_save_ends_at_once(number, code):
    done = run(f"with StopSignals(): send({int(number)}); print('went on')")
    assert (done.returncode, done.stdout) == (code, "")
    said = f"stopped by {number.name}; run the same command again to continue"
    assert done.stderr.strip() == said


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_while_there_is_something_to_save_is_only_marked(number):
    done = run(
        f"""
        with StopSignals() as signals:
            try:
                with signals.deferred():
                    send({int(number)})
                    print(signals.requested.name)
                    raise KeyError  # as the loop does once it has saved
            except KeyError:
                print("saved")
        """
    )
    assert (done.returncode, done.stdout) == (0, f"{number.name}\nsaved\n")
    assert done.stderr.count("\n") == 2 and "stopping after this step" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(TERM, 0), (INT, 130)])
def test_a_signal_after_the_last_look_ends_when_all_is_saved(number, code):
    done = run(
        f"""
        with StopSignals() as signals:
            with signals.deferred():
                send({int(number)})
                print("saved", flush=True)
            print("went on")
        """
    )
    assert (done.returncode, done.stdout) == (code, "saved\n")


@pytest.mark.parametrize("first", [TERM, INT])
def test_a_second_ctrl_c_stops_at_once_even_where_python_does_not_run(first):
    done = run(
        f"""
        import threading
        threading.Thread(
            target=lambda: (time.sleep(0.3), send({int(first)}, {int(INT)})), daemon=True
        ).start()
        with StopSignals() as signals, signals.deferred():
            import ctypes
            deadline = time.time() + 20
            while time.time() < deadline:  # a call that a signal does not bring back to Python
                ctypes.CDLL(None).usleep(1000000)
        """
    )
    assert done.returncode == 130 and "stopped at once" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_sigterm_does_not_break_the_save():
    done = run(
        f"""
        with StopSignals() as signals, signals.deferred():
            send({int(TERM)}, {int(TERM)}, {int(TERM)})
            print("saved", flush=True)
        """
    )
    assert (done.returncode, done.stdout) == (0, "saved\n")


def test_the_handlers_from_before_come_back():
    before = signal.getsignal(TERM), signal.getsignal(INT)
    with StopSignals():
        assert signal.getsignal(TERM) != before[0]
    assert (signal.getsignal(TERM), signal.getsignal(INT)) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), INT)
        signal.pause()
