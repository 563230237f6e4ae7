"""Units in several processes of this machine."""

import os
import time

import pytest

from cryptomnesia import UsageError
from cryptomnesia.engine import Processes
from parted import Doubling


def test_every_unit_is_done_and_a_warning_is_logged_once(caplog):
    with Processes(Doubling(dict.fromkeys(range(10), "warns")), 2) as do:
        assert sorted(do(range(30))) == list(range(0, 60, 2))
        assert list(do([])) == []
        assert list(do([4])) == [8]
    assert caplog.messages == ["3 images are odd"]


def test_errors_of_the_work_are_those_of_the_caller():
    with Processes(Doubling({3: "raises"}), 1) as do:
        with pytest.raises(UsageError, match=r"^got what is wrong; give another$"):
            list(do(range(6)))
        # the processes are there for the next units
        assert list(do([5])) == [10]
    with Processes(Doubling({3: "fails"}), 1) as do, pytest.raises(ZeroDivisionError, match="no"):
        list(do(range(6)))


def test_a_process_that_dies_is_an_error_of_one_line():
    message = (
        r"^a process of this machine died over its part of the work; see whether there is enough memory, or give fewer "
        r"workers \(and call it under `if __name__ == '__main__'` in a script\); the same command goes on$"
    )
    with Processes(Doubling({3: "dies"}), 2) as do, pytest.raises(UsageError, match=message):
        list(do(range(6)))


def test_processes_end_with_the_block_whatever_they_do():
    began = time.monotonic()
    with Processes(Doubling({0: "names", 1: "sleeps"}), 1) as do:
        units = do([0, 1])
        process = next(units)
        assert process != os.getpid()
        units.close()
    assert time.monotonic() - began < 50
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("workers", [0, -1, 100_000])
def test_an_absurd_number_of_processes_is_refused(workers):
    with pytest.raises(UsageError, match=rf"^got {workers} workers, each a process, on \d+ cores; give 1 to \d+$"):
        Processes(Doubling(), workers)
