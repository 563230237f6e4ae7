"""A rehearsal of a scheduler without its network: whether it can do a number of steps.

Some schedulers refuse a number only in the middle of a run, by an index out of range. So a run is not begun before the
scheduler has made all its steps on a single number.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cryptomnesia.errors import UsageError


def asked(scheduler: Any, steps: int) -> Any:
    """Another scheduler of the same kind and configuration, which has been asked for `steps` steps.

    The pipeline's own may be in use.

    Raises:
        Exception: of any kind, if it refuses the number or wants further arguments.
    """
    kind, config = type(scheduler), scheduler.config
    settings = {name: config[name] for name in inspect.signature(kind).parameters if name in config}
    made = kind(**settings)
    made.set_timesteps(steps, **({"mu": 1.0} if config.get("use_dynamic_shifting") else {}))
    return made


def rehearse(scheduler: Any, steps: int) -> None:
    """Refuse a number of steps that the scheduler cannot do.

    Args:
        scheduler: of the pipeline.
        steps: at least 1, and at most the timesteps that the model knows.

    Raises:
        UsageError: naming the scheduler and its reason.
    """
    # a scheduler that draws noise must not change what the caller draws next
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            made = asked(scheduler, steps)
        # the call gives the further arguments that are wanted
        except TypeError:
            return
        except Exception as error:
            raise _cannot(scheduler, steps, error) from None
        number = torch.zeros(1, 1, 1, 1)
        try:
            for t in made.timesteps:
                number = made.step(torch.zeros_like(number), t, made.scale_model_input(number, t)).prev_sample
        except (IndexError, AssertionError, ZeroDivisionError) as error:
            raise _cannot(scheduler, steps, error) from None
        # it wants another shape or further arguments, which the call gives it
        except Exception:
            return


def _cannot(scheduler: Any, steps: int, error: Exception) -> UsageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UsageError(
        f"{type(scheduler).__name__} cannot do {steps} steps ({reason}); give another number of steps, or another "
        "scheduler"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let diffusers say nothing of a rehearsal."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
