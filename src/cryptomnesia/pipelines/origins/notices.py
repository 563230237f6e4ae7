"""Notices and progress bars of diffusers, transformers and the hub's client: silenced, or listened to."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence notices and progress bars of diffusers and transformers inside the block, then put them back."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    downloads_silent = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level, bar in zip(libraries, levels, bars, strict=True):
                library.set_verbosity(level)
                if bar:
                    library.enable_progress_bar()
            # transformers switches the progress bars of downloads together with its own
            if downloads_silent:
                disable_progress_bars()
            else:
                enable_progress_bars()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Silence the libraries inside the block, and collect the warnings that they log.

    Weights that a checkpoint lacks become random numbers, and adapters that fit nothing are left out. The libraries
    say both in a warning only.

    Yields:
        The warnings so far, each as one line.
    """
    warned: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.append(" ".join(record.getMessage().split()))

    with quiet():
        loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
        before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.WARNING)
            logger.propagate = False
            logger.handlers = [Collect(logging.WARNING)]
        try:
            yield warned
        finally:
            for logger, level, propagate, handlers in before:
                logger.setLevel(level)
                logger.propagate = propagate
                logger.handlers = handlers
