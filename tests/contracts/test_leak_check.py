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
    ],
    ids=["thread", "process", "task"],
)
def test_a_test_that_leaves_something_behind_fails(
    pytester: pytest.Pytester, what: str, body: str
) -> None:
    pytester.makeconftest(CONFTEST.replace("LEAK_GRACE_S = 5.0", "LEAK_GRACE_S = 0.1"))
    pytester.makepyfile(body)
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=1, errors=1)
    outcome.stdout.fnmatch_lines([f"*left {what} behind*"])


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
