"""A main(argv) in a forked process, which takes no time for imports. Its output goes to a file."""
import os
import signal
import sys
import time
import traceback


def child(main, argv, messages, before=lambda: None):
    """Starts main(argv) after before(); returns the process id. It ends with main's status, or 1 after a traceback."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        out = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        # in the place of pytest's
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        before()
        main(argv)
        status = 0
    except SystemExit as e:
        print(e.code if isinstance(e.code, str) else "", file=sys.stderr)
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

def ended(pids, seconds=120):
    """The exit statuses of processes. One that has not ended after so many seconds is killed; its status is "hung"."""
    codes = {}
    until = time.time() + seconds
    while len(codes) < len(pids) and time.time() < until:
        for pid in pids:
            if pid in codes:
                continue
            changed, status = os.waitpid(pid, os.WNOHANG)
            if changed:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[pid] = "hung"
    return [codes[pid] for pid in pids]
