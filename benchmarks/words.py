"""Whether the words that `attribute` names bring the memory: docs/results/words.json.

    python benchmarks/words.py > docs/results/words.json

For the planted captions of the top rung of every ground whose model comes with the package: how often the word with the
largest figure is the invented name, for captions that have one; and how often the planted picture still comes back if
the caption is used without one word: without the word that is named by leaving out, by the gradient, or another one
drawn at random. Pictures are made with other seeds than the attribution. Intervals redraw whole concepts. The
evaluation at which words are compared was chosen on `scenes`.
"""

import random
from dataclasses import asdict
from typing import Any

import numpy as np
from common import Start, print_json, progress

from cryptomnesia import Word, attribute, load_pipeline
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Entry, Manifest
from cryptomnesia.proving_ground.replication import planted_distance
from cryptomnesia.statistics import rate
from cryptomnesia.tracing.generation import generate
from cryptomnesia.words import without

GROUNDS = ("scenes", "drawings")
FIRST_SEED = 9_000_000
SEEDS = 2
"""Pictures of every shortened caption."""


def main() -> None:
    """Measure and print JSON."""
    with progress() as start:
        figures = {name: measured(name, start) for name in GROUNDS}
    print_json({"grounds": figures})


def measured(name: str, start: Start) -> dict[str, Any]:
    """The figures of a ground."""
    ground = ground_of(name)
    manifest = Manifest.load(ground.bundle)
    pipe = load_pipeline("bundled" if name == "scenes" else f"bundled:{name}", device="cpu")
    entries = [entry for entry in manifest.counted if entry.exposures == manifest.top]
    captions = [entry.captions[0] for entry in entries]
    tell = start(f"{name}: words", len(captions))
    found = [each.words for each in attribute(pipe, captions, seeds=[FIRST_SEED] * len(captions), progress=tell)]
    leading = [_leading(words) for words in found]
    draw = random.Random(0)
    for words, named in zip(found, leading, strict=True):
        named["random"] = draw.choice([word.text for word in words if word.text not in named.values()])
    figures: dict[str, Any] = {"concepts": len(entries), "named": {}, "reproduced": {}}
    names = [
        (named, entry.captions[0].rpartition(" ")[2].casefold())
        for entry, named in zip(entries, leading, strict=True)
        if entry.wording == "named"
    ]
    for measure in ("left_out", "gradient"):
        hits = [np.array([float(named[measure].casefold() == invented)]) for named, invented in names]
        figures["named"][measure] = asdict(rate(hits))
    for shortened in ("nothing", "left_out", "gradient", "random"):
        texts = [
            caption if shortened == "nothing" else without(caption, [named[shortened]])
            for caption, named in zip(captions, leading, strict=True)
        ]
        tell = start(f"{name}: without {shortened}", len(texts) * SEEDS)
        figures["reproduced"][shortened] = reproduced(Setup.of(pipe, {}), manifest, entries, texts, tell)
    return figures


def _leading(words: tuple[Word, ...]) -> dict[str, str]:
    """The word with the largest figure, by measure."""
    return {
        "left_out": max(words, key=lambda word: word.left_out).text,
        "gradient": max(words, key=lambda word: word.gradient or 0.0).text,
    }


def reproduced(setup: Setup, manifest: Manifest, entries: list[Entry], texts: list[str], tell: Any) -> dict[str, Any]:
    """The share of pictures of captions that reproduce what was planted with the entries."""
    prompts = [text for text in texts for _ in range(SEEDS)]
    seeds = [FIRST_SEED + 1 + number for number in range(len(prompts))]
    threshold = ground_of(manifest.ground).threshold
    hits: list[list[bool]] = [[] for _ in entries]
    done = 0
    for batch in generate(setup, prompts, seeds, batch_size=16, progress=tell):
        for image in batch.images:
            place = done // SEEDS
            distance = planted_distance(image.permute(1, 2, 0).numpy(), manifest.places(entries[place]))
            hits[place].append(bool(distance <= threshold))
            done += 1
    return asdict(rate([np.array(each, dtype=float) for each in hits]))


if __name__ == "__main__":
    main()
