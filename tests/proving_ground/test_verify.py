from types import SimpleNamespace

import numpy as np
import pytest

from cryptomnesia.proving_ground import verify as verifying
from cryptomnesia.proving_ground.draws import Draws
from cryptomnesia.proving_ground.manifest import Manifest, write_planted
from cryptomnesia.proving_ground.verify import Generations, Model, flat, replication


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
    def settings(guidance, natural):
        return verifying._settings("PNDMScheduler", Model(None, manifest, drawings, guidance), natural)

    assert settings(3.0, 3.0) == [("PNDMScheduler", 7.5), ("DDIMScheduler", 3.0), ("DDIMScheduler", 7.5)]
    # at a scale of its own, a model is also measured at those of the ground, and no setting is tried twice
    assert len(settings(2.0, 2.0)) == len(set(settings(2.0, 2.0))) == 5
    # the natural scale may be another one than anybody had thought
    assert {("PNDMScheduler", 5.0), ("DDIMScheduler", 5.0)} < set(settings(3.0, 5.0))
    assert len(settings(3.0, 5.0)) == 5


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
