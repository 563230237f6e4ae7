"""A pipeline whose images are judged before they are returned."""

from cryptomnesia.guarding.guarded import Guard, guard
from cryptomnesia.guarding.policies import Block, Mitigate, Observe, Policy, Regenerate

__all__ = ["Block", "Guard", "Mitigate", "Observe", "Policy", "Regenerate", "guard"]
