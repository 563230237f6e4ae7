"""Do several seeds of a prompt give the same pixels? A second signal, which no score of the trajectories knows.

Two images of a prompt repeat each other when they agree inside their common memorized region better than pictures
usually agree there. Two conditions must hold. Their distance is at most half the mean distance to the 50 nearest
pictures of other prompts, the rule by which a picture is matched to a training image (`cryptomnesia.matching`). And at
most a share `fpr` of the pictures of other prompts come as near. A common caption alone makes two pictures similar,
which no picture of another prompt can show. So a repetition is a second signal beside a score and no evidence alone.
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
"""Pictures of other prompts that a pair is compared with, at most."""


def repeated(
    prompts: Sequence[str], pictures: Sequence[Tensor], masks: Mapping[int, Tensor], *, fpr: float = 0.01
) -> set[int]:
    """The numbers of the images that another image of the same prompt repeats.

    Args:
        prompts: of n images.
        pictures: n pictures (3, H, W) in [0, 1]; squares of 32 pixels are enough.
        masks: number of an image → its memorized region (h, w) bool, for images that have one.
        fpr: share of pictures of other prompts that may come as near; it takes at least 1/fpr − 1 other prompts.
    """
    tiles = Tiles()
    described = tiles.describe(torch.stack([square(picture, tiles.side) for picture in pictures]))
    firsts = {prompt: number for number, prompt in reversed(list(enumerate(prompts)))}
    masked: dict[str, list[int]] = {}
    for number in masks:
        masked.setdefault(prompts[number], []).append(number)
    found: set[int] = set()
    for prompt, members in masked.items():
        others = [number for other_prompt, number in firsts.items() if other_prompt != prompt][:_OTHERS]
        for first, second in combinations(members, 2):
            weights = counted(tiles.weights(middle((masks[first] & masks[second])[None]))[0])
            if not weights.any() or len(others) < FEWEST:
                continue
            distances = distances_from(described[first], described[[second, *others]], weights)
            usual = distances[1:].sort().values[:NEAREST].mean()
            # the nearer the more unusual
            p_value = conformal_p_values(-distances[:1], -distances[1:]).item()
            if distances[0] <= USUAL * usual and p_value <= fpr:
                found |= {first, second}
    return found
