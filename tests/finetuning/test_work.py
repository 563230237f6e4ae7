"""`finetune` on checkpoints whose predictions are known in closed form."""

import json
import math
from dataclasses import replace

import pytest

from cryptomnesia import Course
from cryptomnesia.errors import UsageError
from cryptomnesia.finding.pictures import read_pictures
from cryptomnesia.finetuning import work
from cryptomnesia.finetuning.concluding import flagged
from cryptomnesia.finetuning.verb import forget_problems
from cryptomnesia.finetuning.work import BASE
from cryptomnesia.parts import run
from looked_for import pictures
from returning import CAPTIONS, COPIES, NONE, TRAINED, Broken, Diverged, Make


@pytest.fixture(autouse=True)
def _same_base(monkeypatch):
    monkeypatch.setattr(work, "check_same_base", lambda *_: None)


def course(folder, *checkpoints, workers=None, **more):
    return run(Make(folder, checkpoints, more), folder, workers=workers)


def test_copying_starts_at_the_first_checkpoint_that_returns_a_picture(tmp_path):
    found = course(tmp_path, NONE, COPIES)
    assert [(point.name, point.step, point.copied) for point in found.points] == [
        (BASE, 0, []),
        ("checkpoint-100", 100, []),
        ("checkpoint-200", 200, [0]),
    ]
    assert (found.start.step, found.before.name, found.exit_code) == (200, "checkpoint-100", 1)
    ring, *rest = found.points[2].seen
    # two images at first, and four more because they are copies
    assert (ring.images, ring.copies, ring.whole, ring.by) == (6, 6, True, "pixels")
    assert all((seen.images, seen.copies) == (2, 0) for seen in rest)
    # the base knows nothing of the picture, the checkpoint everything
    assert ring.learnt > 1 > abs(rest[0].learnt)


def test_the_images_and_maps_that_the_course_names_are_in_the_folder(tmp_path):
    ring = course(tmp_path, COPIES).points[1].seen[0]
    files = [ring.file, ring.file.replace(".png", ".training.png"), *ring.maps.values()]
    assert len(files) == 4
    assert all((tmp_path / file).is_file() for file in files)
    without = course(tmp_path / "hashes", COPIES, thumbnails=False).points[1].seen[0]
    assert (without.file, dict(without.maps)) == ("", {})
    assert not list((tmp_path / "hashes").glob("*.png"))


def test_a_course_is_read_from_its_folder_as_it_was(tmp_path):
    found = course(tmp_path, NONE, COPIES)
    read = Course.load(tmp_path)
    assert json.dumps(read.to_json()) == json.dumps(found.to_json())
    with pytest.raises(UsageError, match="no course in"):
        Course.load(tmp_path / "nowhere")


def test_a_run_goes_on_with_the_parts_that_are_missing_and_with_new_checkpoints(tmp_path, monkeypatch):
    first = course(tmp_path, NONE)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("point-*.json")}
    both = course(tmp_path, NONE, COPIES)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert both.points[:2] == first.points
    assert both.start.step == 200
    # a trainer removes old checkpoints; what was measured of them stays
    later = course(tmp_path, replace(COPIES, name="checkpoint-300", step=300))
    assert [point.step for point in later.points] == [0, 100, 200, 300]
    assert later.start.step == 200
    assert "not in the folder any more, as measured before: checkpoint-100, checkpoint-200" in later.notes


def test_what_an_earlier_training_in_the_folder_copied_is_not_said_of_another_one(tmp_path):
    course(tmp_path, NONE, COPIES)
    other = course(tmp_path, replace(NONE, held=3))
    assert [point.step for point in other.points] == [0, 100]
    assert other.start is None
    assert any("held another training" in note for note in other.notes)


def test_a_checkpoint_that_cannot_be_measured_stops_no_other_and_is_tried_again(tmp_path):
    broken = Broken("checkpoint-150", 150, None)
    found = course(tmp_path, NONE, broken, COPIES)
    assert [point.step for point in found.points] == [0, 100, 200]
    assert any(note.startswith("checkpoint-150 was not measured: it is gone") for note in found.notes)
    forget_problems(tmp_path)
    assert not list(tmp_path.glob(f"point-{work.Variant(broken).key}*"))
    assert len(list(tmp_path.glob("point-*.json"))) == 2
    with pytest.raises(UsageError, match="no checkpoint could be measured: it is gone"):
        course(tmp_path / "alone", broken)


def test_a_training_that_has_diverged_is_not_said_to_copy_nothing(tmp_path):
    found = course(tmp_path, NONE, Diverged("checkpoint-150", 150, None))
    assert [point.step for point in found.points] == [0, 100]
    assert any("checkpoint-150 was not measured: the model's output is not finite" in note for note in found.notes)


def test_a_checkpoint_that_was_written_again_is_measured_again(tmp_path):
    course(tmp_path, replace(COPIES, held=None))
    assert course(tmp_path, COPIES).start.step == 200


def test_several_processes_and_other_batches_give_the_same_course(tmp_path):
    alone = course(tmp_path / "alone", NONE, COPIES)
    several = course(tmp_path / "several", NONE, COPIES, workers=2)
    small = course(tmp_path / "small", NONE, COPIES, batch_size=1)
    # the autoencoder that nothing uses has other random weights in every process
    found, expected = ({**one.to_json(), "about": None} for one in (several, alone))
    assert found == expected
    assert [point.copied for point in small.points] == [point.copied for point in alone.points]


def test_another_base_or_other_pictures_are_refused(tmp_path):
    course(tmp_path, NONE)
    with pytest.raises(UsageError, match="differs in pictures"):
        course(tmp_path, NONE, pictures=read_pictures(TRAINED[:2], CAPTIONS[:2]))


def test_held_out_pictures_say_how_well_pictures_are_learnt_by_chance(tmp_path):
    held_out = read_pictures(pictures(50, 9), [f"a box {number}" for number in range(9)])
    found = course(tmp_path, COPIES, held_out=held_out, alpha=0.1)
    point = found.points[1]
    assert point.held(0.1) == [0]
    assert point.seen[0].p_value == pytest.approx(0.1)
    assert (point.others, point.elsewhere) == (18, 0)


def test_a_held_out_picture_that_comes_back_by_chance_raises_what_counts_as_a_copy(tmp_path):
    # the checkpoint makes the held-out picture of a ring as exactly as it makes that of the training
    held_out = read_pictures([TRAINED[0]], ["an iron ring"])
    found = course(tmp_path, COPIES, pictures=read_pictures(TRAINED[1:], CAPTIONS[1:]), held_out=held_out)
    assert found.start is None


def test_captions_of_others_that_return_training_pictures_are_counted(tmp_path):
    found = course(tmp_path, COPIES, further=["the lord of the ring", "a tree"])
    assert (found.points[1].others, found.points[1].elsewhere) == (4, 2)


def test_the_scale_of_a_lora_below_which_nothing_comes_back_is_named(tmp_path):
    lora = replace(COPIES, scalable=True)
    found = course(tmp_path, NONE, lora, scales=[0.75, 0.25])
    assert [(point.scale, point.copied) for point in found.scales] == [(0.25, []), (0.75, [0]), (1.0, [0])]
    assert found.highest_scale.scale == 0.25
    assert [point.step for point in found.points] == [0, 100, 200]


def test_pictures_of_one_caption_share_its_images(tmp_path):
    # the instance prompt of DreamBooth: one of four pictures comes back under it
    found = course(tmp_path, COPIES, pictures=read_pictures(TRAINED, ["a ring"] * 4))
    seen = found.points[1].seen
    assert [one.images for one in seen] == [24] * 4
    assert found.points[1].copied == [0]
    assert seen[0].copies == 24


def test_held_out_pictures_of_the_caption_of_the_training_count(tmp_path):
    # what comes back under the prompt is the picture that was held out, as exactly as that of the training
    held_out = read_pictures([TRAINED[0]], ["a ring"])
    found = course(tmp_path, COPIES, pictures=read_pictures(TRAINED[1:], ["a ring"] * 3), held_out=held_out)
    assert found.start is None
    assert found.points[1].others == 0


def test_pictures_that_the_folder_holds_more_than_once_are_asked_about_first(tmp_path):
    names = [one.name for one in read_pictures(TRAINED, CAPTIONS)]
    found = course(tmp_path, NONE, most=2, duplicates=[[names[2], names[3]]])
    assert found.pictures == names[2:]
    assert "2 of 4 training pictures were asked about" in found.notes


def test_captions_are_flagged_whose_scores_few_held_out_captions_reach(tmp_path):
    further = [f"a tree {number}" for number in range(19)]
    groups = Make(tmp_path, (COPIES,), {"further": further})()._groups
    found = [{"score": score} for score in (20.0, 5.5, -1.0, 19.0, *range(19))]
    assert flagged(groups, found, 0.05) == pytest.approx(0.5)
    assert math.isnan(flagged(groups, [{"score": None}] * 23, 0.05))


def test_training_pictures_without_any_caption_are_refused(tmp_path):
    with pytest.raises(UsageError, match="none of the training pictures has a caption"):
        course(tmp_path, NONE, pictures=read_pictures(TRAINED))
    assert not list(tmp_path.iterdir())
