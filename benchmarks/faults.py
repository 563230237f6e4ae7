"""An audit on a Ray cluster of several machines whose parts are killed at random moments.

The machines are processes of this one (`ray.cluster_utils`): one without cores, where the command connects, and two
with one core each. What is killed, by SIGKILL: a process of the audit that has a batch, a machine with everything on
it, or the command itself, which is then given again. A killed machine is replaced after some seconds.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VICTIMS = ("process", "machine", "command")


def audit_under_fire(
    arguments: Sequence[str], folder: Path, faults: int, seed: int = 0, tell: Callable[[int], Any] = lambda _: None
) -> dict[str, int]:
    """Audit into a folder while parts of the cluster are killed.

    Args:
        arguments: of `cryptomnesia audit`, but for the output, the engine and the workers.
        folder: of the run.
        faults: number of kills.
        seed: of what is killed when.
        tell: called with the number of kills.

    Returns:
        The number of kills by kind. The run may be finished before all have been made.

    Raises:
        RuntimeError: if the command ends in an error.
    """
    import ray
    from ray.cluster_utils import Cluster

    draws, counts = random.Random(seed), dict.fromkeys(VICTIMS, 0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    log = (folder.parent / f"{folder.name}.log").open("w+")
    command = [sys.executable, "-m", "cryptomnesia", "audit", *arguments, "-o", str(folder), "--engine", "ray"]

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=subprocess.DEVNULL, stderr=log
        )

    driver = started()
    try:
        while sum(counts.values()) < faults:
            # some batches later, and a moment after that, so that any point of a batch may be hit
            wanted = _batches(folder) + draws.randint(1, 3)
            while _batches(folder) < wanted and driver.poll() is None:
                time.sleep(0.02)
            time.sleep(draws.random())
            if driver.poll() is not None:
                break
            victim = draws.choice(VICTIMS)
            if victim == "command":
                driver.kill()
                driver.wait()
                driver = started()
            elif victim == "machine":
                cluster.remove_node(nodes.pop(draws.randrange(len(nodes))), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            elif found := _processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draws.choice(found), signal.SIGKILL)
            else:
                continue
            counts[victim] += 1
            tell(sum(counts.values()))
        code = driver.wait()
        if code not in (0, 1, 3):
            log.seek(0)
            raise RuntimeError(f"the audit ended with code {code}: {log.read()[-2000:]}")
    finally:
        driver.kill()
        cluster.shutdown()
        ray.shutdown()
        log.close()
    return counts


def _batches(folder: Path) -> int:
    """The number of batches of references and images that are done."""
    return len(list(folder.glob("[ri]*/*.parquet")))


def _processes() -> list[int]:
    """The processes of the audit that have a unit: Ray gives them the name of what they do.

    Their parent is the main process of a machine, which this process has started.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                named = (entry / "cmdline").read_bytes().startswith(b"ray::_Process.do")
                if named and _parent(_parent(int(entry.name))) == os.getpid():
                    found.append(int(entry.name))
    return found


def _parent(process: int) -> int:
    """The parent of a process. What stands before it in the file, a name in brackets, may hold anything."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
