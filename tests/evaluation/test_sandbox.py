from __future__ import annotations

import importlib
import socket

import pytest

from expunge.evaluation.code import code_in, defines_function, is_prose, passes
from expunge.evaluation.sandbox import run


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "took longer"),
        ("x = 'a' * (1 << 30)", "MemoryError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "early"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("import socket", "not in the sandbox"),
        ("import urllib.request", "not in the sandbox"),
        ("import os; os.system('true')", "not in the sandbox"),
        ("import os; os.fork()", "not in the sandbox"),
        ("import subprocess", "not in the sandbox"),
        ("import ctypes", "not in the sandbox"),
        ("open('/etc/passwd').read()", "no files"),
        ("open('x', 'w')", "no files"),
        ("import os; os.remove('/tmp/x')", "not in the sandbox"),
        ("import os; os.kill(os.getppid(), 9)", "not in the sandbox"),
        ("import os; os.mknod('made')", "AttributeError"),
        ("import os; os.mkfifo('made')", "AttributeError"),
        ("import posix; posix.mkfifo('made')", "AttributeError"),
        ("import os; os.memfd_create('made')", "AttributeError"),
        ("import os; os.open(os.__file__, os.O_RDONLY | os.O_CREAT)", "no files"),
        ("import os; os.open(os.__file__ + '.none', os.O_RDONLY | os.O_TRUNC)", "no files"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_what_generated_code_may_not_do(code, reason):
    found = run(code, seconds=3)
    assert not found.ok
    assert reason in found.reason


def test_ordinary_code_runs():
    assert run("import math, re, collections\nassert math.gcd(4, 6) == 2\nimport json\njson.dumps({})").ok
    assert run("print('loud')\ninput = 3").ok
    assert run("from collections import namedtuple\nP = namedtuple('P', 'x y')\nassert P(1, 2).y == 2").ok


def test_no_environment_and_no_way_out(monkeypatch):
    monkeypatch.setenv("EXPUNGE_SECRET", "x")
    assert run("import os\nassert 'EXPUNGE_SECRET' not in os.environ").ok
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.5)
    port = server.getsockname()[1]
    # Modules that are there already, and the descriptors that answers could go to.
    sneaky = f"""
import sys
for module in list(sys.modules.values()):
    for name in ("socket", "_socket", "socketpair"):
        made = getattr(module, name, None)
        if made is not None:
            made.create_connection(("127.0.0.1", {port}))
import random
random._os.write(1, b"x" * 100)
"""
    assert run(sneaky).ok  # it found nothing to connect with
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


@pytest.mark.parametrize(
    "code",
    [
        "import __main__\n__main__.denied = ()\nimport os\nos.system('true')",
        "import os\nos.listdir('/')",
        "import sys\nsys.modules['__main__'].end('')",
        "print(1, file=open('/dev/stdout', 'w'))",
    ],
)
def test_what_a_reader_of_the_sandbox_would_try_first(code):
    assert not run(code).ok


@pytest.mark.parametrize("name", ["_posixsubprocess", "_socket"])
def test_what_starts_processes_or_opens_sockets_is_not_loaded_under_another_name(name):
    path = getattr(importlib.import_module(name), "__file__", None)
    if path is None:
        pytest.skip(f"{name} is built in")
    loaded = f"""
from importlib.machinery import ExtensionFileLoader, ModuleSpec
loader = ExtensionFileLoader("foo.{name}", {path!r})
loader.create_module(ModuleSpec("foo.{name}", loader, origin={path!r}))
"""
    found = run(loaded)
    assert not found.ok
    assert found.reason.startswith("ImportError: not in the sandbox")


GOOD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."


def test_what_counts_as_code():
    assert code_in(GOOD) == "def add(a, b):\n    return a + b"
    assert defines_function(GOOD)
    assert defines_function("    def f():\n        pass")
    assert not defines_function("```python\ndef f(:\n```")
    function = GOOD[GOOD.index("```") : GOOD.rindex("```") + 3]
    for answer in (
        "First:\n```bash\npip install it\n```\nThen:\n" + function,
        function.replace("python", "python3"),
        "It prints\n```\n3\n```\nwith\n" + function,
        function + "\nand is used so:\n```python\nadd(1, 2)\n```",
    ):
        assert passes(answer, ["assert add(1, 2) == 3"])
    assert code_in("```text\none\n```\n```text\ntwo\n```") == "one"
    assert not defines_function("x = 1")
    assert not defines_function("I would rather not.")
    assert passes(GOOD, ["assert add(1, 2) == 3"])
    assert not passes(GOOD, ["assert add(1, 2) == 4"])
    assert not passes("```\ndef add(a, b):\n    import sys\n    sys.exit(0)\n```", ["assert add(1, 2) == 3"])


def test_looking_at_code_warns_of_nothing(recwarn):
    assert defines_function("def f(x):\n    return 1if x is 2else 3")
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("answer", "prose"),
    [
        ("To add two numbers, write them below each other and begin on the right.", True),
        (GOOD, False),
        ("def add(a, b): return", False),
        ("the the the the the the", False),
        ("", False),
        ("No.", False),
        ("((1,2),(3,4)) -> 7 == 7 && x", False),
    ],
)
def test_well_formed_prose(answer, prose):
    assert is_prose(answer) == prose
