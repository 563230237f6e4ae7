"""One walk through the modules of a network, which everything that looks at them shares."""

from dataclasses import dataclass, field
from functools import cached_property

from torch import nn


@dataclass(frozen=True)
class Walk:
    """The modules of a network at one moment.

    Attributes:
        network: the network.
        modules: name and module, in the order and under the names that `named_modules` gives them.
        repeated: whether a module is at several places, of which `modules` has the first.
    """

    network: nn.Module
    modules: list[tuple[str, nn.Module]] = field(repr=False)
    repeated: bool

    @classmethod
    def through(cls, network: nn.Module) -> "Walk":
        """Walk through a network."""
        found: list[tuple[str, nn.Module]] = []
        seen: set[int] = set()
        repeated = False
        # the generators of torch, one within the other, take several times as long
        waiting = [("", network)]
        while waiting:
            place, module = waiting.pop()
            if id(module) in seen:
                repeated = True
                continue
            seen.add(id(module))
            found.append((place, module))
            if children := module._modules:
                prefix = f"{place}." if place else ""
                waiting += [(prefix + name, child) for name, child in reversed(children.items()) if child is not None]
        return cls(network, found, repeated)

    @cached_property
    def kinds(self) -> dict[type[nn.Module], None]:
        """The classes of the modules, in the order in which they are met."""
        return dict.fromkeys(type(module) for _, module in self.modules)

    @cached_property
    def hooked(self) -> bool:
        """Whether diffusers has put hooks around modules."""
        return any("_diffusers_hook" in vars(module) for _, module in self.modules)
