"""Caches: parts of a network that answer from an earlier evaluation of the run instead of computing.

They save time in a run, whose evaluations follow one another. Beside the run such a network does not compute the
function that the run evaluated, so it has no derivatives that say anything.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from cryptomnesia.errors import UsageError


def check_uncached(network: nn.Module) -> None:
    """Refuse a network with a cache.

    Raises:
        UsageError: naming the cache.
    """
    name = next(_caches(network), None)
    if name is None:
        return
    raise UsageError(
        f"the {type(getattr(network, '_orig_mod', network)).__name__} has the cache {name} on, which answers from an "
        "earlier evaluation; switch it off for maps, with disable_cache() if it was switched on with enable_cache()"
    )


def _caches(network: nn.Module) -> Iterator[str]:
    """The names of the caches of a network: those of diffusers, then those of other packages."""
    config = getattr(network, "_cache_config", None)
    if config is not None:
        yield type(config).__name__.removesuffix("Config")
    for module in network.modules():
        # the functions `apply_…` of diffusers register their hooks, and do no more
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in getattr(registry, "hooks", {}).items():
            if getattr(hook, "_is_stateful", False):
                yield name
        # other packages replace a forward, of one module (DeepCache, cache-dit) or of its class (TeaCache)
        forward: Any = getattr(module.forward, "__func__", module.forward)
        foreign = "forward" in vars(module) or getattr(forward, "__module__", "") != type(module).__module__
        place = f"{getattr(forward, '__module__', '')}.{getattr(forward, '__qualname__', '')}"
        if foreign and registry is None and "cache" in place.lower():
            yield place
