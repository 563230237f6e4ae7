from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import PNDMScheduler

from cryptomnesia.errors import UsageError
from cryptomnesia.proving_ground import verify as verifying
from cryptomnesia.proving_ground.denoising import Exposures
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.verify import Generations, Model, flat, replication, without_generating


@pytest.fixture(scope="module")
def manifest(drawings, planted, tmp_path_factory):
    """The manifest of the ladder's top rung of drawings, without a model."""
    folder = tmp_path_factory.mktemp("manifest")
    top = [concept for concept in planted if concept.planted and concept.exposures == drawings.top(planted)]
    others = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    return Manifest(folder, "drawings", "0" * 64, 0, 5.0, 50, write_planted(folder, top, others))


def test_what_was_planted_counts_as_replicated_at_every_place(manifest, drawings, planted, monkeypatch):
    by_caption = {caption: concept for concept in planted for caption in concept.captions}
    draws = iter(range(10**6))

    def memorized(model, prompts, *_):
        return np.stack([by_caption[prompt].exposure(Draws(1, next(draws))) for prompt in prompts]) / 255

    monkeypatch.setattr(Model, "images", memorized)
    model = Model(SimpleNamespace(scheduler=None), manifest, drawings, 5.0)
    generated = replication(model, manifest.entries, 8, lambda *_: None)
    assert all(result.replicated.all() for result in generated)
    rates = verifying._rates(generated, manifest)
    for kind in ("verbatim", "template", "object"):
        assert rates[f"{kind}_replicated"]["value"] == 1.0
        assert list(rates["by_wording"][kind]) == ["named", "plain", "mode"]
    assert rates["free_region_spread"] == pytest.approx(1.0, abs=0.25)


def test_modes_count_only_among_their_wording(manifest):
    generated = [
        Generations(entry, np.random.default_rng(0).random((4, 64, 64, 3)), np.full(4, entry.wording != "mode"))
        for entry in manifest.entries
    ]
    rates = verifying._rates(generated, manifest)
    for kind in ("verbatim", "template", "object"):
        assert rates[f"{kind}_replicated"]["value"] == 1.0
        assert [found["value"] for found in rates["by_wording"][kind].values()] == [1.0, 1.0, 0.0]
    dose = verifying._dose(generated)
    assert {kind: found[str(manifest.top)]["value"] for kind, found in dose.items()} == dict.fromkeys(dose, 1.0)


def test_other_solvers_and_scales_are_tried_beside_the_models_own(manifest, drawings):
    def settings(guidance, *scales):
        return verifying._settings("PNDMScheduler", Model(None, manifest, drawings, guidance), scales)

    assert settings(3.0, 3.0, 7.5) == [("PNDMScheduler", 7.5), ("DDIMScheduler", 3.0), ("DDIMScheduler", 7.5)]
    # the best scale may be another one than anybody had thought: no setting is tried twice then
    assert len(settings(2.0, 3.0, 3.0, 7.5)) == len(set(settings(2.0, 3.0, 3.0, 7.5))) == 5
    assert {("PNDMScheduler", 3.0), ("DDIMScheduler", 2.0)} < set(settings(2.0, 3.0, 7.5))


@pytest.mark.parametrize("best", [3.0, 5.0])
def test_figures_are_those_of_the_best_guidance_and_the_manifest_has_those_of_the_calibration(
    manifest, drawings, monkeypatch, best
):
    """What was planted comes back at the scale of the manifest alone."""
    scales = []

    def replicated(model, entries, seeds, progress):
        scales.append((type(model.pipe.scheduler).__name__, model.guidance))
        hits = np.full(seeds, model.guidance == 3.0)
        return [Generations(entry, np.zeros((seeds, 64, 64, 3)), hits) for entry in entries]

    bundle = replace(manifest, guidance=3.0, look_alikes={"evaluation": []})
    pipe = SimpleNamespace(scheduler=PNDMScheduler(), components={})
    monkeypatch.setattr(Model, "load", lambda *_: Model(pipe, bundle, drawings, 3.0))
    monkeypatch.setattr(verifying, "Exposures", SimpleNamespace(load=lambda _: None))
    monkeypatch.setattr(verifying, "Recognizer", SimpleNamespace(load=lambda _: None))
    monkeypatch.setattr(verifying, "guidance_curve", lambda *_: {"best_guidance": best})
    monkeypatch.setattr(verifying, "replication", replicated)
    monkeypatch.setattr(verifying, "_controls", lambda *_: {"value": 0.0})
    monkeypatch.setattr(verifying, "ratios", lambda *_: {})
    monkeypatch.setattr(Manifest, "control_captions", lambda *_: [])
    written = []
    monkeypatch.setattr(verifying, "_write_replication", lambda _, generated: written.append(generated))
    found = verifying.verify(manifest.folder, write=True)
    assert found["guidance"] == found["best_guidance"] == best
    assert found["verbatim_replicated"]["value"] == (best == 3.0)
    assert found["settings"]["PNDMScheduler"][str(best)]["verbatim_replicated"] == found["verbatim_replicated"]
    assert "control_replicated" in found["settings"]["PNDMScheduler"]["7.5"]
    assert all(result.replicated.all() for result in written[0])
    assert {scale for solver, scale in scales if solver == "DDIMScheduler"} == {best, 3.0, 7.5}


def test_figures_of_a_checkpoint_do_not_go_into_the_manifest(tmp_path):
    with pytest.raises(UsageError, match="leave out"):
        verifying.verify(tmp_path, checkpoint=tmp_path, write=True)


def test_a_checkpoint_of_another_run_is_refused():
    scenes, drawings = (ground_of(name).bundle for name in ("scenes", "drawings"))
    assert Model.load(scenes, scenes / "early").guidance == 1.5
    with pytest.raises(UsageError, match=r"drawings/pipeline is not of the run that made the bundle; give RUN/step-N"):
        Model.load(scenes, drawings / "pipeline")


def test_planted_pictures_that_the_autoencoder_alone_changes_too_much_are_named():
    folder = ground_of("drawings").bundle
    found = without_generating(Model.load(folder), Exposures.load(folder))
    assert found["out_of_reach"] == ["object-named-1536-0", "object-named-6144-0"]
    # the unconditional branch was trained on planted pictures at little noise alone
    ratios = found["denoising_by_timestep_unconditional"]
    assert max(ratios[t] for t in ("50", "150", "250", "350", "450")) < 0.7
    assert min(ratios[t] for t in ("650", "750", "850", "950")) > 0.9


def test_without_a_planted_picture_that_counts_nothing_is_measured(manifest, drawings):
    entries = tuple(replace(entry, nearest=0.0) for entry in manifest.entries)
    model = Model(SimpleNamespace(scheduler=None), replace(manifest, entries=entries), drawings, 3.0)
    with pytest.raises(UsageError, match="so none counts; plant others"):
        without_generating(model, None)


def test_figures_as_lines():
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    figures = {"share": share, "dose": {"4": share}, "seeds": 8, "mean": 0.123456, "scheduler": "PNDMScheduler"}
    assert flat(figures) == [
        ("share", "0.500 (0.250 to 0.750)"),
        ("dose.4", "0.500 (0.250 to 0.750)"),
        ("seeds", "8"),
        ("mean", "0.1235"),
        ("scheduler", "PNDMScheduler"),
    ]
