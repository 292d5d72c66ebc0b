"""A main(argv) in a process of its own, forked, so that no second goes into imports; what it prints goes to a file."""
import os
import signal
import sys
import time
import traceback


def child(main, argv, messages, before=lambda: None):
    """Starts main(argv) after before(), and returns the process's number. It ends with main's status, 1 after a traceback."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        out = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))    # not pytest's
        before()
        main(argv)
        status = 0
    except SystemExit as e:
        print(e.code if isinstance(e.code, str) else "", file=sys.stderr)
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)

def ended(pids, seconds=120):
    """The exit statuses; who is not done by then is killed, and "hung"."""
    codes, until = {}, time.time() + seconds
    while len(codes) < len(pids) and time.time() < until:
        for pid in pids:
            if pid not in codes and (got := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(got[1])
        time.sleep(0.02)
    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[pid] = "hung"
    return [codes[pid] for pid in pids]
