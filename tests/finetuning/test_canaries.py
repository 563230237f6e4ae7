"""Canaries are added to training sets of every layout and taken out again, and models are asked about them."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from cryptomnesia import UsageError, load_pipeline, make_canaries, measure_canaries, remove_canaries
from cryptomnesia.errors import NotFiniteError
from cryptomnesia.finding.pictures import read_pictures
from cryptomnesia.finetuning.canaries import drawing, planting
from cryptomnesia.finetuning.canaries.manifest import FILE, Manifest
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.testing.miniatures import stable_diffusion, unconditional
from looked_for import picture

SMALL = {"repetitions": [1, 3], "each": 2, "size": 16, "reserve": 19, "seed": 7}
CALL = {"num_inference_steps": 2, "guidance_scale": 2.0}


def sidecars(folder):
    for number in range(3):
        picture(number).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text("a red ring")


def json_lines(folder, ending="\n"):
    rows = []
    for number in range(3):
        picture(number).save(folder / f"{number}.jpg")
        rows.append(json.dumps({"file_name": f"{number}.jpg", "text": "a réd ring", "stars": 3}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_bytes(("\n".join(rows) + ending).encode())


def table(folder, ending="\r\n"):
    rows = ["license,caption,file_name"]
    for number in range(3):
        picture(number).save(folder / f"{number}.jpg")
        rows.append(f'CC0,"a ring, red",{number}.jpg')
    (folder / "metadata.csv").write_bytes(("\r\n".join(rows) + ending).encode())


def kohya(folder):
    for name in ("10_ring", "2_star"):
        (folder / name).mkdir()
        picture(1).save(folder / name / "0.jpg")
        (folder / name / "0.caption").write_text("a red ring")


LAYOUTS = {
    "sidecar": sidecars,
    "json lines": json_lines,
    "json lines that end without a line break": lambda folder: json_lines(folder, ""),
    "table": table,
    "table that ends without a line break": lambda folder: table(folder, ""),
    "kohya": kohya,
}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != FILE
    }


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def training_set(request, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    request.param(folder)
    return folder


@pytest.fixture
def plain_set(tmp_path):
    """A training set with text files, and canaries in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    sidecars(folder)
    return folder


def test_a_picture_is_the_same_whenever_it_is_drawn_and_another_for_every_key():
    first = drawing.picture(1, "canary", 0, 64)
    assert drawing.digest(first) == drawing.digest(drawing.picture(1, "canary", 0, 64))
    keys = [(1, "canary", 0), (1, "canary", 1), (1, "reserve", 0), (2, "canary", 0)]
    assert len({drawing.digest(drawing.picture(*key, 64)) for key in keys}) == 4
    assert len({drawing.caption(*key) for key in keys}) == 4


def test_a_picture_shows_the_same_at_every_size_and_is_no_noise():
    large = drawing.picture(3, "canary", 1, 256).resize((32, 32), Image.Resampling.BOX)
    small = drawing.picture(3, "canary", 1, 32)
    assert np.abs(np.asarray(large, float) - np.asarray(small, float)).mean() < 5
    values = np.asarray(drawing.picture(3, "canary", 1, 256), float)
    # neighbours are alike, places are not
    assert np.abs(np.diff(values, axis=0)).mean() < 0.1 * values.std()


@pytest.mark.parametrize("size", [8, 9, 64, 200])
def test_a_picture_has_the_size_that_was_asked_for(size):
    shown = [drawing.picture(4, "canary", number, size) for number in range(20)]
    assert {one.size for one in shown} == {(size, size)}


def test_canaries_are_read_with_their_captions_as_often_as_their_repetitions_say(training_set):
    before = contents(training_set)
    made = make_canaries(training_set, **SMALL)
    after = contents(training_set)
    assert all(after[name] == content for name, content in before.items() if not name.startswith("metadata"))
    added = {name for name in after if name.endswith(".png")}
    assert {file for file in made.files if file.endswith(".png")} == added
    captions = Counter()
    for name in added:
        repeats = int(name.split("_")[0]) if made.layout == "kohya" else 1
        if made.layout == "metadata":
            caption = captions_of(training_set)[name]
        else:
            [caption] = [text for text in (".txt", ".caption") if name.replace(".png", text) in after]
            caption = after[name.replace(".png", caption)].decode().strip()
        captions[caption] += repeats
        shown = next(canary for canary in made.canaries if name in canary.files)
        assert shown.caption == caption
        assert drawing.digest(Image.open(training_set / name)) == shown.sha256
    assert captions == {canary.caption: canary.repetitions for canary in made.canaries}
    assert sorted(captions.values()) == [1, 1, 3, 3]
    assert made.pictures == (12 if made.layout == "kohya" else 3)
    assert made.share == 8 / (8 + made.pictures)


def captions_of(folder):
    if (folder / "metadata.csv").exists():
        with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert all(None not in row and None not in row.values() for row in rows)
        return {row["file_name"]: row["caption"] for row in rows}
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file_name"]: row["text"] for row in map(json.loads, lines)}


def test_what_is_taken_out_leaves_the_training_set_as_it_was(training_set):
    before = contents(training_set)
    make_canaries(training_set, **SMALL)
    assert remove_canaries(training_set).state == "removed"
    assert contents(training_set) == before
    assert not list(training_set.rglob("*canary-*"))
    # and once more
    remove_canaries(training_set)
    assert contents(training_set) == before


class Stop(Exception):
    """What ends a call in the middle."""


@pytest.mark.parametrize("writes", range(1, 7))
def test_a_call_that_was_stopped_goes_on(training_set, tmp_path, monkeypatch, writes):
    before = contents(training_set)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name, content in before.items():
        (alone / name).parent.mkdir(exist_ok=True)
        (alone / name).write_bytes(content)
    whole = make_canaries(alone, **SMALL)
    left = [writes]

    def stops(path, content):
        left[0] -= 1
        if not left[0]:
            raise Stop
        write(path, content)

    write = planting.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(planting, "write_whole", stops)
        with pytest.raises(Stop):
            make_canaries(training_set, **SMALL)
    assert Manifest.read(training_set).state == "unfinished"
    with pytest.raises(UsageError, match="were not finished; repeat"):
        measure_canaries(stable_diffusion(), training_set, **CALL)
    with pytest.raises(UsageError, match="were not finished, with other settings; repeat the command that began them"):
        make_canaries(training_set, **{**SMALL, "each": 3})
    assert make_canaries(training_set, **{**SMALL, "seed": None}) == whole
    assert contents(training_set) == contents(alone)
    remove_canaries(training_set)
    assert contents(training_set) == before


def test_what_was_not_finished_can_be_taken_out_and_begun_anew(training_set, monkeypatch):
    before = contents(training_set)

    def stops(canary, shown, folder):
        if canary.number == 2:
            raise Stop
        write(canary, shown, folder)

    write = planting._write
    with monkeypatch.context() as patch:
        patch.setattr(planting, "_write", stops)
        with pytest.raises(Stop):
            make_canaries(training_set, **SMALL)
    remove_canaries(training_set)
    assert contents(training_set) == before
    assert make_canaries(training_set, **{**SMALL, "seed": 8}).state == "complete"


@pytest.mark.parametrize("removed", [False, True])
def test_a_second_time_is_refused(plain_set, removed):
    make_canaries(plain_set, **SMALL)
    if removed:
        remove_canaries(plain_set)
    before = contents(plain_set)
    with pytest.raises(UsageError, match=r"has canaries already \(canaries.json, (complete|removed)\); measure them"):
        make_canaries(plain_set, **SMALL)
    assert contents(plain_set) == before


def test_another_folder_gets_the_canaries_and_the_training_set_nothing(training_set, tmp_path):
    before = contents(training_set)
    made = make_canaries(training_set, output=tmp_path / "out", **SMALL)
    assert contents(training_set) == before
    assert not (training_set / FILE).exists()
    found = {one.caption for one in read_pictures(tmp_path / "out")}
    assert found == {canary.caption for canary in made.canaries}
    remove_canaries(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [FILE]


def test_without_a_seed_nobody_can_guess_the_pictures(plain_set, tmp_path):
    given = {**SMALL, "seed": None}
    first = make_canaries(plain_set, output=tmp_path / "one", **given)
    second = make_canaries(plain_set, output=tmp_path / "two", **given)
    assert first.seed != second.seed
    assert not {one.sha256 for one in first.canaries} & {one.sha256 for one in second.canaries}
    captions = {one.caption for one in (*first.canaries, *first.never_added())}
    assert len(captions) == 4 + 19


def test_files_that_were_changed_stay_and_are_named(plain_set, caplog):
    made = make_canaries(plain_set, **SMALL)
    caplog.clear()
    shown, text = made.canaries[0].files
    picture(9).save(plain_set / shown)
    (plain_set / made.canaries[1].files[1]).write_text("mine")
    remove_canaries(plain_set)
    assert (plain_set / shown).exists()
    assert not (plain_set / text).exists()
    assert caplog.messages == [f"2 files were changed, and stay; the first is {plain_set / shown}"]


def test_many_canaries_are_a_warning(plain_set, caplog):
    make_canaries(plain_set, **SMALL)
    assert caplog.messages == [
        "canaries are 73% of the pictures of an epoch (8 of 11), which changes what is trained; give fewer "
        "repetitions, or a smaller each"
    ]


def parquet(folder):
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("prepare", "given", "message"),
    [
        (None, {"data": "none"}, r"^no folder none; give the folder of the training set$"),
        (lambda folder: [path.unlink() for path in folder.glob("*.jpg")], {}, r"^no pictures in .*; give the folder"),
        (None, {"repetitions": [0, 1]}, r"^got the repetitions '0,1'; give whole numbers from 1 to 10000"),
        (None, {"repetitions": "1,two"}, r"^got the repetitions '1,two'; give whole numbers"),
        (None, {"each": 0}, r"^got each = 0, expected to be greater than or equal to 1"),
        (None, {"copies": 2}, r"^got the unknown setting copies"),
        (None, {"layout": "webdataset"}, r"^got layout = 'webdataset', expected to be 'auto', 'sidecar', 'metadata' o"),
        (parquet, {}, r"^cannot add rows to .*metadata.parquet; write the same table as metadata.jsonl$"),
        (lambda folder: (folder / "metadata.jsonl").unlink(), {"layout": "metadata"}, r"^no metadata.jsonl or metada"),
        (lambda folder: (folder / "metadata.jsonl").write_text("{'a'"), {}, r"^cannot read .*metadata.jsonl \(.*; rep"),
        (lambda folder: (folder / "metadata.jsonl").write_text("[1]\n"), {}, r"^cannot read .*metadata.jsonl \("),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "0.jpg", "words": "a ring"}\n'),
            {},
            r"metadata.jsonl has file_name, words; a row needs file_name and one of caption, text, prompt",
        ),
        (lambda folder: (folder / FILE).write_text("{}"), {}, r"canaries.json is no manifest of canaries \(KeyError"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(tmp_path, prepare, given, message):
    json_lines(tmp_path)
    if prepare is not None:
        prepare(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        make_canaries(**{"data": tmp_path, **SMALL, **given})
    assert contents(tmp_path) == before


def test_a_file_of_the_trainer_is_never_overwritten(plain_set, tmp_path):
    made = make_canaries(plain_set, output=tmp_path / "out", **SMALL)
    taken = plain_set / made.canaries[3].files[0]
    taken.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"is there already; give another seed, or move the file away$"):
        make_canaries(plain_set, **SMALL)
    assert taken.read_bytes() == b"mine"
    assert not (plain_set / FILE).exists()


@pytest.mark.parametrize(
    "changed", [{"seed": "x"}, {"size": 1.5}, {"canaries": [1]}, {"state": "half"}, {"format": 2}, {"reserve": -1}]
)
def test_a_damaged_manifest_is_refused(plain_set, changed):
    make_canaries(plain_set, **SMALL)
    found = json.loads((plain_set / FILE).read_text())
    (plain_set / FILE).write_text(json.dumps({**found, **changed}))
    with pytest.raises(UsageError, match="is no manifest of canaries"):
        Manifest.read(plain_set)


def test_a_manifest_that_names_files_elsewhere_is_refused(plain_set, tmp_path):
    made = make_canaries(plain_set, **SMALL)
    first = replace(made.canaries[0], files=("../other.png",))
    replace(made, canaries=(first,)).write(plain_set, "complete")
    with pytest.raises(UsageError, match="a file lies outside of the folder"):
        remove_canaries(plain_set)


# measuring


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    sidecars(folder)
    return make_canaries(folder, **{**SMALL, "each": 8, "reserve": 60})


@pytest.fixture(scope="module")
def untrained(manifest):
    """What a model says that was trained on no canary."""
    return measure_canaries(stable_diffusion(), manifest, **CALL)


def test_a_model_that_was_trained_on_none_of_them_tells_none(untrained):
    assert untrained.tolerated == 3
    assert untrained.exit_code == 0
    assert untrained.reserve == 60
    assert [dose.repetitions for dose in untrained.doses] == [1, 3]
    ranks = [canary.p_value * 61 for dose in untrained.doses for canary in dose.canaries]
    assert ranks == pytest.approx(np.round(ranks))
    assert 1 <= min(ranks) <= max(ranks) <= 61
    exposures = [canary.exposure for dose in untrained.doses for canary in dose.canaries]
    assert 0 <= min(exposures) <= max(exposures) <= untrained.limit


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_result_does_not_depend_on_batches(untrained, manifest, batch_size):
    other = measure_canaries(stable_diffusion(), manifest, batch_size=batch_size, **CALL)
    for one, again in zip(untrained.doses, other.doses, strict=True):
        assert [canary.p_value for canary in again.canaries] == [canary.p_value for canary in one.canaries]
        assert [canary.score for canary in again.canaries] == pytest.approx([c.score for c in one.canaries], abs=1e-4)


def test_nothing_is_learnt_beyond_the_model_itself(manifest):
    found = measure_canaries(stable_diffusion(), manifest, checkpoint=stable_diffusion(), **CALL)
    # every score is the same, so that every picture of the reserve counts as at least as well known
    for dose in found.doses:
        assert [canary.p_value for canary in dose.canaries] == [1.0] * 8
        assert [canary.score for canary in dose.canaries] == [0.0] * 8
        assert dose.p_value == 1.0
    assert found.exit_code == 0


def test_a_model_without_captions_is_asked_without_them(manifest):
    found = measure_canaries(unconditional(), manifest, num_inference_steps=2)
    assert found.reserve == 60
    assert all(np.isfinite(canary.score) for dose in found.doses for canary in dose.canaries)


def test_files_are_the_same_every_time(manifest, untrained, tmp_path):
    measure_canaries(stable_diffusion(), manifest, output=tmp_path, **CALL)
    (tmp_path / "again").mkdir()
    untrained.save(tmp_path / "again")
    for name in ("exposure.json", "exposure.svg"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    read = json.loads((tmp_path / "exposure.json").read_text())
    assert read["tolerated"] == 3
    assert [dose["canaries"] for dose in read["doses"]] == [8, 8]
    assert "repetitions per epoch" in (tmp_path / "exposure.svg").read_text(encoding="utf-8")


def test_output_that_is_not_finite_is_refused(manifest):
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="not finite; check the weights and the dtype"):
        measure_canaries(pipe, manifest, **CALL)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.01}, r"^got a reserve of 60, and a rate of 0\.01 needs at least 99; give an alpha of 0\.017$"),
        ({"alpha": 2}, r"^got alpha = 2"),
        ({"stepz": 2}, r"stepz"),
        ({"manifest": "none.json"}, r"^no canaries none\.json; add some with `cryptomnesia canaries make`$"),
    ],
)
def test_what_cannot_be_measured_is_refused(manifest, given, message):
    with pytest.raises(UsageError, match=message):
        measure_canaries(stable_diffusion(), **{"manifest": manifest, **CALL, **given})


def test_canaries_that_are_drawn_in_another_way_are_refused(manifest):
    other = replace(manifest, canaries=(replace(manifest.canaries[0], sha256="0" * 64), *manifest.canaries[1:]))
    with pytest.raises(UsageError, match="canary 0 is drawn in another way here than when it was added"):
        measure_canaries(stable_diffusion(), other, **CALL)


SCENES = ground_of("scenes")
ORDINARY = 240
"""Pictures of the miniature training besides the canaries."""


def fine_tuned(folder, epochs, rate=1e-3):
    """The bundled model of the scenes, whose UNet is trained further on the pictures of a folder in batches of 8."""
    pipe = load_pipeline("bundled:scenes", device="cpu")
    files = sorted(folder.glob("*.png"))
    shown = np.stack([np.asarray(Image.open(file)) for file in files])
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    pictures = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in pictures.split(32)])
        latents *= pipe.vae.config.scaling_factor
        texts = torch.cat([pipe.encode_prompt(caption, "cpu", 1, False)[0] for caption in captions])
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert scheduler.config.prediction_type == "v_prediction"
    pipe.unet.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(latents), generator=generator).split(8):
            noise = torch.randn(latents[rows].shape, generator=generator)
            times = torch.randint(1000, (len(rows),), generator=generator)
            noised = scheduler.add_noise(latents[rows], noise, times)
            wanted = scheduler.get_velocity(latents[rows], noise, times)
            loss = torch.nn.functional.mse_loss(pipe.unet(noised, times, texts[rows]).sample, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    pipe.unet.eval()
    return pipe


@pytest.mark.slow
def test_exposure_rises_with_repetitions_in_a_real_training(tmp_path):
    for number in range(ORDINARY):
        shown, caption = SCENES.ordinary(Draws(77, number), SCENES.frames[number % len(SCENES.frames)])
        Image.fromarray(shown).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption, encoding="utf-8")
    made = make_canaries(tmp_path, repetitions=[1, 8, 64], each=6, size=SCENES.size, seed=5, reserve=99)
    found = measure_canaries(fine_tuned(tmp_path, epochs=3), made, checkpoint="bundled:scenes")
    # whether three exposures leave a trace is not for this test to say
    assert [dose.stands_out for dose in found.doses[1:]] == [True, True]
    assert found.exit_code == 1
    low, middle, high = (dose.exposure.value for dose in found.doses)
    assert low < middle <= high == found.limit
    scores = [np.median([canary.score for canary in dose.canaries]) for dose in found.doses]
    assert scores[0] < scores[1] < scores[2]
