"""The bench of localizers on a random miniature, and its figures on maps that were made up."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.bench.localizing import MAPS, MapBench
from cryptomnesia.bench.map_figures import RATE, REFERENCE, map_figures
from cryptomnesia.bench.map_packet import MapPacket
from cryptomnesia.bench.trials import MEMORIZED, Trial, of_file
from cryptomnesia.cli.benches import masked, masks_of
from cryptomnesia.localizers import localizers_of
from cryptomnesia.parts import run as run_bench
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import stable_diffusion

CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
NAMES = ["guidance-map", "score-difference"]
TRIALS = [
    *(Trial(f"a red {shape}", MEMORIZED, shape, number) for number, shape in enumerate(("ring", "disc", "bar"))),
    *(Trial(f"a blue {shape}", "ordinary", shape, 9 + number) for number, shape in enumerate(("ring", "disc"))),
]
REFERENCES = [f"a green star {number}" for number in range(100)]


def truth(trial, image):
    mask = np.zeros(image.shape[1:], dtype=bool)
    mask[:, : image.shape[2] // 2] = True
    return float(trial.cluster == "bar"), mask


def run(folder, trials=TRIALS, references=REFERENCES, progress=None, **more):
    given = {"about": {"model": "a miniature"}, "truth": truth, "threshold": 0.5, "batch_size": 35, **more}
    setup = Setup.of(stable_diffusion(), CALL)
    given |= {"setup": setup, "trials": trials, "references": references, "folder": folder}
    return run_bench(lambda: MapBench(localizers=localizers_of(NAMES, setup), **given), folder, progress=progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    run(folder)
    return folder


def test_every_localizer_maps_the_same_images(whole):
    packet = MapPacket.load(whole / MAPS)
    assert list(packet.methods) == NAMES
    assert [(row["group"], row["prompt"], row["reproduced"]) for row in packet.rows] == [
        *((REFERENCE, prompt, None) for prompt in REFERENCES),
        (MEMORIZED, "a red ring", True),
        (MEMORIZED, "a red disc", True),
        (MEMORIZED, "a red bar", False),
        ("ordinary", "a blue ring", None),
        ("ordinary", "a blue disc", None),
    ]
    assert packet.tensors["mask"].flatten(1).sum(dim=1).gt(0).tolist() == [False] * 100 + [True] * 2 + [False] * 3
    assert packet.figures["counts"] == {
        "reproduced": {"images": 2, "clusters": 2},
        "ordinary": {"images": 2, "clusters": 2},
        REFERENCE: {"images": 100, "clusters": 100},
    }
    assert packet.figures["everything"]["reproduced"] == 0.5
    assert all(packet.methods[name]["seconds"] > 0 for name in NAMES)


def test_a_bench_of_maps_that_was_killed_goes_on(whole, tmp_path):
    """Killed in its third batch of three, of which nothing is left."""
    for number in range(2):
        name = f"part-{number:05d}.safetensors"
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "bench.json").write_bytes((whole / "bench.json").read_bytes())
    made = []
    packet = run(tmp_path, progress=lambda *given: made.append(given[1]))
    assert min(made) > 70
    kept = MapPacket.load(whole / MAPS)
    assert packet.tensors.keys() == kept.tensors.keys()
    for name, values in kept.tensors.items():
        torch.testing.assert_close(packet.tensors[name], values, rtol=0, atol=0)
    assert packet.figures == kept.figures
    with pytest.raises(UsageError, match="holds a bench with other settings"):
        run(tmp_path, TRIALS[:4])
    with pytest.raises(UsageError, match="got 99 reference prompts; give at least 100"):
        run(tmp_path, references=REFERENCES[1:])


def test_figures_of_maps_are_computed_again(whole, tmp_path, cryptomnesia):
    code, out, _ = cryptomnesia("bench", "verify", whole / MAPS)
    assert code == 0
    assert "a miniature: reproduced, 2 images of 2 concepts; everything marked: IoU 0.500" in " ".join(out.split())
    packet = MapPacket.load(whole / MAPS)
    packet.figures["localizers"]["guidance-map"]["threshold"] += 1
    packet.save(tmp_path / MAPS)
    code, _, err = cryptomnesia("bench", "verify", tmp_path / MAPS)
    assert code == 1
    assert err.strip().endswith("that do not follow from its scores: localizers.guidance-map.threshold")


def rows_of(group, count, *, first=0, **more):
    return [
        {"group": group, "cluster": f"{group}-{first + number}", "kind": "", "wording": "", "reproduced": None, **more}
        for number in range(count)
    ]


SIDE = 8


def made_up():
    """Four reproduced pictures of which the left half is memorized, four of which everything is; 100 ordinary ones."""
    rows = [
        *rows_of(MEMORIZED, 4, reproduced=True, kind="template"),
        *rows_of(MEMORIZED, 4, first=4, reproduced=True, kind="verbatim"),
        *rows_of(MEMORIZED, 1, first=8, reproduced=False),
        *rows_of("ordinary", 100),
        *rows_of(REFERENCE, 10),
    ]
    masks = np.zeros((len(rows), SIDE, SIDE), dtype=bool)
    masks[:4, :, : SIDE // 2] = True
    masks[4:8] = True
    return rows, masks, np.random.default_rng(0)


def test_figures_of_known_maps():
    rows, masks, rng = made_up()
    noise = rng.uniform(0, 1, masks.shape)
    perfect = (noise + 5 * masks).astype(np.float32)
    found = map_figures(rows, masks, {"perfect": perfect, "noise": noise.astype(np.float32)})
    assert found["counts"]["reproduced"] == {"images": 8, "clusters": 8}
    assert found["everything"] == {"reproduced": 0.75, "template": 0.5, "verbatim": 1.0}
    one, other = found["localizers"]["perfect"], found["localizers"]["noise"]
    reference = np.sort(noise[-10:], axis=None)
    assert one["threshold"] == pytest.approx(reference[-1 - int(RATE * reference.size)])
    # of the pixels that are not memorized a twentieth is above the threshold
    free = noise[:4][~masks[:4]] > one["threshold"]
    assert one["marked"]["free"]["value"] == pytest.approx(free.mean())
    assert one["marked"]["ordinary"]["value"] == pytest.approx((noise[9:109] > one["threshold"]).mean())
    expected = masks[:8].sum() / (masks[:8].sum() + free.sum())
    assert one["iou"]["reproduced"]["value"] == pytest.approx(expected)
    assert one["iou"]["verbatim"]["value"] == 1
    assert one["oracle_iou"]["reproduced"] == one["oracle_mean_iou"]["reproduced"] == 1
    assert one["oracle_accuracy"] == dict.fromkeys(("reproduced", "template", "verbatim", "with_ordinary"), 1.0)
    assert one["auc"]["ordinary"]["value"] == one["tpr_at_1pct"]["ordinary"]["value"] == 1
    # nothing that is not known does better than marking all
    assert other["oracle_iou"]["verbatim"] == 1
    assert other["iou"]["verbatim"]["value"] < 0.1
    assert found["difference"]["reproduced"]["best"] == "perfect"
    assert found["difference"]["reproduced"]["below"]["noise"]["high"] < -0.5


def test_a_picture_without_a_map_is_left_out():
    rows, masks, rng = made_up()
    maps = (rng.uniform(0, 1, masks.shape) + 5 * masks).astype(np.float32)
    whole = map_figures(rows[:8] + rows[9:], np.delete(masks, 8, 0), {"a": np.delete(maps, 8, 0)})
    maps[8] = np.nan
    found = map_figures(rows, masks, {"a": maps})
    assert found["localizers"]["a"].pop("unknown") == 1
    assert whole["localizers"]["a"].pop("unknown") == 0
    assert found == whole
    maps[:8] = np.nan
    assert map_figures(rows, masks, {"a": maps})["localizers"]["a"]["iou"]["reproduced"] is None


def test_masks_of_labelled_prompts(tmp_path):
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[:2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    path = tmp_path / "labels.csv"
    (tmp_path / "text.png").write_text("no picture")
    path.write_text("prompt,label,mask\na,memorized,mask.png\nb,memorized,\nc,ordinary,\nd,memorized,text.png\n")
    half, whole, _, missing = of_file(path)
    masks = masks_of([half, whole, missing])
    image = torch.zeros(3, 8, 8)
    assert masked(masks, half, image)[1].mean(axis=1).tolist() == [1] * 4 + [0] * 4
    assert masked(masks, whole, image)[1].all()
    with pytest.raises(UsageError, match=r"cannot read the mask .*text\.png"):
        masked(masks, missing, image)
    path.write_text("prompt,label,mask\na,memorized,none.png\nc,ordinary,\n")
    with pytest.raises(UsageError, match=r"row 1: there is no mask .*none\.png"):
        of_file(path)


def test_the_command_maps_at_the_given_evaluation(tmp_path, cryptomnesia):
    """The curvature difference of arXiv:2605.26756 is that of the last evaluation."""
    stable_diffusion().save_pretrained(tmp_path / "tiny")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES))
    (tmp_path / "labels.csv").write_text("prompt,label\na red ring,memorized\na blue ring,ordinary\n")
    given = [
        "bench", "localize", "--model", tmp_path / "tiny", "--labels", tmp_path / "labels.csv",
        "--references", tmp_path / "references.txt", "--steps", 2, "--guidance", 2, "-o", tmp_path / "maps",
    ]  # fmt: skip
    code, _, err = cryptomnesia(*given, "--localizer", "score-difference", "--probes", 8)
    assert code == 2
    assert "got --probes, and score-difference has no such setting" in err
    code, _, _ = cryptomnesia(*given, "--localizer", "score-difference", "--at", 0)
    assert code == 0
    packet = MapPacket.load(tmp_path / "maps" / MAPS)
    assert "step=0" in packet.methods["score-difference"]["describe"]
    early = packet.tensors["map/score-difference"]
    code, _, err = cryptomnesia(*given, "--localizer", "score-difference")
    assert code == 2
    assert "holds a bench with other settings" in err
    code, _, _ = cryptomnesia(*given[:-1], tmp_path / "late", "--localizer", "score-difference", "--at", -1)
    assert code == 0
    late = MapPacket.load(tmp_path / "late" / MAPS).tensors["map/score-difference"]
    assert early.shape == late.shape
    assert not torch.equal(early, late)


@pytest.mark.slow
def test_the_command_on_a_ground(tmp_path, cryptomnesia):
    given = ("--ground", "scenes", "--positives", "28", "--negatives", "4", "--localizer", "guidance-map")
    code, out, _ = cryptomnesia("bench", "localize", *given, "-o", tmp_path, "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["counts"]["reproduced"]["images"] > 20
    assert 0 < figures["localizers"]["guidance-map"]["iou"]["reproduced"]["value"] < 1
