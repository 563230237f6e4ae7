"""An HTTP service in front of a guarded pipeline.

    pip install '.[service]'
    python examples/service/service.py bundled --port 8000

`POST /images` with `{"prompt": "…", "seed": 0}` answers with a PNG, `GET /health` with JSON, `GET /metrics` with the
text format of Prometheus. Every image has one line in the verdict log.

A pipeline must not be called by two threads at once. Here one thread owns it, and all requests wait in line for that
thread. A lock around the calls would be right as well, but every waiting request would hold a thread, and a request
whose client has gone could not leave the line. The event loop stays free, so /health and /metrics answer at once.
"""

import asyncio
import io
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, NamedTuple

import torch
import typer
import uvicorn
from bookkeeping import Counters, VerdictLog, log_line
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cryptomnesia import FlagRate, Guard, UsageError, Verdict, guard, load_pipeline
from cryptomnesia.pipelines.setup import Setup

logger = logging.getLogger("cryptomnesia.service")

MOST_BYTES = 64 * 1024
"""Of a request's body."""

GONE = 499
"""Status of a request whose client has gone; nobody reads it."""


class ImageRequest(BaseModel):
    """What a client may ask for.

    Attributes:
        prompt: what the picture shows.
        seed: of the noise; a random one unless given.
        steps: of the solver; those of the calibration unless given. The guard refuses numbers without a calibration.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=2000, pattern=r"\S")
    seed: int = Field(default_factory=lambda: secrets.randbits(63), ge=0, lt=2**63)
    steps: int | None = Field(None, ge=1, le=1000)


class Made(NamedTuple):
    """An image with its verdict."""

    identifier: str
    png: bytes
    verdict: Verdict


class Refused(Exception):
    """A request that is answered by an error: a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        """Take the status of HTTP and the message."""
        super().__init__(message)
        self.status = status


class Service:
    """A guarded pipeline, the one thread that calls it, and what is kept of its images."""

    def __init__(
        self,
        pipe: Any,
        guarding: Guard,
        log: VerdictLog,
        *,
        rate: FlagRate,
        prompts: bool = False,
        most_waiting: int = 16,
    ) -> None:
        """Attach the guard.

        Args:
            pipe: the pipeline.
            guarding: its guard.
            log: gets one line per image.
            rate: watches the share of flagged images.
            prompts: whether the log holds prompts.
            most_waiting: how many requests may wait or be worked on; further ones are refused.
        """
        self.counters, self.rate = Counters(), rate
        self.waiting = 0
        self.stopping = False
        self.failing: str | None = None
        self._pipe, self._guarding, self._log = pipe, guarding.attach(), log
        self._prompts, self._most_waiting = prompts, most_waiting
        self._setup = Setup(pipe, guarding.calibration.sampling)
        self._samples = 0
        self._hook = self._setup.family.module.register_forward_hook(self._counting(), with_kwargs=True)
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="pipeline")

    def _counting(self) -> Any:
        def count(_: Any, args: Any, kwargs: Any, __: Any) -> None:
            given = (
                value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim() > 1
            )
            self._samples += len(next(given))

        # it changes no picture, so it is no part of the set-up that was calibrated
        count.cryptomnesia_fingerprint = ""  # type: ignore[attr-defined]
        return count

    async def image(self, asked: ImageRequest, request: Request) -> Made | None:
        """Have an image made; None if the client has gone meanwhile.

        Raises:
            Refused: if there are too many requests, the guard refuses the call, or the log cannot be written.
        """
        if self.stopping:
            raise Refused(503, "the service is stopping; ask again later")
        if self.waiting >= self._most_waiting:
            raise Refused(503, f"{self.waiting} requests are waiting already; ask again later")
        with self._lock:
            self.waiting += 1
        job = self._worker.submit(self._make, asked)
        job.add_done_callback(self._left)
        made = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait([made, gone], return_when=asyncio.FIRST_COMPLETED)
            if made.done():
                return made.result()
            self.counters.add("abandoned")
            return None
        finally:
            gone.cancel()
            # an image that is being made is finished and logged; one that was not begun is not made
            made.cancel()

    def _left(self, _: Any) -> None:
        """A request is done, in the worker's thread, or was given up before it was begun."""
        with self._lock:
            self.waiting -= 1

    def _make(self, asked: ImageRequest) -> Made:
        """Make an image, in the worker's thread."""
        if self.stopping:
            raise Refused(503, "the service is stopping; ask again later")
        begin = time.perf_counter()
        self._samples = 0
        sampling = self._setup.sampling if asked.steps is None else replace(self._setup.sampling, steps=asked.steps)
        call = self._setup.family.arguments([asked.prompt], sampling)
        try:
            output = self._pipe(**call, generator=torch.Generator().manual_seed(asked.seed))
        except UsageError as error:
            raise Refused(422, str(error)) from None
        (verdict,) = self._guarding.verdicts
        file = io.BytesIO()
        output.images[0].save(file, format="PNG")
        seconds = time.perf_counter() - begin
        made = Made(secrets.token_hex(8), file.getvalue(), verdict)
        line = log_line(
            made.identifier,
            asked.prompt,
            asked.seed,
            verdict,
            prompts=self._prompts,
            seconds=round(seconds, 4),
            # of one image with all its guidance branches
            evaluations=self._samples / (2 if self._setup.guided else 1),
        )
        try:
            self._log.append(line)
        except OSError as error:
            # an image that nobody could account for is not returned
            self.failing = f"cannot write the verdict log ({error.strerror or error})"
            logger.error("%s", self.failing)
            raise Refused(503, self.failing) from None
        self.failing = None
        self.counters.image(verdict, seconds)
        if warning := self.rate.seen(verdict):
            self.counters.add("flag_rate_warnings")
            logger.warning("%s", warning)
        return made

    def health(self) -> dict[str, Any]:
        """The state of the service as JSON values."""
        rate = self.rate
        status = "stopping" if self.stopping else "failing" if self.failing else "ok"
        return {
            "status": status,
            "reason": self.failing,
            "policy": self._guarding.policy.name,
            "detector": self._guarding.detector.name,
            "images": self.counters["images"],
            "waiting": self.waiting,
            "flag_rate": {
                "state": rate.state,
                "flagged": rate.flagged,
                "of": rate.seen_images,
                "window": rate.window,
                "lowest": rate.lowest,
                "highest": rate.highest,
            },
        }

    def close(self) -> None:
        """Finish the image that is being made, and leave the pipeline as it was."""
        self.stopping = True
        self._worker.shutdown(cancel_futures=True)
        self._hook.remove()
        self._guarding.detach()
        self._log.close()


def application(service: Service) -> Starlette:
    """The routes of a service; it is closed with the application."""

    async def images(request: Request) -> Response:
        try:
            asked = await _asked(request)
            made = await service.image(asked, request)
        except ClientDisconnect:
            service.counters.add("abandoned")
            return Response(status_code=GONE)
        if made is None:
            return Response(status_code=GONE)
        # scores and p-values stay in the log: they would help those who try to get around the guard
        headers = {
            "X-Image": made.identifier,
            "X-Seed": str(asked.seed),
            "X-Verdict": made.verdict.answer,
            "X-Action": made.verdict.action,
        }
        return Response(made.png, media_type="image/png", headers=headers)

    async def health(_: Request) -> Response:
        # a warning is no failure: nobody should restart the service because of its traffic
        found = service.health()
        return JSONResponse(found, 200 if found["status"] == "ok" else 503)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(
            service.counters.text(service.rate, service.waiting), media_type="text/plain; version=0.0.4"
        )

    async def refused(_: Request, error: Exception) -> Response:
        service.counters.add("refused")
        if isinstance(error, Refused):
            return _error(error.status, str(error))
        if isinstance(error, HTTPException):
            return _error(error.status_code, error.detail, error.headers)
        # the traceback is in the server's own log
        return _error(500, "the service failed; see its log")

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    return Starlette(
        routes=[
            Route("/images", images, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={Refused: refused, HTTPException: refused, Exception: refused},
        lifespan=life,
    )


def _error(status: int, message: str, headers: Any = None) -> Response:
    again = {"Retry-After": "5"} if status == 503 else {}
    return JSONResponse({"error": " ".join(message.split())}, status, {**(headers or {}), **again})


async def _asked(request: Request) -> ImageRequest:
    """What a request asks for.

    Raises:
        Refused: for a body that is too long, or asks for something else.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise Refused(413, f"got more than {MOST_BYTES} bytes; send a shorter prompt")
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors())
        raise Refused(400, f'{wrong}; send JSON such as {{"prompt": "a red circle", "seed": 0}}') from None


async def _gone(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Server(uvicorn.Server):
    """A server that finishes the image that is being made when it is told to stop, and refuses those that wait."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """Serve the application of a service."""
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take note of a signal."""
        self._service.stopping = True
        super().handle_exit(sig, frame)


def main(
    model: Annotated[str, typer.Argument(help="Local diffusers folder, hub id, or `bundled`.")] = "bundled",
    calibration: Annotated[Path | None, typer.Option(help="File of `cryptomnesia calibrate`.")] = None,
    policy: Annotated[str, typer.Option(help="What happens to flagged images.")] = "escalate",
    fpr: Annotated[float, typer.Option(help="False-positive rate at which an image is flagged.")] = 0.01,
    window: Annotated[int, typer.Option(help="Newest images whose share of flagged ones is watched.")] = 1000,
    log: Annotated[Path, typer.Option(help="File that gets one line per image.")] = Path("verdicts.jsonl"),
    log_prompts: Annotated[
        bool, typer.Option(help="Log prompts, which are personal data, in place of digests.")
    ] = False,
    most_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 16,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
) -> None:
    """Answer requests for images with a guarded pipeline until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if not log_prompts:
        # diffusers prints what it cuts off of a long prompt
        for handler in logging.getLogger("diffusers").handlers:
            handler.addFilter(lambda record: "was truncated" not in record.getMessage())
    # the server stops in its own way and then raises the signal again; that is the normal end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        # whether the place is free shows before the model is loaded
        with _listening(host, port) as listening:
            verdicts = VerdictLog(log)
            pipe = load_pipeline(model)
            pipe.set_progress_bar_config(disable=True)
            guarding = guard(pipe, calibration, policy=policy, fpr=fpr)
            rate = FlagRate(len(guarding.calibration.others), fpr, window=window)
            service = Service(pipe, guarding, verdicts, rate=rate, prompts=log_prompts, most_waiting=most_waiting)
            server = Server(uvicorn.Config(application(service), log_config=None, access_log=False), service)
            logger.info("listening on http://%s:%d", host, listening.getsockname()[1])
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    except UsageError as error:
        raise _ended(str(error)) from None
    except OSError as error:
        raise _ended(f"{error.filename or f'{host}:{port}'}: {error.strerror}; give another place") from None


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens; requests that come before the model is loaded wait.

    Raises:
        OSError: if the place is not free.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _ended(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
