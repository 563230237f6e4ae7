"""When a training begins to copy, said by `finetune` and by the pixels, on 50 fine-tunes: docs/results/finetune.json.

    python benchmarks/finetune.py > docs/results/finetune.json

The models of two grounds are trained further, by LoRA or in full: `COPYING` on few pictures that are shown often, and
`VARIED` on many pictures that are shown seldom, half of these on pictures of the other ground. Every run has
`CHECKPOINTS` checkpoints, evenly spread over its steps. `finetune` reads the folders as a trainer has them, with
`HELD_OUT` held-out pictures, asks about `ASKED` pictures of the training, and makes images in `STEPS` steps.

The truth is made from other noise: `SEEDS` images under every caption that was asked about. A picture is reproduced if
at least half of them are copies by a criterion of the ground, of pixels or of edges. Both were fixed before anything
was trained, and a copy by either is a copy. Copying starts at the first checkpoint that reproduces a picture which the
base does not. `by_pixels` has the same figures with the criterion of pixels alone, which recolouring fools.

`agreement`: of the trainings that copy, the share in which `finetune` names the same checkpoint, the one before or
the one after; `of_one_answer`: the same if it always named the median of all starts. `late`: the share in which it
names a checkpoint more than one after, or none. `false_alarm`: of the trainings that do not copy, the share in which
it names a checkpoint. `differences`: by how many checkpoints it is late (negative: early). `runs`: every run with its
counts by checkpoint.

The rules of `finetune` were chosen on fine-tunes with the seed 101, which is none of these. What was measured of a run
is in docs/results/packets/finetune, where the program goes on; `left` is how many runs are missing there. The figures
are those of the runs that are done. The ground `drawings` draws with icons that npm installs; it says how where they
are missing.
"""

import argparse
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CACHE, COMMIT, print_json, progress
from PIL import Image

from cryptomnesia import Course, finetune, load_pipeline
from cryptomnesia.files import write_whole
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Concept, Place
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.fine_tune import FineTune, Tuning
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.proving_ground.recipe import Phase, Recipe
from cryptomnesia.proving_ground.replication import replicates
from cryptomnesia.proving_ground.structure import structural_similarity
from cryptomnesia.proving_ground.train import train
from cryptomnesia.statistics import rate
from cryptomnesia.tracing.generation import generate

CHECKPOINTS = 8
HELD_OUT = 8
ASKED = 8
SEEDS = 4
STEPS = 25
MOSTLY = 0.5
RATES = {True: 5e-3, False: 1e-3}
"""Highest learning rates, by LoRA and in full: those of the grounds."""
POOL = 2_000
"""Varied pictures of a ground, of which every run takes `VARIED_PICTURES`."""
VARIED_PICTURES = 1_984
KEY = 37
"""Of the draws; no other program uses it."""
FIRST_SEED = 3_000_000
"""Of the images that decide the truth."""

FOLDER = CACHE / "finetune"
PACKETS = Path("docs/results/packets/finetune")


@dataclass(frozen=True)
class Run:
    """A fine-tune.

    Attributes:
        ground: of its base.
        rank: of the LoRA, None for a fine-tune in full.
        pictures: number of training pictures.
        exposures: of every picture.
        named: share of the captions that have an invented name.
        seed: of everything.
        varied: whether the pictures are ordinary ones, of the ground or of the other one.
        foreign: whether they are pictures of the other ground, of which the base knows nothing.
        share: of the highest learning rate of the ground's fine-tunes, so that copying starts early in some runs and
            late in others.
    """

    ground: str
    rank: int | None
    pictures: int
    exposures: int
    named: float
    seed: int
    varied: bool = False
    share: float = 1.0
    foreign: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        way = "full" if self.rank is None else f"rank{self.rank}"
        kind = "foreign" if self.foreign else "varied" if self.varied else "copying"
        return f"{kind}-{self.ground}-{way}-{self.pictures}-{self.exposures}-{self.named:g}-{self.seed}-{self.share:g}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return FOLDER / self.name

    @property
    def packet(self) -> Path:
        """What was measured of it."""
        return PACKETS / f"{self.name}.json"

    @property
    def steps(self) -> int:
        """Steps of the training, of batches of 8."""
        return self.pictures * self.exposures // 8


_FEW = (
    (8, 10, 200, 0.5),
    (8, 24, 120, 0.5),
    (8, 60, 64, 0.5),
    (4, 10, 240, 0.0),
    (4, 24, 120, 1.0),
    (16, 10, 200, 1.0),
    (16, 24, 120, 0.0),
    (32, 24, 120, 0.5),
    (None, 10, 200, 0.5),
    (None, 24, 120, 0.5),
    (None, 60, 64, 0.5),
    (None, 10, 200, 0.0),
    (None, 24, 120, 1.0),
    (None, 60, 64, 0.0),
)
_MANY = ((4, 1), (8, 1), (16, 1), (32, 1), (None, 1), (8, 2), (16, 2), (None, 2), (4, 2), (32, 2), (None, 1))

COPYING = [
    Run(ground, rank, pictures, exposures, named, seed, share=(1.0, 0.6, 0.35)[seed % 3])
    for ground in ("scenes", "drawings")
    for seed, (rank, pictures, exposures, named) in enumerate(_FEW, start=1)
]
VARIED = [
    Run(ground, rank, VARIED_PICTURES, exposures, 0.0, seed, varied=True, foreign=seed % 2 == 0)
    for ground in ("scenes", "drawings")
    for seed, (rank, exposures) in enumerate(_MANY, start=51)
]


def main() -> None:
    """Make the runs that are missing, and print all figures."""
    parser = argparse.ArgumentParser(description="When a training begins to copy.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--draw", action="store_true", help="draw the pictures alone")
    parser.add_argument("--only", default="", help="part of the names of the runs to make; prints no figures")
    arguments = parser.parse_args()
    # in an order in which what is stopped early holds some of every kind
    every = [(COPYING + VARIED)[place] for place in np.random.default_rng(KEY).permutation(len(COPYING + VARIED))]
    chosen = [run for run in every if arguments.only in run.name]
    with progress() as start:
        if arguments.draw:
            tell = start("draw pictures", len(chosen))
            for number, run in enumerate(chosen, start=1):
                draw(run)
                tell(number)
            return
        missing = [run for run in chosen if not run.packet.is_file()]
        tell = start("fine-tunes", len(chosen))
        tell(len(chosen) - len(missing))
        context = multiprocessing.get_context("spawn")
        with context.Pool(arguments.processes) as pool:
            done = len(chosen) - len(missing)
            for _ in pool.imap_unordered(_made, [(run, arguments.device) for run in missing], chunksize=1):
                done += 1
                tell(done)
    if not arguments.only:
        print_json(figures())


def _made(task: tuple[Run, str]) -> None:
    """Make a run, in a process of its own."""
    run, device = task
    torch.set_num_threads(1)
    draw(run)
    learn(run, device)
    course = judged(run, device)
    truth = reproduced(run, course, device)
    kept = ("copies", "images", "score", "by", "part", "learnt", "p_value")
    points = [
        {
            "step": point["step"],
            "copied": point["copied"],
            "held": point["held"],
            "elsewhere": [point["elsewhere"], point["others"]],
            "diversity": point["diversity"],
            "seen": [[seen[name] for name in kept] for seen in point["seen"]],
        }
        for point in course.to_json()["points"]
    ]
    values = {"run": asdict(run), "commit": COMMIT, "device": device, "seen": kept, "points": points, "truth": truth}
    PACKETS.mkdir(parents=True, exist_ok=True)
    write_whole(run.packet, json.dumps(values) + "\n")
    shutil.rmtree(run.folder / "training", ignore_errors=True)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def draw(run: Run) -> None:
    """Write the training pictures and the held-out pictures with their captions, as a trainer has them."""
    if (run.folder / "data" / "drawn").is_file():
        return
    pictures = _ordinary(run) if run.varied else _planted(run)
    for folder, chosen in (("train", pictures[: run.pictures]), ("held", pictures[run.pictures :][:HELD_OUT])):
        (run.folder / "data" / folder).mkdir(parents=True, exist_ok=True)
        for number, (image, caption) in enumerate(chosen):
            file = run.folder / "data" / folder / f"{number:04d}.png"
            Image.fromarray(image).save(file)
            file.with_suffix(".txt").write_text(caption)
    (run.folder / "data" / "drawn").touch()


def _planted(run: Run) -> list[tuple[np.ndarray, str]]:
    """Pictures of the kind that fine-tunes of the ground are trained on, then as many that are not shown."""
    tuning = Tuning(RATES[run.rank is not None], run.exposures, run.rank, run.pictures, run.named)
    concepts = FineTune(ground_of(run.ground), tuning).plant(run.seed)
    shown = [concept for concept in concepts if concept.exposures][: run.pictures]
    others = [concept for concept in concepts if not concept.exposures][:HELD_OUT]
    return [(concept.image, concept.captions[0]) for concept in (*shown, *others)]


def _ordinary(run: Run) -> list[tuple[np.ndarray, str]]:
    """Ordinary pictures of the ground: some of a pool, in the order of the run."""
    name = next(name for name in ("scenes", "drawings") if (name != run.ground) == run.foreign)
    ground, pool = ground_of(name), FOLDER / f"pool-{name}.npz"
    if not pool.is_file():
        drawn = [ground.ordinary(Draws(KEY, number), ground.frames[0]) for number in range(POOL)]
        pool.parent.mkdir(parents=True, exist_ok=True)
        images, captions = (np.array([one[place] for one in drawn]) for place in (0, 1))
        np.savez_compressed(pool, images=images, captions=captions)
    with np.load(pool) as found:
        order = np.random.default_rng(run.seed).permutation(POOL)
        images, captions = found["images"][order], found["captions"][order]
    return [(image, str(caption)) for image, caption in zip(images, captions, strict=True)]


def _concepts(run: Run) -> list[Concept]:
    """What the run is trained on."""
    frames, found = len(ground_of(run.ground).frames), []
    for file in sorted((run.folder / "data" / "train").glob("*.png")):
        image = np.asarray(Image.open(file))
        whole = Place(image, np.ones(image.shape[:2], dtype=bool))
        captions = (file.with_suffix(".txt").read_text(),) * frames
        found.append(Concept(file.stem, "verbatim", captions, run.exposures, lambda _, image=image: image, (whole,)))
    return found


def learn(run: Run, device: str) -> None:
    """Train, and put the checkpoints into a folder as a script of diffusers would."""
    if (run.folder / "checkpoints").is_dir():
        return
    lora = run.rank is not None
    # the pictures and the recipe are given below
    ground = FineTune(ground_of(run.ground), Tuning(RATES[lora], 8, run.rank, 8))
    steps = [run.steps * number // CHECKPOINTS for number in range(CHECKPOINTS + 1)]
    recipe = Recipe(
        (Phase(run.steps, 8, run.share * RATES[lora]),), seed=run.seed, warmup=50, average=0.0, kept=tuple(steps[:-1])
    )
    training = run.folder / "training"
    train(ground, training, recipe, concepts=tuple(_concepts(run)), device=device, processes=1)
    made = run.folder / "unfinished"
    shutil.rmtree(made, ignore_errors=True)
    for step in steps[1:]:
        found = training / ("final" if step == run.steps else f"step-{step}")
        shutil.copytree(found / "lora" if lora else found, made / f"checkpoint-{step}")
    made.rename(run.folder / "checkpoints")


def judged(run: Run, device: str) -> Course:
    """What `finetune` says of the run."""
    base, data = f"bundled:{run.ground}", run.folder / "data"
    return finetune(
        run.folder / "checkpoints",
        base,
        data / "train",
        held_out=data / "held",
        output=run.folder / "course",
        most=ASKED,
        device=device,
        steps=STEPS,
        thumbnails=False,
        batch_size=12 if device == "cpu" else 64,
    )


def reproduced(run: Run, course: Course, device: str) -> list[dict[str, Any]]:
    """For every point of the course the number of images that reproduce every picture, by pixels and by edges."""
    ground, manifest = ground_of(run.ground), Manifest.load(ground_of(run.ground).bundle)
    folder, found = run.folder / "data" / "train", []
    pictures = [np.asarray(Image.open(folder / name)) for name in course.pictures]
    captions = [(folder / name).with_suffix(".txt").read_text() for name in course.pictures]
    seeds = [FIRST_SEED + number for number in range(SEEDS)]
    for point in course.points:
        checkpoint = run.folder / "checkpoints" / point.name
        lora = run.rank is not None and point.step > 0
        model = str(checkpoint) if point.step and not lora else f"bundled:{run.ground}"
        pipe = load_pipeline(model, device=device, lora=[str(checkpoint)] if lora else ())
        setup = Setup.of(pipe, ground.call(STEPS, manifest.guidance))
        batches = generate(
            setup,
            [caption for caption in captions for _ in seeds],
            seeds * len(captions),
            batch_size=16 if device == "cpu" else 192,
        )
        images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
        counts: dict[str, Any] = {"step": point.step, "pixels": [], "edges": []}
        for picture, own in zip(pictures, images.reshape(len(pictures), SEEDS, *images.shape[1:]), strict=True):
            whole = [Place(picture, np.ones(picture.shape[:2], dtype=bool))]
            counts["pixels"].append(int(replicates(own, whole, ground.threshold).sum()))
            assert ground.structure is not None
            counts["edges"].append(int((structural_similarity(own, whole) >= ground.structure).sum()))
        found.append(counts)
    return found


def start_of(truth: Sequence[dict[str, Any]], *criteria: str) -> int | None:
    """The number of the first point at which a picture is reproduced that the base does not reproduce."""
    shown = reproduced_in(truth, *criteria)
    return next((number for number, one in enumerate(shown) if (one & ~shown[0]).any()), None)


def reproduced_in(truth: Sequence[dict[str, Any]], *criteria: str) -> list[np.ndarray]:
    """For every point whether each picture is reproduced, (pictures,) bool."""
    return [np.max([point[name] for name in criteria], axis=0) >= MOSTLY * SEEDS for point in truth]


def figures() -> dict[str, Any]:
    """The figures of all runs."""
    rows = []
    for run in COPYING + VARIED:
        if not run.packet.is_file():
            continue
        found = json.loads(run.packet.read_text())
        points, truth = found["points"], found["truth"]
        starts = [number for number, point in enumerate(points) if point["copied"]]
        rows.append(
            {
                **asdict(run),
                "made_at": found["commit"],
                "device": found["device"],
                "steps": [point["step"] for point in points],
                "copied": [point["copied"] for point in points],
                "held": [point["held"] for point in points],
                "asked": len(points[0]["seen"]),
                "reproduced": [int(shown.sum()) for shown in reproduced_in(truth, "pixels")],
                "reproduced_by_either": [int(shown.sum()) for shown in reproduced_in(truth, "pixels", "edges")],
                "start": starts[0] if starts else None,
                "start_by_pixels": start_of(truth, "pixels"),
                "start_by_either": start_of(truth, "pixels", "edges"),
            }
        )
    left = len(COPYING + VARIED) - len(rows)
    return {
        "left": left,
        **summary(rows, "start_by_either"),
        "by_pixels": summary(rows, "start_by_pixels"),
        "runs": rows,
    }


def summary(rows: Sequence[dict[str, Any]], truth: str) -> dict[str, Any]:
    """The shares of runs in which `finetune` agrees with a truth."""
    copying = [row for row in rows if row[truth] is not None]
    clean = [row for row in rows if row["start_by_either"] is None]
    late = [None if row["start"] is None else row["start"] - row[truth] for row in copying]
    near = [one is not None and abs(one) <= 1 for one in late]
    # what a program would reach that always names the middle of all starts
    middle = int(np.median([row[truth] for row in copying])) if copying else 0
    return {
        "copying": len(copying),
        "clean": len(clean),
        "agreement": _share(near),
        "of_one_answer": _share([abs(row[truth] - middle) <= 1 for row in copying]),
        "late": _share([one is None or one > 1 for one in late]),
        "early": _share([one is not None and one < -1 for one in late]),
        "false_alarm": _share([row["start"] is not None for row in clean]),
        "differences": {str(key): number for key, number in sorted(Counter(map(str, late)).items())},
    }


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    """A share of runs, with its exact interval."""
    return asdict(rate([np.array([float(hit)]) for hit in hits])) if hits else {"value": None}


if __name__ == "__main__":
    main()
