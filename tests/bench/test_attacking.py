"""Attacks on a random miniature, and their figures on sights that were made up."""

import numpy as np
import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.bench.attack_figures import figures_of
from cryptomnesia.bench.attacking import CAPTION, PACKET, AttackBench, Descent, _embeddings, other_wordings
from cryptomnesia.bench.mitigation_figures import UNTOUCHED
from cryptomnesia.bench.packet import Packet
from cryptomnesia.bench.remaking import call_of
from cryptomnesia.bench.trials import MEMORIZED, Trial
from cryptomnesia.calibration import calibrate
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.detectors import Stability, default_detector, detector
from cryptomnesia.guarding.making import Maker
from cryptomnesia.mitigations import GuidanceDelay, Rephrasing
from cryptomnesia.mitigations.captions import embedded, of_captions
from cryptomnesia.parts import run as run_bench
from cryptomnesia.pipelines.encoding import latents_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.concepts import Place
from cryptomnesia.testing.miniatures import stable_diffusion, stable_diffusion_3

CALL = {"num_inference_steps": 5, "guidance_scale": 2.0}
TRIALS = [Trial(f"a red {shape}", MEMORIZED, shape, 100 + number) for number, shape in enumerate(("ring", "disc"))]
REFERENCES = [f"a green star {number}" for number in range(148)]


class Look:
    """Says that pictures of rings are copies."""

    def __call__(self, trials, pictures):
        assert len(trials) == len(pictures)
        return [{"pixels": trial.cluster == "ring", "structure": False} for trial in trials]


@pytest.fixture(scope="module")
def setup():
    return Setup.of(stable_diffusion(), CALL)


@pytest.fixture(scope="module")
def planted(setup):
    rng = np.random.default_rng(0)
    side = setup.pipe.unet.config.sample_size * setup.pipe.vae_scale_factor
    mask = np.zeros((side, side), dtype=bool)
    mask[: side // 2] = True
    return [Place(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), mask) for _ in TRIALS]


def attack(folder, setup, planted, **more):
    given = {"call": CALL, "about": {"model": "a miniature"}, "look": Look(), "budgets": (2,), "wordings": 2}
    given |= {"others": [Stability(), detector("guidance-mean")], "mitigations": [Rephrasing(), GuidanceDelay()]}
    given |= {"trials": TRIALS, "references": REFERENCES, "folder": folder, "planted": planted, **more}
    return run_bench(lambda: AttackBench(setup=setup, detector=default_detector(setup), **given), folder)


def test_every_attack_meets_every_mitigation(tmp_path, setup, planted):
    packet = attack(tmp_path, setup, planted)
    made = [(row["attack"], row["budget"], row["cluster"]) for row in packet.rows]
    kinds = [("embedding", 0), ("embedding", 2), ("hidden", 2), ("wording", 1), ("wording", 2)]
    assert made == [(*kind, shape) for kind in kinds for shape in ("ring", "disc")]
    assert len({row["seed"] for row in packet.rows}) == len(packet.rows)
    for row in packet.rows:
        assert list(row["pictures"]) == [UNTOUCHED, "rephrasing", "guidance-delay"]
        assert row["pictures"][UNTOUCHED]["made"]
        # embeddings have no words that could be left out
        assert row["pictures"]["rephrasing"]["made"] == (row["attack"] == "wording")
    figures = packet.figures["attacks"]
    assert figures["embedding"]["2"][UNTOUCHED]["copies"]["value"] == 0.5
    assert figures["embedding"]["2"]["rephrasing"]["copies"] is None
    # the default detector reads the beginning of the run, which the delay makes ordinary
    assert figures["wording"]["1"]["guidance-delay"]["returned"] is None
    assert Packet.load(tmp_path / PACKET).figures == packet.figures
    # what is made already is not made again; two evaluations find out how the network takes captions
    evaluated = []
    hook = setup.pipe.unet.register_forward_hook(lambda *_: evaluated.append(1))
    again = attack(tmp_path, setup, planted)
    hook.remove()
    assert (again.rows, len(evaluated)) == (packet.rows, 2)
    with pytest.raises(UsageError, match="a bench with other settings"):
        attack(tmp_path, setup, planted, budgets=(3,))


def test_the_embedding_moves_towards_the_planted_picture(setup, planted):
    calibration = calibrate(setup.pipe, REFERENCES, batch_size=64, **CALL)
    maker = Maker(setup.pipe, Judge(calibration, default_detector(setup)))
    found = _embeddings(maker, setup, TRIALS[:1], planted[:1], (0, 20), Descent(rate=0.2, levels=5))
    assert list(found) == ["embedding 0", "embedding 20", "hidden 20"]

    run = maker.first([call_of(setup, TRIALS[0])], keep="all")
    torch.testing.assert_close(found["embedding 0"], of_captions(run.step(0))[CAPTION].float())
    picture = torch.from_numpy(planted[0].image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        target = latents_of(setup.pipe.vae, picture)

    def distances(name, part):
        """Mean squared distances of the estimates from the planted picture, and from those of the empty caption."""
        planted_, usual = 0.0, 0.0
        for number in part:
            step = run.step(number)
            noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(number))
            x = step.level.alpha * target + step.level.sigma * noise
            denoiser = setup.family.denoiser()
            with torch.no_grad():
                estimate = denoiser(x, step.level, embedded(step.cond_inputs, {CAPTION: found[name]})).x0
                empty = denoiser(x, step.level, step.uncond_inputs).x0
            half = target.shape[-2] // 2
            planted_ += (estimate - target)[..., :half, :].square().mean().item()
            usual += (estimate - empty).square().mean().item()
        return planted_, usual

    assert distances("embedding 20", range(5))[0] < distances("embedding 0", range(5))[0]
    # the first fifth of five evaluations is the first
    assert distances("hidden 20", [0])[1] < distances("embedding 20", [0])[1]
    assert distances("hidden 20", range(1, 5))[0] < distances("embedding 0", range(1, 5))[0]


def test_a_network_that_takes_captions_in_several_forms_is_refused(tmp_path, planted):
    other = Setup.of(stable_diffusion_3(), CALL)
    with pytest.raises(UsageError, match="takes captions in other forms than prompt_embeds alone"):
        attack(tmp_path, other, planted)


def test_wordings_are_different_and_always_the_same():
    text = "a pink star, on a red ground, sumisno"
    found = other_wordings(text, 8)
    assert len({text, *found}) == 9
    assert found[:3] == other_wordings(text, 3)
    assert all("sumisno" in wording.casefold() for wording in found)
    # of one word there are few
    assert other_wordings("star", 20)[-1] == other_wordings("star", 30)[-1]


def test_of_wordings_one_copy_is_enough():
    def row(cluster, budget, copy, flagged):
        seen = {"made": True, "own_run": False, "blind": False, "structure": False}
        pictures = {
            UNTOUCHED: {**seen, "pixels": True, "flagged": flagged},
            "partial-captions": {**seen, "pixels": copy, "flagged": False},
        }
        p_values = {"early-detail": 0.001 if flagged else 0.5, "stability": 0.008 if cluster == "a" else 0.004}
        made = {"attack": "wording", "budget": budget, "cluster": cluster, "fpr": 0.01}
        return {**made, "p_values": p_values, "pictures": pictures}

    rows = [row("a", 1, False, True), row("a", 2, True, True), row("b", 1, False, True), row("b", 2, False, False)]
    found = figures_of(rows, [UNTOUCHED, "partial-captions"])
    assert found["counts"] == {"concepts": 2}
    budgets = found["attacks"]["wording"]
    one, two = (budgets[budget]["partial-captions"] for budget in ("1", "2"))
    assert (one["copies"]["value"], one["returned"]["value"]) == (0.0, 0.0)
    # the second wording of b is not flagged, so a guard returns the untouched copy
    assert (two["copies"]["value"], two["returned"]["value"]) == (0.5, 1.0)


def test_what_a_second_detector_sees_of_copies_that_the_first_does_not_flag():
    def row(cluster, first, second):
        made = {"attack": "hidden", "budget": 4, "cluster": cluster, "fpr": 0.01}
        untouched = {"made": True, "own_run": False, "blind": False, "structure": False, "pixels": True}
        seen = {UNTOUCHED: {**untouched, "flagged": first <= 0.01}}
        return {**made, "p_values": {"early-detail": first, "stability": second}, "pictures": seen}

    def shares(*rows):
        found = figures_of(rows, [UNTOUCHED])["unseen"]["hidden"]["4"]
        return [(one["alone"]["value"], one["beside"] and one["beside"]["value"]) for one in found.values()]

    assert shares(row("a", 0.5, 0.004), row("b", 0.001, 0.5)) == [(0.5, None), (0.5, 0.0)]
    # beside one another each has half of the rate
    assert shares(row("a", 0.5, 0.008)) == [(1.0, None), (0.0, 1.0)]
    # a picture that cannot be judged is not returned
    assert shares(row("a", 0.5, None), row("b", 0.5, 0.5)) == [(1.0, None), (0.5, 0.5)]


def test_a_detector_that_reads_more_than_norms_is_refused(tmp_path, setup, planted):
    with pytest.raises(UsageError, match="sharpness read more than norms; give other detectors"):
        attack(tmp_path, setup, planted, others=[detector("sharpness")])
