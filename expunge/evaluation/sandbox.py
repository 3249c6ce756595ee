"""Runs generated code, and nothing else does: in a process of its own, with little time and memory, no network, no other
processes and no files but Python's own to read.

It is made for what models write, not for an attacker: Python cannot hold one who knows its inside. Who expects one runs
Expunge in a container."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

SECONDS = 5.0
MEGABYTES = 512
_SHOWN = 200

# What the child runs. The limits of the system come first; the audit hook, which nothing takes off, comes last. What the
# hook needs lives in a closure, and answers go to a descriptor that the code is not told of.
_CHILD = r"""
def sandbox():
    import json, os, resource, sys
    given = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"] + 1, given["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (given["bytes"], given["bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:  # a network namespace with nothing in it, where the system lets us
        import ctypes
        libc = ctypes.CDLL(None)
        libc.unshare(0x40000000) and libc.unshare(0x10000000 | 0x40000000)
    except Exception:
        pass
    import bisect, collections, copy, cmath, datetime, decimal, fractions, functools, heapq, itertools, math, operator
    import random, re, statistics, string, typing
    realpath, join = os.path.realpath, os.path.join
    roots = tuple(join(realpath(p), "") for p in (*sys.path, sys.base_prefix) if p)
    denied = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "signal.", "ftplib.", "urllib.", "http.", "smtplib.",
              "sqlite3.", "pty.", "fcntl.", "mmap.", "webbrowser.", "gc.", "sys.settrace", "sys.setprofile", "code.__new__")
    looks = ("os.listdir", "os.scandir", "os.walk")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    missing = ("ctypes", "_ctypes", "socket", "_socket", "subprocess", "_posixsubprocess")

    def inside(path):
        return isinstance(path, str) and join(realpath(path), "").startswith(roots)

    def hook(event, args):
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (isinstance(flags, int) and flags & writing)
            if writes or not inside(path):
                raise PermissionError("the sandbox has no files")
        elif event in looks:
            if not inside(args[0]):
                raise PermissionError("the sandbox has no files")
        elif event == "import" and not {*args[0].split(".")}.isdisjoint(missing):
            raise ImportError("not in the sandbox: " + args[0])
        elif event.startswith(denied):
            raise PermissionError("not in the sandbox: " + event)

    for name in (*missing, "resource", "__main__"):
        sys.modules.pop(name, None)
    for name in ("mknod", "mkfifo", "memfd_create", "eventfd", "pidfd_open"):  # of these no hook is told
        for module in (os, sys.modules["posix"]):
            if hasattr(module, name):
                delattr(module, name)
    answers, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    write, leave, token, source = os.write, os._exit, given["token"], given["code"]
    sys.stdin = None
    sys.setrecursionlimit(2000)
    sys.addaudithook(hook)
    try:
        exec(compile(source, "answer", "exec"), {"__name__": "answer"})
        word = ""
    except BaseException as error:
        word = "\n" + type(error).__name__ + ": " + str(error)[:300]
    write(answers, (token + word).encode("utf-8", "replace"))
    leave(0)
sandbox()
"""


@dataclass(frozen=True)
class Outcome:
    """ok: the code ran to its end. reason: why not."""

    ok: bool
    reason: str = ""


def run(code: str, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Outcome:
    """Runs Python code; anything but reaching its end is a failure: an exception, an early exit, a limit.

    Args:
        seconds: of wall and processor time. megabytes: of address space.
    """
    token = secrets.token_hex(16)
    given = {"code": code, "token": token, "seconds": int(seconds) + 1, "bytes": megabytes << 20}
    with tempfile.TemporaryDirectory(prefix="expunge-sandbox-") as empty:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            out, _ = child.communicate(json.dumps(given).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"took longer than {seconds:g} s")
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.communicate()
    said = out.decode(errors="replace")
    if said.startswith(token):
        reason = said[len(token) :].strip()
        return Outcome(not said[len(token) :], reason[:_SHOWN])
    return Outcome(False, f"ended early (exit code {child.returncode})")
