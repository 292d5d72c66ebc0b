"""
Confine this process before it runs a student's code. worker.py calls it in a fork.

    confine(seconds, memory, folders)

What the system does not allow is left out. As root the process becomes `nobody`. Namespaces take away the network, all
other processes, and writing: every file system is read-only, apart from an empty /tmp, /var/tmp and /dev/shm of 16 MB
each, which end with the process. The `folders` can be read at their own paths even if a folder above them is private.
"""
import contextlib
import ctypes
import os
import resource
import struct
from pathlib import Path

PROCESSES, FILE_BYTES, NOBODY = 16, 1 << 20, 65534
NEWNS, NEWUSER, NEWPID, NEWNET, NEWIPC = 0x20000, 0x10000000, 0x20000000, 0x40000000, 0x08000000
NO_NEW_PRIVS, CAPABILITY_VERSION = 38, 0x20080522
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE = 2, 4, 1 << 12, 1 << 14, 1 << 18
WRITABLE = ("/tmp", "/var/tmp", "/dev/shm")
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *args):
    """A function of libc. Raises OSError if it fails."""
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)

def outermost(paths):
    """The paths that do not lie below another one."""
    return {path for path in paths if not paths & {*path.parents}}

def private_files(folders):
    """The view of the file system that the docstring of this file describes. Raises OSError if it is not allowed."""
    folders = {Path(path) for name in folders for path in (name, os.path.realpath(name))}    # a link and its target
    private = {above for path in folders for above in path.parents if not above.stat().st_mode & 1}
    hidden = outermost(private | {Path(name).resolve() for name in WRITABLE if Path(name).is_dir()})
    attributes = struct.pack("4Q", READ_ONLY, 0, PRIVATE, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    libc.mount(b"proc", b"/proc", b"proc", 0, None)    # of the own processes only; some containers refuse it
    held = {path: os.open(path, os.O_PATH) for path in outermost(folders)}
    for path in hidden:
        call("mount", b"tmpfs", bytes(path), b"tmpfs", NOSUID | NODEV, b"size=16m,nr_inodes=1k,mode=1777")
    for path, descriptor in held.items():
        if hidden & {*path.parents}:
            path.mkdir(parents=True, exist_ok=True)
            call("mount", f"/proc/self/fd/{descriptor}".encode(), bytes(path), None, BIND | RECURSIVE, None)
        os.close(descriptor)

def namespaces(folders):
    """Whether this process has namespaces of its own now."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(NEWNS | NEWPID | NEWNET | NEWIPC | (NEWUSER if uid else 0)) == -1:
        return False
    # the process namespace begins with the next child, whose end is the end of all that it has started
    if pid := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xff)
    with contextlib.suppress(OSError):
        if uid:    # without a map, no file of a tmpfs has an owner
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                Path(f"/proc/self/{name}").write_text(text)
        private_files(folders)
    return True

def confine(seconds, memory, folders):
    """No network, no other processes, no privileges, small limits. `memory` is in bytes, on top of what is there."""
    os.setsid()
    os.umask(0o022)
    alone = namespaces(folders)
    limit = lambda what, n: resource.setrlimit(what, (n, n))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    limit(resource.RLIMIT_CORE, 0)
    if os.getuid() == 0:
        with contextlib.suppress(OSError):    # a container may have a root that cannot become somebody else
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))    # a new user namespace gives all of them
    with contextlib.suppress(ValueError, OSError):
        limit(resource.RLIMIT_NPROC, PROCESSES if alone or os.getuid() == NOBODY else 4096)
