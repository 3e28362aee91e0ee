"""SIGTERM and Ctrl-C: a request while there is something to save, the end of the process otherwise."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from janus_jax.signals import StopSignals

pytestmark = pytest.mark.subprocess

TERM, INT = signal.SIGTERM, signal.SIGINT
HUP, USR1 = signal.SIGHUP, signal.SIGUSR1
ALL = [(TERM, 0), (INT, 130), (HUP, 0), (USR1, 0)]


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


@pytest.mark.parametrize(("number", "code"), ALL)
def test_a_signal_where_nothing_is_to_save_ends_at_once(number, code):
    done = run(f"with StopSignals(): send({int(number)}); print('went on')")
    assert (done.returncode, done.stdout) == (code, "")
    said = f"stopped by {number.name}; run the same command again to continue"
    assert done.stderr.strip() == said


@pytest.mark.parametrize("number", [TERM, INT, HUP, USR1])
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


@pytest.mark.parametrize(("number", "code"), ALL)
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


@pytest.mark.parametrize("first", [TERM, INT, HUP])
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


@pytest.mark.parametrize("number", [HUP, USR1])
def test_what_nohup_ignores_stays_ignored(number):
    done = run(
        f"""
        signal.signal({int(number)}, signal.SIG_IGN)
        with StopSignals() as signals, signals.deferred():
            send({int(number)})
            print(signals.requested)
        with StopSignals():
            send({int(number)})
        print(signal.getsignal({int(number)}) == signal.SIG_IGN)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\nTrue\n", "")


@pytest.mark.parametrize("number", [INT, HUP, USR1])
def test_one_of_several_processes_asks_the_others_and_does_not_leave(number):
    done = run(
        f"""
        got = []
        with StopSignals() as signals:
            signals.hand_over()
            signal.signal(signal.SIGTERM, lambda *_: got.append("asked"))  # as JAX does
            send({int(number)})
            print(got, signals.requested.name)
        """
    )
    assert (done.returncode, done.stdout) == (0, f"['asked'] {number.name}\n")
    assert "stopping at the next step, or sooner" in done.stderr


def test_a_terminal_that_is_closed_does_not_keep_the_save_from_ending(tmp_path):
    saved = tmp_path / "saved"
    program = f"""
        import pathlib, sys
        from janus_jax.errors import run_main
        from janus_jax.signals import StopSignals
        def main():
            with StopSignals() as signals:
                with signals.deferred():
                    print("ready", flush=True)
                    while signals.requested is None:
                        pass
                    print("a line", flush=True)
                    print("another", file=sys.stderr, flush=True)
                    pathlib.Path({str(saved)!r}).write_text(signals.requested.name)
        run_main(main)
    """
    done = run(
        f"""
        import pty
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", {textwrap.dedent(program)!r}])
        assert b"ready" in os.read(terminal, 100)
        os.close(terminal)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert saved.read_text() == "SIGHUP"


@pytest.fixture
def interrupts():
    """A shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(INT, signal.default_int_handler)
    yield
    signal.signal(INT, before)


def test_the_handlers_from_before_come_back(interrupts):
    before = signal.getsignal(TERM), signal.getsignal(INT)
    with StopSignals():
        assert signal.getsignal(TERM) != before[0]
    assert (signal.getsignal(TERM), signal.getsignal(INT)) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), INT)
        signal.pause()
