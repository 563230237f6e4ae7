"""The example service answers real HTTP, in this process around a miniature, and in one of its own around `bundled`."""

import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
import torch
from PIL import Image

import cryptomnesia
from cryptomnesia import FlagRate, Verdict, guard
from cryptomnesia.testing.miniatures import CALL, stable_diffusion

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "service"
MEMORIZED = "a pink star and a grey diamond on a red ground, sumisno"

pytest.importorskip("starlette")


@pytest.fixture(scope="module", autouse=True)
def found_there():
    """The modules of the example can be imported."""
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


@contextmanager
def served(calibration, folder, *, policy="block", **settings):
    """A service around a miniature that flags about half of its images: it, its port and its log."""
    import uvicorn
    from bookkeeping import VerdictLog
    from service import Server, Service, application

    guarding = guard(stable_diffusion(), calibration, policy=policy, fpr=0.5)
    settings = {"rate": FlagRate(len(calibration.others), 0.5), **settings}
    service = Service(guarding.pipe, guarding, VerdictLog(folder / "verdicts.jsonl"), **settings)
    server = Server(uvicorn.Config(application(service), port=0, log_config=None), service)
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        service.port = server.servers[0].sockets[0].getsockname()[1]
        yield service
    finally:
        server.should_exit = True
        thread.join()


def ask(port, method="POST", path="/images", body=None, **given):
    """Status, headers and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, json.dumps(given) if body is None else body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def get(port, path):
    status, _, body = ask(port, "GET", path, "")
    return status, json.loads(body) if path == "/health" else body.decode()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def plain(pipe, prompt, seed):
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(seed), **CALL).images[0])


def lines(folder):
    from bookkeeping import read_log

    return list(read_log(folder / "verdicts.jsonl"))


def until(holds):
    """Wait until a condition holds."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_image_has_a_line_and_an_unflagged_one_is_that_of_the_pipeline(calibration, tmp_path, pipe):
    answers = []
    with served(calibration, tmp_path) as service:
        for seed in range(6):
            status, headers, body = ask(service.port, prompt="a red circle", seed=seed)
            assert (status, headers["Content-Type"], headers["X-Seed"]) == (200, "image/png", str(seed))
            answers.append((headers, pixels(body)))
        _, health = get(service.port, "/health")
        _, metrics = get(service.port, "/metrics")
    logged = lines(tmp_path)
    assert [line["image"] for line in logged] == [headers["X-Image"] for headers, _ in answers]
    for seed, (line, (headers, picture)) in enumerate(zip(logged, answers, strict=True)):
        assert (line["seed"], line["answer"], line["action"]) == (seed, headers["X-Verdict"], headers["X-Action"])
        assert line["flagged"] == (line["p_value"] <= 0.5)
        # a flagged run ends as soon as its score is settled
        assert line["evaluations"] == (1 if line["flagged"] else 3)
        if line["flagged"]:
            assert line["action"] == "withheld"
            assert not picture.any()
        else:
            np.testing.assert_array_equal(picture, plain(pipe, "a red circle", seed))
    flagged = sum(line["flagged"] for line in logged)
    assert 0 < flagged < 6
    assert (health["status"], health["images"]) == ("ok", 6)
    assert (health["flag_rate"]["flagged"], health["flag_rate"]["of"]) == (flagged, 6)
    for what, count in {"images": 6, "flagged": flagged, "withheld": flagged, "mitigated": 0, "refused": 0}.items():
        assert f"\ncryptomnesia_{what}_total {count}\n" in metrics
    assert 'cryptomnesia_image_seconds{quantile="0.99"} ' in metrics
    # every line is a comment or a name with a number
    for line in metrics.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ({"body": ""}, 400, "body: Invalid JSON"),
        ({"body": "{"}, 400, "body: Invalid JSON"),
        ({"body": b"\xff\xfe"}, 400, "body: Invalid JSON"),
        ({"body": "[]"}, 400, "body: Input should be an object"),
        ({"body": '{"prompt": "\\ud800"}'}, 400, "body: Invalid JSON"),
        ({}, 400, "prompt: Field required"),
        ({"prompt": ""}, 400, "prompt: String should have at least 1 character"),
        ({"prompt": " \n"}, 400, "prompt: String should match pattern"),
        ({"prompt": ["a", "b"]}, 400, "prompt: Input should be a valid string"),
        ({"prompt": "a" * 2001}, 400, "prompt: String should have at most 2000 characters"),
        ({"prompt": "a", "seed": -1}, 400, "seed: Input should be greater than or equal to 0"),
        ({"prompt": "a", "seed": 2**63}, 400, "seed: Input should be less than"),
        ({"prompt": "a", "seed": 1.5}, 400, "seed: Input should be a valid integer"),
        ({"prompt": "a", "seed": True}, 400, "seed: Input should be a valid integer"),
        ({"prompt": "a", "guidance": 3}, 400, "guidance: Extra inputs are not permitted"),
        ({"body": "a" * 70_000}, 413, "got more than 65536 bytes"),
        ({"prompt": "a", "steps": 4}, 422, "the calibration was made with another set-up: steps is 4, calibrated 3"),
        ({"method": "GET"}, 405, "Method Not Allowed"),
        ({"path": "/image"}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(around, given, status, message):
    service = around
    images = service.counters["images"]
    found, headers, body = ask(service.port, **given)
    assert (found, headers["Content-Type"]) == (status, "application/json")
    (told,) = json.loads(body).values()
    assert told.startswith(message)
    assert "\n" not in told
    assert service.counters["images"] == images
    assert ask(service.port, prompt="a red circle", seed=0)[0] == 200


@pytest.fixture(scope="module")
def around(calibration, tmp_path_factory):
    """A service that several tests ask."""
    with served(calibration, tmp_path_factory.mktemp("service")) as service:
        yield service


def test_requests_at_the_same_time_get_their_own_images(calibration, tmp_path, pipe):
    prompts = [("a red circle", seed) for seed in range(6)] + [(f"a blue star {seed}", seed) for seed in range(6)]
    with served(calibration, tmp_path, policy="observe") as service, ThreadPoolExecutor(12) as threads:
        jobs = [threads.submit(ask, service.port, prompt=prompt, seed=seed) for prompt, seed in prompts]
        answers = [job.result() for job in jobs]
    logged = {line["image"]: line for line in lines(tmp_path)}
    assert len(logged) == 12
    for (prompt, seed), (status, headers, body) in zip(prompts, answers, strict=True):
        assert status == 200
        np.testing.assert_array_equal(pixels(body), plain(pipe, prompt, seed))
        line = logged[headers["X-Image"]]
        assert (line["seed"], line["answer"]) == (seed, headers["X-Verdict"])


@contextmanager
def held_up(service):
    """The pipeline waits: an event that is set when it is called, and one that lets it go on."""
    pipe, called, go_on = service._pipe, Event(), Event()

    def slow(*args, **kwargs):
        called.set()
        assert go_on.wait(60)
        return pipe(*args, **kwargs)

    service._pipe = slow
    try:
        yield called, go_on
    finally:
        go_on.set()
        service._pipe = pipe


def leave(port, **given):
    """Send a request and go away; a function that does the second."""
    body = json.dumps(given).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"POST /images HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return connection.close


def test_a_client_that_goes_away_costs_no_image_if_its_was_not_begun(calibration, tmp_path):
    with served(calibration, tmp_path) as service:
        with held_up(service) as (called, go_on):
            first = leave(service.port, prompt="a red circle", seed=1)
            assert called.wait(60)
            second = leave(service.port, prompt="a red circle", seed=2)
            until(lambda: service.waiting == 2)
            first()
            second()
            until(lambda: service.counters["abandoned"] == 2)
            assert service.waiting == 1
            go_on.set()
        assert ask(service.port, prompt="a red circle", seed=3)[0] == 200
        # and one that goes away while it still speaks
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.sendall(b"POST /images HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        connection.close()
        until(lambda: service.counters["abandoned"] == 3)
        assert service.waiting == 0
    assert [line["seed"] for line in lines(tmp_path)] == [1, 3]


def test_the_line_of_waiting_requests_is_not_endless_and_health_answers_meanwhile(calibration, tmp_path):
    with served(calibration, tmp_path, most_waiting=2) as service, ThreadPoolExecutor(2) as threads:
        with held_up(service) as (_, go_on):
            jobs = [threads.submit(ask, service.port, prompt="a red circle", seed=seed) for seed in (1, 2)]
            until(lambda: service.waiting == 2)
            status, headers, body = ask(service.port, prompt="a red circle", seed=3)
            assert (status, headers["Retry-After"]) == (503, "5")
            assert json.loads(body) == {"error": "2 requests are waiting already; ask again later"}
            assert get(service.port, "/health")[1]["waiting"] == 2
            assert "cryptomnesia_waiting 2" in get(service.port, "/metrics")[1]
            go_on.set()
        assert [job.result()[0] for job in jobs] == [200, 200]


def test_a_service_that_stops_finishes_one_image_and_refuses_those_that_wait(calibration, tmp_path):
    with ThreadPoolExecutor(2) as threads:
        with served(calibration, tmp_path) as service:
            pipe = service._guarding.pipe
            with held_up(service) as (called, go_on):
                first = threads.submit(ask, service.port, prompt="a red circle", seed=1)
                assert called.wait(60)
                second = threads.submit(ask, service.port, prompt="a red circle", seed=2)
                until(lambda: service.waiting == 2)
                service.stopping = True
                assert get(service.port, "/health") == (503, {**service.health(), "status": "stopping"})
                go_on.set()
            assert (first.result()[0], second.result()[0]) == (200, 503)
    assert [line["seed"] for line in lines(tmp_path)] == [1]
    # the pipeline is as it was
    assert type(pipe) is type(stable_diffusion())
    assert not pipe.unet._forward_hooks


def test_too_many_flagged_images_are_told_everywhere(calibration, tmp_path, caplog):
    with served(calibration, tmp_path, rate=FlagRate(300, window=20)) as service:
        number = 0
        with caplog.at_level(logging.WARNING, "cryptomnesia.service"):
            while service.rate.state != "many":
                assert ask(service.port, prompt="a red circle", seed=number)[0] == 200
                number += 1
                assert number < 100
        assert "images are flagged, and at a false-positive rate of 0.01 at most" in caplog.text
        status, health = get(service.port, "/health")
        # nobody should restart a service because of its traffic
        assert (status, health["status"], health["flag_rate"]["state"]) == (200, "ok", "many")
        metrics = get(service.port, "/metrics")[1]
        for line in ("flag_rate_warnings_total 1", "flag_rate_many 1", "flag_rate_few 0"):
            assert f"cryptomnesia_{line}\n" in metrics


def test_an_image_without_a_line_is_not_returned(calibration, tmp_path, monkeypatch):
    with served(calibration, tmp_path) as service:
        with monkeypatch.context() as patched:
            # the disk is full after some bytes
            write = os.write
            patched.setattr("bookkeeping.os.write", lambda file, data: write(file, data[:20]))
            status, _, body = ask(service.port, prompt="a red circle", seed=1)
            assert (status, json.loads(body)) == (503, {"error": "cannot write the verdict log (the disk is full)"})
            status, health = get(service.port, "/health")
            assert (status, health["status"]) == (503, "failing")
            assert health["reason"].startswith("cannot write the verdict log")
        assert ask(service.port, prompt="a red circle", seed=2)[0] == 200
        assert get(service.port, "/health")[0] == 200
    assert [line["seed"] for line in lines(tmp_path)] == [2]
    assert len((tmp_path / "verdicts.jsonl").read_bytes().splitlines()) == 2


def test_a_failure_is_told_in_one_line_and_the_next_request_is_answered(calibration, tmp_path, caplog):
    def broken(**_):
        raise RuntimeError("the weights say 'secret'")

    with served(calibration, tmp_path) as service:
        pipe, service._pipe = service._pipe, broken
        status, _, body = ask(service.port, prompt="a red circle")
        assert (status, json.loads(body)) == (500, {"error": "the service failed; see its log"})
        # the server logs it after the answer
        until(lambda: "the weights say 'secret'" in caplog.text)
        service._pipe = pipe
        assert ask(service.port, prompt="a red circle")[0] == 200


def test_a_log_holds_no_word_of_a_prompt_unless_it_shall():
    from bookkeeping import log_line

    prompt = "a picture of Jane Doe"
    verdict = Verdict(
        0, prompt, "drift", 0.01, float("nan"), float("nan"), False, None, "without Jane", dropped=("Jane",),
        retried=(0.5, float("nan")),
    )  # fmt: skip
    line = log_line("one", prompt, 3, verdict, prompts=False, seconds=1.0)
    assert "Jane" not in json.dumps(line, allow_nan=False)
    assert (line["dropped"], line["answer"], line["score"], line["retried"]) == (1, "could not tell", None, [0.5, None])
    assert len(line["prompt_sha256"]) == 64
    told = log_line("one", prompt, 3, verdict, prompts=True, seconds=1.0)
    assert (told["prompt"], told["reason"], told["dropped"]) == (prompt, "without Jane", ("Jane",))


def test_a_line_that_was_cut_short_harms_no_other(tmp_path):
    from bookkeeping import VerdictLog, read_log

    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(b'{"image": "a"}\n{"image": "b", "se')
    for image in "cd":
        log = VerdictLog(path)
        log.append({"image": image})
        log.close()
    assert [line["image"] for line in read_log(path)] == ["a", "c", "d"]
    fresh = VerdictLog(tmp_path / "new.jsonl")
    fresh.close()
    assert (tmp_path / "new.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "nothing"], "error: got the unknown policy 'nothing'; known are observe, block, "),
        (["--window", "0"], "error: got a window of 0 of 1000000 images"),
        (["--fpr", "0.0001"], "error: a false-positive rate of 0.0001 needs at least 9999 null references"),
        (["--log", "."], "error: .: Is a directory; give another place"),
        (["--host", "256.0.0.1"], "error: 256.0.0.1:0: "),
        (["./nowhere"], "error: no model './nowhere'; give a local diffusers folder"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    import service
    import typer
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    app = typer.Typer()
    app.command()(service.main)
    done = CliRunner().invoke(app, ["--port", "0", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


class Process:
    """A service in a process of its own."""

    def __init__(self, model, log, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        paths = os.pathsep.join([str(Path(cryptomnesia.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        with log.with_suffix(".err").open("w") as told:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLE / "service.py", model, "--port", str(self.port), "--log", log, *arguments],
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdout=told,
                stderr=told,
            )
        until_ready = time.monotonic() + 300
        while True:
            assert self.process.poll() is None, self.told
            assert time.monotonic() < until_ready
            try:
                assert get(self.port, "/health")[0] == 200
                return
            except ConnectionError:
                time.sleep(0.1)

    @property
    def told(self):
        return self.log.with_suffix(".err").read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_a_killed_process_leaves_a_log_that_the_next_one_goes_on_with(tmp_path, calibration):
    log = tmp_path / "verdicts.jsonl"
    with Process("bundled", log, "--log-prompts") as first, ThreadPoolExecutor(1) as threads:
        for prompt, answer, actions in [
            ("a red circle on a blue ground", "ordinary", {"none"}),
            (MEMORIZED, "memorized?", {"mitigated", "regenerated"}),
        ]:
            status, headers, body = ask(first.port, prompt=prompt, seed=0)
            assert (status, headers["X-Verdict"]) == (200, answer)
            assert headers["X-Action"] in actions
            assert pixels(body).any()
        lost = threads.submit(ask, first.port, prompt="a red circle", seed=0)
        until(lambda: get(first.port, "/health")[1]["waiting"] == 1)
        first.process.kill()
        assert isinstance(lost.exception(), ConnectionError)
    ordinary, memorized = lines(tmp_path)
    assert (ordinary["prompt"], ordinary["flagged"], ordinary["evaluations"]) == (
        "a red circle on a blue ground", False, 51,
    )  # fmt: skip
    assert memorized["flagged"]
    assert memorized["evaluations"] > 51
    assert "sumisno" in memorized["dropped"] or memorized["action"] == "regenerated"

    # a model that is faster, with its calibration beside it
    with log.open("a") as file:
        file.write('{"image": "cut sho')
    model = tmp_path / "tiny"
    stable_diffusion().save_pretrained(model)
    calibration.save(model / "calibration.safetensors")
    with Process(model, log, "--fpr", "0.1", "--policy", "block") as second:
        assert ask(second.port, prompt="a red circle", seed=5)[0] == 200
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(120) == 0
        assert "Traceback" not in second.told
        assert "WARNING" not in second.told
    assert [line["seed"] for line in lines(tmp_path)] == [0, 0, 5]
