"""Runs generated code, and nothing else does: in a process of its own, with little time and memory, no network, no other
processes and no files but Python's own to read."""

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

# What the child runs. The limits of the system come first; the audit hook, which cannot be taken off, comes last.
_CHILD = r"""
import sys, os, json, builtins, resource
given = json.loads(sys.stdin.buffer.read())
resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"] + 1, given["seconds"] + 1))
resource.setrlimit(resource.RLIMIT_AS, (given["bytes"], given["bytes"]))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    import ctypes
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # a network namespace with nothing in it, where the system has it
except Exception:
    pass
import math, re, collections, itertools, functools, heapq, bisect, string, random, typing, operator, datetime, copy, decimal, fractions, statistics, cmath
roots = tuple(os.path.realpath(p) for p in sys.path if p) + (os.path.realpath(sys.base_prefix),)
denied = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "signal.", "ftplib.", "urllib.", "http.", "smtplib.",
          "sqlite3.", "pty.", "fcntl.", "mmap.", "webbrowser.", "gc.", "sys.settrace", "sys.setprofile",
          "code.__new__")
allowed = ("os.listdir", "os.scandir", "os.walk")
realpath = os.path.realpath
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (isinstance(flags, int) and flags & 3)
        if writes or not isinstance(path, str) or not realpath(path).startswith(roots):
            raise PermissionError("the sandbox has no files")
    elif event == "import" and args[0].split(".")[0] in ("ctypes", "_ctypes", "socket", "_socket", "subprocess", "_posixsubprocess"):
        raise ImportError("not in the sandbox: " + args[0])
    elif event.startswith(denied) and event not in allowed:
        raise PermissionError("not in the sandbox: " + event)
for name in ("ctypes", "_ctypes", "socket", "_socket", "subprocess", "_posixsubprocess"):
    sys.modules.pop(name, None)
write, leave = os.write, os._exit
def end(word, token=given.pop("token")):
    write(1, (token + word[:300]).encode("utf-8", "replace"))
    leave(0)
source = given["code"]
sys.stdin = None
sys.stdout = sys.stderr = open(os.devnull, "w")
sys.setrecursionlimit(2000)
del given, os, resource
sys.addaudithook(hook)
try:
    exec(compile(source, "answer", "exec"), {"__name__": "answer"})
except BaseException as error:
    end("\n" + type(error).__name__ + ": " + str(error))
else:
    end("")
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
