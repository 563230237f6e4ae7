"""Units on a Ray cluster of several machines, which are processes of this one."""

import logging
import os
import random
import time
from pathlib import Path

import pytest

from cryptomnesia import UsageError, engine
from cryptomnesia.engine import OnRay, check_engine

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a machine without cores, where the driver is, and two with one core each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


class Doubling:
    """Doubles numbers, and does as the number says that are in `odd`."""

    def __init__(self, odd, marks=""):
        self.odd, self.marks = odd, marks

    def __call__(self, number):
        what = self.odd.get(number)
        if what == "dies":
            os._exit(1)
        if what == "dies once" and not Path(self.marks).exists():
            Path(self.marks).touch()
            os._exit(1)
        if what == "raises":
            raise UsageError("got what is wrong; give another")
        if what == "fails":
            raise ZeroDivisionError("no")
        if what == "warns":
            logging.getLogger("cryptomnesia").warning("%d images are odd", 3)
        time.sleep(0.01)
        return 2 * number


def test_engines_that_do_not_exist_are_refused():
    check_engine("local")
    check_engine("ray")
    check_engine("ray://host:10001")
    with pytest.raises(UsageError, match=r"got the engine spark; give local, ray, or the address of a cluster as ray:"):
        check_engine("spark")


def test_every_unit_is_done(cluster):
    with OnRay(Doubling({}), "ray") as do:
        assert sorted(do(range(50))) == list(range(0, 100, 2))
        assert list(do([])) == []
        assert list(do([4])) == [8]


def test_units_are_taken_when_there_is_a_process_for_them(cluster):
    taken = []

    def units():
        for number in range(30):
            taken.append(number)
            yield number

    with OnRay(Doubling({}), "ray", workers=1) as do:
        for done, _ in enumerate(do(units()), start=1):
            # one in work, one ready
            assert len(taken) <= done + 2
    assert taken == list(range(30))


def test_a_unit_whose_process_died_goes_to_another(cluster, tmp_path, capsys):
    with OnRay(Doubling({7: "dies once"}, str(tmp_path / "died"))) as do:
        assert sorted(do(range(20))) == list(range(0, 40, 2))
        # Ray says so a moment later, where it is in nobody's way
        time.sleep(2)
    assert (tmp_path / "died").exists()
    assert capsys.readouterr().out == ""


def test_a_unit_that_kills_every_process_is_named(cluster):
    message = r"5 processes died, one after the other, over the same part of the work \(7\); see whether they have"
    with OnRay(Doubling({7: "dies"})) as do, pytest.raises(UsageError, match=message):
        list(do(range(20)))


def test_errors_of_the_work_are_those_of_the_driver(cluster):
    with OnRay(Doubling({7: "raises"})) as do, pytest.raises(UsageError, match=r"^got what is wrong; give another$"):
        list(do(range(20)))
    with OnRay(Doubling({7: "fails"})) as do, pytest.raises(ZeroDivisionError, match="no"):
        list(do(range(20)))


def test_a_warning_of_every_process_is_logged_once(cluster, caplog):
    with OnRay(Doubling(dict.fromkeys(range(10), "warns"))) as do:
        list(do(range(10)))
    assert caplog.messages == ["3 images are odd"]


class NotHere:
    """Work that another process cannot load, as if the package were missing there."""

    def __reduce__(self):
        return (__import__, ("a_package_that_is_missing",))


def test_processes_that_cannot_start_are_an_error_of_one_line(cluster):
    message = (
        r"no process can start on the Ray cluster \(ModuleNotFoundError: .*\); its machines need the same Python, "
    )
    with OnRay(NotHere()) as do, pytest.raises(UsageError, match=message):
        list(do([1]))


def test_a_cluster_without_room_is_refused(cluster):
    with pytest.raises(UsageError, match=r"the Ray cluster has no free GPU for a process; add a machine, or give --de"):
        OnRay(Doubling({}), gpu=True).__enter__()


@pytest.mark.slow
def test_machines_that_join_help_and_machines_that_die_are_replaced(cluster, monkeypatch):
    monkeypatch.setattr(engine, "_ROOM_EVERY", 0.5)
    draws = random.Random(0)
    added = []
    with OnRay(Slow()) as do:
        done = []
        for result in do(range(400)):
            done.append(result)
            if len(done) % 80 == 20:
                added.append(cluster.add_node(num_cpus=1))
            if len(done) % 80 == 60:
                cluster.remove_node(added.pop(draws.randrange(len(added))), allow_graceful=False)
    assert sorted(result for result, _ in done) == list(range(400))
    assert len({process for _, process in done}) >= 4
    for node in added:
        cluster.remove_node(node)


class Slow:
    """Returns a number, and the process that had it."""

    def __call__(self, number):
        time.sleep(0.1)
        return number, os.getpid()


def test_work_waits_for_room(cluster, monkeypatch, caplog):
    monkeypatch.setattr(engine, "_ROOM_EVERY", 0.1)
    monkeypatch.setattr(engine, "_PATIENCE", 0.2)
    with OnRay(Doubling({})) as do:
        room = type(do)._room
        for actor in [*do._free, *(actor for actor, _ in do._awaited.values())]:
            ray.kill(actor)
        do._awaited.clear()
        began = time.monotonic()
        monkeypatch.setattr(type(do), "_room", lambda here: room(here) if time.monotonic() - began > 2 else 0)
        assert list(do([4])) == [8]
    assert [text for text in caplog.messages if text.startswith("no process of the Ray cluster runs")]


def test_a_connection_that_is_lost_is_an_error_of_one_line(cluster, monkeypatch):
    def lost(*_, **__):
        raise ConnectionError("ray client has been disconnected\nfor ever")

    with OnRay(Doubling({})) as do:
        with monkeypatch.context() as patch:
            patch.setattr(ray, "wait", lost)
            with pytest.raises(
                UsageError, match=r"the connection to the Ray cluster is lost \(ray client has been disc"
            ):
                list(do([4]))
