"""Do several seeds of a prompt give the same pixels? A second signal, which no score of the trajectories knows.

Two images of a prompt repeat each other when they agree inside their common memorized region better than pictures
usually agree there: their distance is at most half the mean distance to the 50 nearest pictures of other prompts, the
rule by which a picture is matched to a training image (`cryptomnesia.matching`), and so small that of pictures of other
prompts at most a share `rate` come as near. That they share a caption makes them alike too, which no picture of another
prompt can tell: so this is a second signal beside a score, never evidence of its own.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from cryptomnesia.images import middle, square
from cryptomnesia.matching import Tiles
from cryptomnesia.matching.distances import counted, distances_from
from cryptomnesia.matching.reproduction import FEWEST, NEAREST, USUAL
from cryptomnesia.statistics import conformal_p_values

_OTHERS = 1000


def repeated(
    prompts: Sequence[str], pictures: Sequence[Tensor], masks: Mapping[int, Tensor], *, rate: float = 0.01
) -> set[int]:
    """The images that another one of the same prompt repeats.

    Args:
        prompts: of n images.
        pictures: (3, H, W) in [0, 1], n of them; squares of 32 pixels are enough.
        masks: memorized region (h, w) bool of those images that have one.
        rate: share of other prompts that may come as near; fewer than 1/rate of them can support none.
    """
    tiles = Tiles()
    described = tiles.describe(torch.stack([square(each, tiles.side) for each in pictures]))
    firsts = {prompt: number for number, prompt in reversed(list(enumerate(prompts)))}
    own: dict[str, list[int]] = {}
    for number in masks:
        own.setdefault(prompts[number], []).append(number)
    found: set[int] = set()
    for prompt, members in own.items():
        others = [number for each, number in firsts.items() if each != prompt][:_OTHERS]
        for one, other in combinations(members, 2):
            weights = counted(tiles.weights(middle((masks[one] & masks[other])[None]))[0])
            if not weights.any() or len(others) < FEWEST:
                continue
            distances = distances_from(described[one], described[[other, *others]], weights)
            usual = distances[1:].sort().values[:NEAREST].mean()
            # a small distance is the unusual one
            p = conformal_p_values(-distances[:1], -distances[1:]).item()
            if distances[0] <= USUAL * usual and p <= rate:
                found |= {one, other}
    return found
