"""Marks that say what a test does not show are not taken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compatibility.front_ends import BUILT_IN, FRONT_ENDS
from tests.compatibility.heard import heard
from tests.compatibility.marks import wrong
from vuproc.testing.vms import ClientMissing

PLAIN = """
    import pytest

    @pytest.mark.proves({names}, front_end={front_end!r})
    def test_something(shown):
        {body}
"""
FIXTURE = """
    import pytest

    from tests.compatibility import marks

    def pytest_configure(config):
        config.addinivalue_line("markers", marks.HELP)

    def pytest_collection_modifyitems(items):
        marks.check(items)

    @pytest.fixture
    def shown():
        return print
"""


@pytest.mark.parametrize(
    ("arguments", "keywords", "why"),
    [
        (("SET_OWNER",), {}, "front_end"),
        (("SET_OWNER",), {"front_end": BUILT_IN, "version": "7.2"}, "no other keyword"),
        (("SET_OWNER",), {"front_end": "QEMU 1.0"}, "one of QEMU 7.2"),
        ((), {"front_end": BUILT_IN}, "names no message"),
        (("SET_OWNERS",), {"front_end": BUILT_IN}, "no message and no bit 'SET_OWNERS'"),
        (("SET_OWNER", "SET_OWNER"), {"front_end": BUILT_IN}, "twice"),
        (("SEND_RARP", "SET_VRING_ENDIAN"), {"front_end": BUILT_IN}, "SET_VRING_ENDIAN is refused"),
    ],
)
def test_a_mark_that_is_not_in_the_tables_is_wrong(
    arguments: tuple[str, ...], keywords: dict[str, Any], why: str
) -> None:
    assert why in wrong(arguments, keywords)


def test_a_mark_that_is_in_the_tables_is_not() -> None:
    assert wrong(("SET_OWNER", "VHOST_F_LOG_ALL"), {"front_end": BUILT_IN}) == ""


pytest_plugins = ("pytester",)


@pytest.mark.parametrize(
    ("names", "front_end", "body", "why"),
    [
        ("'SET_OWNER'", BUILT_IN, "pass", ""),
        ("'SET_OWNER'", "QEMU 7.2", "shown(())", ""),
        ("'SET_OWNER'", "QEMU 7.2", "pass", "the test calls shown"),
        ("'SET_OWNERS'", BUILT_IN, "pass", "no message and no bit"),
    ],
)
def test_a_wrong_mark_ends_the_collection(
    pytester: pytest.Pytester, names: str, front_end: str, body: str, why: str
) -> None:
    pytester.makeconftest(FIXTURE)
    pytester.makepyfile(PLAIN.format(names=names, front_end=front_end, body=body))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    if why:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert any(why in line for line in result.errlines)
    else:
        result.assert_outcomes(passed=1)


def test_a_mark_in_a_parameter_is_not_taken(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(FIXTURE)
    pytester.makepyfile(
        """
        import pytest

        MARK = pytest.mark.proves("SET_OWNER", front_end="built-in")

        @pytest.mark.parametrize("each", [pytest.param(1, marks=MARK)])
        def test_something(each):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_what_is_refused_or_another_s_line_was_not_heard() -> None:
    lines = [
        "vuproc device: DEBUG: SET_OWNER fds=[] -> no reply (0.09 ms)",
        "vuproc device: DEBUG: SEND_RARP value=1 fds=[] -> value=1, refused: not wanted (0.09 ms)",
        "vuproc device: DEBUG: worker 12 of queue 0: SetFeatures features=0x1 -> 0 (0.46 ms)",
        "vuproc device: DEBUG: SET_FEATURES value=0x120000000 fds=[] -> no reply (6.73 ms)",
        "vuproc device: DEBUG: SET_PROTOCOL_FEATURES value=1 fds=[] -> no reply (0.13 ms)",
        "vuproc device: DEBUG: CONFIG_CHANGE_MSG to the front-end",
        "vuproc device: INFO: RESET_OWNER",
    ]
    assert heard(lines) == {
        "SET_OWNER",
        "SET_FEATURES",
        "VIRTIO_F_EVENT_IDX",
        "VIRTIO_F_VERSION_1",
        "SET_PROTOCOL_FEATURES",
        "PROTOCOL_F_MQ",
        "BACKEND_CONFIG_CHANGE_MSG",
    }


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_front_end_that_is_here_is_the_one_that_marks_name(name: str) -> None:
    try:
        here = FRONT_ENDS[name]()
    except ClientMissing as missing:
        pytest.skip(str(missing))
    assert here == name
