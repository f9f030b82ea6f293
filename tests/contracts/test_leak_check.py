"""The leak check of conftest.py finds what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()


LEAKING = {
    "thread": (
        "threads",
        """
        import threading
        def test_it():
            threading.Thread(target=threading.Event().wait, daemon=True, name="left").start()
        """,
    ),
    "process": (
        "child processes",
        """
        import subprocess, sys
        KEPT = []
        def test_it():
            KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        def teardown_module():
            KEPT[0].communicate(b"")
        """,
    ),
    "task": (
        "asyncio tasks",
        """
        import asyncio
        KEPT = []
        def test_it():
            loop = asyncio.new_event_loop()
            KEPT.extend([loop, loop.create_task(asyncio.sleep(9))])
            loop.run_until_complete(asyncio.sleep(0))
        def teardown_module():
            KEPT[1].cancel()
            KEPT[0].run_until_complete(asyncio.wait([KEPT[1]]))
            KEPT[0].close()
        """,
    ),
    "socket": (
        "open files, sockets or pipes",
        """
        import socket
        KEPT = []
        def test_it():
            KEPT.append(socket.create_server(("127.0.0.1", 0)))
        def teardown_module():
            KEPT[0].close()
        """,
    ),
    "file": (
        "open files, sockets or pipes",
        """
        KEPT = []
        def test_it(tmp_path):
            KEPT.append((tmp_path / "kept").open("w"))
        def teardown_module():
            KEPT[0].close()
        """,
    ),
    "pipe": (
        "open files, sockets or pipes",
        """
        import os
        KEPT = []
        def test_it():
            KEPT.extend(os.pipe())
        def teardown_module():
            for number in KEPT:
                os.close(number)
        """,
    ),
}
"""By what is left: what the check calls it, and a test file that leaves it."""

SOUND = {
    "a_file_that_nobody_holds_any_more": """
        import os
        class Cycle:
            pass
        def test_it(tmp_path):
            cycle = Cycle()
            cycle.itself, cycle.number = cycle, os.open(tmp_path / "f", os.O_CREAT | os.O_WRONLY)
            Cycle.__del__ = lambda self: os.close(self.number)
    """,
    "a_thread_that_ends_soon": """
        import threading
        def test_it():
            threading.Timer(0.1, lambda: None).start()
    """,
}


def test_a_test_that_leaves_something_behind_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.replace("LEAK_GRACE_S = 5.0", "LEAK_GRACE_S = 0.1"))
    pytester.makepyfile(**{f"test_{left}": body for left, (_, body) in LEAKING.items()})
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=len(LEAKING), errors=len(LEAKING))
    for left, (what, _) in LEAKING.items():
        outcome.stdout.fnmatch_lines_random([f"*test_{left}.py::test_it left {what} behind*"])


def test_what_is_gone_in_time_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{f"test_{what}": body for what, body in SOUND.items()})
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=len(SOUND))
