"""The leak check of conftest.py finds what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()


@pytest.mark.parametrize(
    ("what", "body"),
    [
        (
            "threads",
            """
            import threading
            def test_it():
                threading.Thread(target=threading.Event().wait, daemon=True, name="left").start()
            """,
        ),
        (
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
        (
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
        (
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
        (
            "open files, sockets or pipes",
            """
            KEPT = []
            def test_it(tmp_path):
                KEPT.append((tmp_path / "kept").open("w"))
            def teardown_module():
                KEPT[0].close()
            """,
        ),
        (
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
    ],
    ids=["thread", "process", "task", "socket", "file", "pipe"],
)
def test_a_test_that_leaves_something_behind_fails(
    pytester: pytest.Pytester, what: str, body: str
) -> None:
    pytester.makeconftest(CONFTEST.replace("LEAK_GRACE_S = 5.0", "LEAK_GRACE_S = 0.1"))
    pytester.makepyfile(body)
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=1, errors=1)
    outcome.stdout.fnmatch_lines([f"*left {what} behind*"])


def test_a_file_that_nobody_holds_any_more_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import os
        class Cycle:
            pass
        def test_it(tmp_path):
            cycle = Cycle()
            cycle.itself, cycle.number = cycle, os.open(tmp_path / "f", os.O_CREAT | os.O_WRONLY)
            Cycle.__del__ = lambda self: os.close(self.number)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_thread_that_ends_soon_is_no_leak(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import threading
        def test_it():
            threading.Timer(0.1, lambda: None).start()
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
