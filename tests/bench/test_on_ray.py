"""Every bench by two processes of a Ray cluster, stopped and going on, and in an object store."""

import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.bench.attacking import AttackBench
from cryptomnesia.bench.base import BENCH, CALIBRATION
from cryptomnesia.bench.detecting import PACKET, DetectorBench
from cryptomnesia.bench.localizing import MapBench
from cryptomnesia.bench.mitigating import MitigationBench
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.cli import benches
from cryptomnesia.detectors import Drift, Stability, default_detector
from cryptomnesia.localizers import localizers_of
from cryptomnesia.mitigations import GuidanceDelay, Rephrasing
from cryptomnesia.parts import run
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.places import names, place
from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.settings import BenchLocalizeSettings
from cryptomnesia.testing.miniatures import stable_diffusion

ON_RAY = {"engine": "ray", "workers": 2}
CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
TRIALS = [
    *(Trial(f"a red {shape}", MEMORIZED, shape, number) for number, shape in enumerate(("ring", "disc", "bar"))),
    *(Trial(f"a blue {shape}", "ordinary", shape, 9 + number) for number, shape in enumerate(("ring", "disc"))),
]
REFERENCES = [f"a green star {number}" for number in range(148)]


class Look:
    """Says that pictures of rings are copies, and shows half of every caption."""

    def __call__(self, trials, pictures):
        return [
            {
                "pixels": trial.cluster == "ring" if trial.group == MEMORIZED else None,
                "structure": False if trial.group == MEMORIZED else None,
                "recognized": False,
                "shown": 0.5,
                "confidence": 0.9,
            }
            for trial in trials
        ]

    def frechet(self, pictures):
        return float(len(pictures))

    def mask(self, trial, picture):
        return left_half(picture.shape[:2])


def left_half(shape):
    mask = np.zeros(shape, dtype=bool)
    mask[:, : shape[1] // 2] = True
    return mask


def distance(trial, image):
    return float(trial.cluster == "bar")


def truth(trial, image):
    return distance(trial, image), left_half(image.shape[1:])


def made(kind, folder):
    """A bench of a miniature."""
    setup = Setup.of(stable_diffusion(), CALL)
    given = {"setup": setup, "trials": TRIALS, "references": REFERENCES, "folder": folder, "batch_size": 2}
    given |= {"about": {"model": "a miniature"}}
    if kind == "localize":
        given |= {"batch_size": 50, "truth": truth, "threshold": 0.5}
        return MapBench(localizers=localizers_of(["guidance-map", "score-difference"], setup), **given)
    given |= {"call": CALL}
    if kind == "detect":
        return DetectorBench(detectors=[Drift(), Stability()], truth=distance, threshold=0.5, **given)
    given |= {"mitigations": [Rephrasing(), GuidanceDelay()], "detector": default_detector(setup), "look": Look()}
    if kind == "mitigate":
        # nearly all pictures of other captions are flagged, and made again
        return MitigationBench(fpr=0.99, **given)
    side = setup.pipe.unet.config.sample_size * setup.pipe.vae_scale_factor
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    planted = [Place(picture, left_half((side, side)))] * 3
    given |= {"trials": TRIALS[:3], "others": [Stability()], "budgets": (2,), "wordings": 2}
    return AttackBench(planted=planted, **given)


def untimed(value):
    """JSON values without what was timed."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key != "seconds"}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def check_same(one, other):
    """See that two packets say the same."""
    for part in ("about", "methods", "rows", "figures"):
        assert untimed(getattr(one, part)) == untimed(getattr(other, part)), part
    for name, values in getattr(one, "tensors", {}).items():
        torch.testing.assert_close(values, other.tensors[name], rtol=0, atol=0, equal_nan=True)


def files_of(folder):
    """Path and time of the calibration, and of the file of every part."""
    found = [*folder.rglob("*-0*.safetensors"), *folder.glob(CALIBRATION)]
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in found}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("detect", [BENCH, "references-00001.safetensors", "part-00001.safetensors"]),
        ("localize", [BENCH, "part-00000.safetensors"]),
        ("mitigate", [BENCH, CALIBRATION, "none-00001.safetensors", "rephrasing-00000.safetensors"]),
        ("attack", []),
    ],
    ids=["detect", "localize", "mitigate", "attack"],
)
def test_a_bench_on_ray_goes_on_to_the_packet_of_one_process(kind, kept, cluster, tmp_path):
    """Of the bench that was stopped the files `kept` are left."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = run(partial(made, kind, alone), alone)
    shared.mkdir()
    for name in kept:
        shutil.copy(alone / name, shared)
    # a finished calibration has them
    for file in alone.glob("references-*") if CALIBRATION in kept else ():
        shutil.copy(file, shared)
    before, told = files_of(shared), []
    packet = run(partial(made, kind, shared), shared, progress=lambda *step: told.append(step), **ON_RAY)
    check_same(packet, expected)
    after = files_of(shared)
    assert after.keys() == files_of(alone).keys()
    # only what was left was made, and every bar came to its end
    assert {path: after[path] for path in before} == before
    assert len(told) == len(after) - len(before)
    assert all(any(done == total for what, done, total in told if what == name) for name, _, _ in told)


class Stopped(Exception):
    """The user ends the command."""


def test_a_bench_that_is_stopped_on_ray_goes_on(cluster, tmp_path):
    def stop(*_):
        raise Stopped

    make = partial(made, "localize", tmp_path)
    with pytest.raises(Stopped):
        run(make, tmp_path, progress=stop, **ON_RAY)
    before = files_of(tmp_path)
    assert before
    run(make, tmp_path)
    after = files_of(tmp_path)
    assert {path: after[path] for path in before} == before
    # of 153 pictures
    assert len(after) == 4


def test_labelled_prompts_on_ray(cluster, audit_folder, tmp_path, cryptomnesia, monkeypatch):
    (tmp_path / "labels.csv").write_text("prompt,label\na purple ring,memorized\na yellow ring,ordinary\n")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES))
    monkeypatch.chdir(tmp_path)
    arguments = (
        "bench", "detect", "--model", audit_folder / "tiny", "--labels", "labels.csv", "--references", "references.txt",
        "--steps", 3, "--guidance", 2.0, "--detector", "drift", "--images-per-prompt", 2,
    )  # fmt: skip
    assert cryptomnesia(*arguments, "-o", "alone")[0] == 0
    code, out, _ = cryptomnesia(*arguments, "-o", "shared", "--engine", "ray", "--workers", 2)
    assert code == 0
    assert "drift" in out
    assert (tmp_path / "shared" / PACKET).read_bytes() == (tmp_path / "alone" / PACKET).read_bytes()


def test_what_the_users_files_say_is_sent(audit_folder, tmp_path):
    Image.fromarray(np.repeat(np.uint8([[255, 0]]), 2, axis=0)).save(tmp_path / "mask.png")
    (tmp_path / "labels.csv").write_text("prompt,label,mask\na red ring,memorized,mask.png\na blue ring,ordinary,\n")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES[:100]))
    settings = BenchLocalizeSettings(
        model=str(audit_folder / "tiny"), labels=tmp_path / "labels.csv", references=tmp_path / "references.txt",
        steps=2, guidance=2.0, localizer=["guidance-map"], batch_size=50,
    )  # fmt: skip
    making = partial(benches._maps, settings, benches.labelled_by(settings), tmp_path / "run")
    for file in ("mask.png", "labels.csv", "references.txt"):
        (tmp_path / file).unlink()
    packet = run(pickle.loads(pickle.dumps(making)), tmp_path / "run")
    mask = packet.tensors["mask"][100]
    assert mask.float().mean() == pytest.approx(0.5, abs=0.1)
    assert mask[:, 0].all()


def test_an_unknown_engine_is_refused(cryptomnesia, tmp_path):
    code, _, err = cryptomnesia("bench", "attack", "--ground", "scenes", "-o", tmp_path, "--engine", "spark")
    assert code == 2
    assert "got the engine spark; give local, ray" in err


def test_a_folder_that_this_machine_does_not_see_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has begun to work in .*here, which this machine does not see; give a fol"):
        run(partial(made, "localize", tmp_path / "there"), tmp_path / "here")
    assert [path.name for path in (tmp_path / "there").iterdir()] == [BENCH]


def test_a_machine_that_lacks_a_mitigation_makes_no_picture(tmp_path):
    bench = made("mitigate", tmp_path)
    stage = bench.under(GuidanceDelay(), [0])
    bench.mitigations = [Rephrasing()]
    with pytest.raises(UsageError, match="a machine of the cluster has no mitigation guidance-delay; install the same"):
        bench.part(stage, 0, print)


def test_a_bench_in_an_object_store(tmp_path, cryptomnesia):
    folder = place("memory://benches/attack")
    packet = run(partial(made, "attack", folder), folder)
    check_same(packet, run(partial(made, "attack", tmp_path), tmp_path))
    assert {BENCH, CALIBRATION, "embeddings-00000.safetensors"} <= names(folder, "").keys()
    assert Packet.load(folder / "attacks.json.xz") == packet
    assert cryptomnesia("bench", "verify", folder / "attacks.json.xz")[0] == 0
