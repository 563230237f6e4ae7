"""An audit whose batches are done by the processes of a Ray cluster."""

import logging

import pytest
from faults import audit_under_fire
from PIL import Image

from cryptomnesia import UsageError, audit
from cryptomnesia.auditing import audited as auditing
from cryptomnesia.auditing import store as storing
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.store import Store, StoreError
from cryptomnesia.matching import ImageIndex
from tiny_audit import settings

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster():
    """A cluster of this machine with two cores."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_an_audit_on_ray_is_the_audit_of_one_process(cluster, audit_folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        Image.effect_noise((16, 16), number).save(images / f"{number}.png")
    arguments = settings(audit_folder, images_per_prompt=2, batch_size=2, training_images=images)
    alone = audit(**arguments, output=tmp_path / "alone")
    told = []

    def stop(stage, done, total):
        told.append((stage, done, total))
        if stage == "images" and done >= 2:
            raise KeyboardInterrupt

    # what does not fit shows before a picture is described
    with pytest.raises(UsageError, match="give more steps, or another detector"):
        audit(**arguments | {"steps": 1}, output=tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()
    with pytest.raises(KeyboardInterrupt):
        audit(**arguments, output=tmp_path / "run", engine="ray", progress=stop)
    # the processes of the cluster have made the index, and the one that began the run has made none
    assert told[0][0] == "index"
    assert [one for one in told if one[0] == "index"][-1] == ("index", 12, 12)
    assert len(ImageIndex(tmp_path / "run" / "index")) == 12
    done = Store(tmp_path / "run").done("images")
    assert 1 <= done < 3
    # the command that goes on has no model
    monkeypatch.setattr(auditing, "plan", None)
    shared = audit(**arguments, output=tmp_path / "run", engine="ray", progress=lambda *one: told.append(one))
    for stage in ("references", "images", "scores"):
        assert str(shared.rows(stage)) == str(alone.rows(stage))
    assert outcome(shared).to_json() == outcome(alone).to_json()
    assert next(one for one in told if one[0] == "references") == ("references", 0, 102)
    assert ("images", 2 * done, 6) in told
    assert told[-1] == ("images", 6, 6)
    # what a process refuses is refused here
    with pytest.raises(UsageError, match="holds another run: seed is 7, there 0"):
        audit(**arguments, seed=7, output=tmp_path / "run", engine="ray")


def test_a_cluster_needs_names_of_methods(audit_folder, tmp_path, pipe):
    given = settings(audit_folder) | {"model": pipe}
    with pytest.raises(UsageError, match="got the model as an object, and several workers load everything by its name"):
        audit(**given, output=tmp_path / "run", engine="ray")


def test_a_machine_that_does_not_see_the_run_refuses_its_units(audited, tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "PATIENCE", 0.0)
    auditing.check_seen(audited.folder, audited.run)
    for folder, run in ((tmp_path / "elsewhere", audited.run), (audited.folder, "another")):
        with pytest.raises(
            UsageError, match=r"the machine .* of the cluster does not see the run in .*; give a folder"
        ):
            auditing.check_seen(folder, run)
    assert not (tmp_path / "elsewhere").exists()


def test_batches_that_are_not_to_be_seen_are_an_error(audited, monkeypatch):
    monkeypatch.setattr(storing, "PATIENCE", 0.0)
    audited.wait("images", 2)
    with pytest.raises(StoreError, match=r"1 of 3 batches of images are not to be seen in .*; give a folder that all"):
        audited.wait("images", 3)


def test_a_folder_that_only_one_machine_sees_is_refused(cluster, audit_folder, tmp_path, monkeypatch):
    run = tmp_path / "elsewhere"
    monkeypatch.setattr(auditing, "Store", lambda folder: Store(run / "nothing"))
    with pytest.raises(
        UsageError, match=r"has begun the run in .*elsewhere, which this machine does not see; give a f"
    ):
        audit(**settings(audit_folder), output=run, engine="ray")


@pytest.mark.slow
def test_a_run_whose_processes_machines_and_commands_are_killed_has_every_image_once(audit_folder, tmp_path):
    (audit_folder / "hundred.txt").write_text("\n".join(f"a blue star {number}" for number in range(100)))
    arguments = settings(audit_folder, prompts=audit_folder / "hundred.txt", batch_size=1)
    expected = audit(**arguments, output=tmp_path / "whole")
    model = arguments.pop("model")
    flags = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    counts = audit_under_fire([model, *flags], tmp_path / "killed", faults=20)
    assert sum(counts.values()) == 20
    assert all(counts.values())
    resumed = Store(tmp_path / "killed")
    for stage in ("references", "images", "scores"):
        assert str(resumed.rows(stage)) == str(expected.rows(stage))
