"""
What ends a training run early, always in one line: Ctrl-C, SIGTERM, a full disk, or another process that has stopped.
"""
import signal
from contextlib import contextmanager, suppress

from support import parallel

@contextmanager
def interrupts(stop):
    """
    Inside it, Ctrl-C and SIGTERM wait for the next call of the function that it gives, check(). Then stop() is called.
    So no update is cut in half.
    """
    asked, old = [], {}
    def check():
        if any(parallel.totals([len(asked)])):    # processes may receive the signal at different updates
            raise KeyboardInterrupt
    with suppress(ValueError):    # not the main thread, where Python does not allow handlers: its own handling stays
        old = {s: signal.signal(s, lambda *_: asked.append(1)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    except KeyboardInterrupt:
        stop()
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)

@contextmanager
def one_line_errors(command):
    """Inside it, a full disk or another process that has stopped ends the run in one line. command: what resumes it."""
    try:
        with parallel.together():
            yield
    except OSError as e:
        raise SystemExit(f"{e}. To resume from the last complete state: {command}") from None
