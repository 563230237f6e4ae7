import pytest
import torch
from safetensors.torch import save_file

from cryptomnesia import UsageError
from cryptomnesia.localizers import methods as methods_module
from cryptomnesia.calibration.maps import MapCalibration
from cryptomnesia.localization import localize
from cryptomnesia.localizers import Curvature, CurvatureDifference, DiagonalEstimator, Watched, baseline
from cryptomnesia.localizers.methods import check_methods, method
from cryptomnesia.pipelines.families import adapter_for
from cryptomnesia.settings import Sampling
from cryptomnesia.tracing.generation import generate
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, flux, stable_diffusion, unconditional

CHEAP = DiagonalEstimator(probes=16, group=16)


@pytest.fixture(scope="module")
def other():
    """A checkpoint of the same miniature that knows less."""
    pipe = stable_diffusion()
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(0.9)
    return pipe


def test_all_maps_come_from_one_generation(pipe, other):
    names = ["curvature-difference", "score-difference", "score-difference-checkpoint", "curvature", "bright-ending"]
    methods = [method(name, estimator=CHEAP) for name in names]
    evaluated = []
    hook = pipe.unet.register_forward_hook(lambda _module, _args, output: evaluated.append(len(output[0])))
    found = list(localize(pipe, ["a red circle", "a blue star"], [3, 4], SAMPLING, methods, other=other))
    hook.remove()
    (batch,) = generate(pipe, ["a red circle", "a blue star"], [3, 4], SAMPLING, keep=(-1,))
    for each, image in zip(found, batch.images, strict=True):
        assert torch.equal(each.image, image)
        assert list(each.maps) == names
        assert all(heat.shape == (8, 8) for heat in each.maps.values())
        assert list(each.errors) == ["curvature-difference", "curvature"]
        assert all(error.shape == (8, 8) for error in each.errors.values())
        assert each.masks == {}
    # three evaluations of both branches to generate; then both branches at one point, to see what it takes, and at
    # 2·16 probed ones, the conditional branch at as many, and one look at the attention
    assert evaluated == [4] * 3 + [2, 64, 1, 32, 2]
    assert [(each.prompt, each.seed) for each in found] == [("a red circle", 3), ("a blue star", 4)]


def test_a_checkpoint_is_asked_once_and_checked_once(pipe, other, monkeypatch):
    names = ["curvature-difference-checkpoint", "score-difference-checkpoint", "guidance-map-checkpoint"]
    methods = [method(name, step=-1, estimator=CHEAP) for name in names]
    hashed, evaluated = [], []
    digests = baseline.weights_digests
    monkeypatch.setattr(baseline, "weights_digests", lambda pipe: hashed.append(1) or digests(pipe))
    hook = other.unet.register_forward_hook(lambda _module, _args, output: evaluated.append(len(output[0])))
    found = list(localize(pipe, PROMPTS[:4], range(4), SAMPLING, methods, other=other, batch_size=2))
    hook.remove()
    assert len(found) == 4
    assert len(hashed) == 2  # the autoencoders of either
    # in either batch: both branches to see how it reads captions, the two images, one point, and 2·16 probed ones
    assert evaluated == [4, 2, 1, 32] * 2


def test_steps_are_counted_from_either_end(pipe):
    first = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=0)]))
    same = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=-3)]))
    share = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=0.3)]))
    for each in (same, share):
        assert torch.equal(first.maps["score-difference"], each.maps["score-difference"])
    with pytest.raises(UsageError, match=r"got the evaluation 1\.5; give a whole number, or a share of the run"):
        next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=1.5)]))
    with pytest.raises(UsageError, match="got the evaluation 3 of a run of 3; give one in 0 … 2"):
        next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=3)]))


def test_methods_are_made_by_name():
    made = method("curvature-difference-checkpoint", step=-2, estimator=CHEAP)
    assert made.localizer == CurvatureDifference(-2, CHEAP)
    assert made.baseline == "checkpoint"
    assert method("curvature", empty=True) == method("curvature")
    assert method("score-difference", empty=True).baseline == "empty"
    for name in ("tarot", "bright-ending-checkpoint"):
        with pytest.raises(UsageError, match=rf"unknown map '{name}'; known are collapse, .*-checkpoint"):
            method(name)


def test_what_a_method_lacks_is_said_before_anything_is_generated(pipe):
    run, compared = method("score-difference"), method("score-difference-checkpoint")
    asked = method("score-difference", empty=True)
    with pytest.raises(UsageError, match="got no map to make"):
        check_methods(pipe, SAMPLING, [])
    with pytest.raises(UsageError, match="needs the unconditional branch"):
        check_methods(pipe, Sampling(3, 1.0), [run])
    with pytest.raises(UsageError, match="needs the unconditional branch"):
        check_methods(flux(), Sampling(3, 3.5), [run])
    with pytest.raises(UsageError, match="needs a less-trained checkpoint"):
        check_methods(pipe, SAMPLING, [compared])
    with pytest.raises(UsageError, match="prediction type is v_prediction"):
        check_methods(pipe, SAMPLING, [compared], stable_diffusion("v_prediction"))
    with pytest.raises(UsageError, match="give every map once"):
        check_methods(pipe, SAMPLING, [run, method("score-difference", step=0)])
    with pytest.raises(UsageError, match="has no captions to attend to"):
        check_methods(unconditional(), Sampling(3, 1.0), [method("bright-ending")])
    with pytest.raises(UsageError, match="has no captions, and so no empty one"):
        check_methods(unconditional(), Sampling(3, 1.0), [asked])
    check_methods(pipe, Sampling(3, 1.0), [asked])


@pytest.fixture(scope="module")
def fitted(pipe, other):
    methods = [method("score-difference"), method("score-difference-checkpoint")]
    return methods, MapCalibration.fit(pipe, PROMPTS, SAMPLING, methods, other=other, batch_size=34)


def test_a_map_calibration_is_split_and_survives_saving(pipe, fitted, other, tmp_path):
    methods, calibration = fitted
    calibration.save(tmp_path / "maps.safetensors")
    again = MapCalibration.load(tmp_path / "maps.safetensors")
    again.check(pipe, SAMPLING, methods, other)
    for name, reference in calibration.references.items():
        assert reference.fitting.shape == (34, 8, 8)
        assert reference.null.shape == (68, 8, 8)
        assert torch.equal(again.references[name].null, reference.null)
    assert [file.name for file in tmp_path.iterdir()] == ["maps.safetensors"]


def test_ordinary_pictures_get_ordinary_masks(pipe, fitted):
    methods, calibration = fitted
    prompts = [f"a blue star {number}" for number in range(40)]
    found = list(
        localize(
            pipe,
            prompts,
            range(40),
            SAMPLING,
            methods[:1],
            calibration=calibration,
            rate=0.05,
            batch_size=40,
            smooth=0.5,
        )
    )
    masks = [each.masks["score-difference"] for each in found]
    assert all(0 < mask.p_value <= 1 and 0 < mask.mean_p_value <= 1 for mask in masks)
    assert sum(mask.fraction.item() for mask in masks) / 40 < 0.25
    heat = torch.stack([each.maps["score-difference"] for each in found])
    expected = calibration.references["score-difference"].mask(heat, rate=0.05, smooth=0.5)
    assert torch.equal(torch.stack([mask.pixels for mask in masks]), expected.pixels)
    assert torch.equal(torch.stack([mask.mean_p_value for mask in masks]), expected.mean_p_value)


def test_a_calibration_that_does_not_fit_is_refused_before_anything_is_generated(pipe, fitted, monkeypatch):
    methods, calibration = fitted
    monkeypatch.setattr(methods_module, "generate", None)
    with pytest.raises(UsageError, match="made with another setup"):
        localize(pipe, ["a red circle"], [0], Sampling(4, 2.0), methods[:1], calibration=calibration)
    with pytest.raises(UsageError, match="got the pixel rate 1e-05"):
        localize(pipe, ["a red circle"], [0], SAMPLING, methods[:1], calibration=calibration, rate=1e-5)
    with pytest.raises(UsageError, match="needs a less-trained checkpoint"):
        localize(pipe, ["a red circle"], [0], SAMPLING, methods)


def test_another_setup_is_refused(pipe, fitted, other, tmp_path):
    methods, calibration = fitted
    with pytest.raises(UsageError, match="steps is 4, calibrated 3"):
        calibration.check(pipe, Sampling(4, 2.0), methods, other)
    with pytest.raises(UsageError, match="it knows no curvature, only score-difference"):
        calibration.check(pipe, SAMPLING, [method("curvature")])
    with pytest.raises(UsageError, match="score-difference is evaluation 0, against run, calibrated evaluation -1"):
        calibration.check(pipe, SAMPLING, [method("score-difference", step=0)])
    with pytest.raises(UsageError, match="against empty, calibrated"):
        calibration.check(pipe, SAMPLING, [method("score-difference", empty=True)])
    with pytest.raises(UsageError, match=r"against checkpoint [0-9a-f]{12}, calibrated .* against checkpoint"):
        calibration.check(pipe, SAMPLING, methods[1:], pipe)
    save_file({"a": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(UsageError, match="is not a map calibration"):
        MapCalibration.load(tmp_path / "x")
    with pytest.raises(UsageError, match="got 3 reference prompts"):
        MapCalibration.fit(pipe, PROMPTS[:3], SAMPLING, methods)


def test_maps_do_not_depend_on_the_batch_size():
    pipe = stable_diffusion().to(torch.float64)
    made = [method("curvature-difference", estimator=DiagonalEstimator(group=8, probes=16)), method("score-difference")]
    prompts, seeds = ["a red circle", "a blue star", "a red circle"], [0, 1, 2]
    together = list(localize(pipe, prompts, seeds, SAMPLING, made))
    alone = list(localize(pipe, prompts, seeds, SAMPLING, made, batch_size=1))
    for first, second in zip(together, alone, strict=True):
        for name, heat in first.maps.items():
            torch.testing.assert_close(heat, second.maps[name], rtol=1e-6, atol=1e-8)
        for name, error in first.errors.items():
            torch.testing.assert_close(error, second.errors[name], rtol=1e-6, atol=1e-8)


def test_the_error_of_a_map_is_what_other_probes_change(pipe):
    (batch,) = generate(pipe, PROMPTS[:8], range(8), SAMPLING, keep=(-1,))
    watched = Watched(batch.trajectory, adapter_for(pipe).denoiser(), seeds=batch.seeds)
    first, second = (
        Curvature(-1, DiagonalEstimator(probes=64, group=8, seed=seed)).estimate(watched) for seed in (0, 1)
    )
    apart = (first.value - second.value).square().mean()
    told = (first.error.square() + second.error.square()).mean()
    assert (apart / told).sqrt().item() == pytest.approx(1.0, abs=0.2)


def test_a_watched_generation_can_be_mapped_by_hand(pipe):
    (batch,) = generate(pipe, ["a red circle"], [7], SAMPLING, keep=(-1,))
    estimator = DiagonalEstimator(probes=16, group=8)
    watched = Watched(batch.trajectory, adapter_for(pipe).denoiser(), seeds=[7])
    expected = CurvatureDifference(-1, estimator).estimate(watched)
    made = [method("curvature-difference", step=-1, estimator=estimator)]
    found = next(localize(pipe, ["a red circle"], [7], SAMPLING, made))
    torch.testing.assert_close(found.maps["curvature-difference"], expected.value[0].relu())
    torch.testing.assert_close(found.errors["curvature-difference"], expected.error[0])


def test_methods_may_be_given_by_name(pipe):
    named = next(localize(pipe, ["a red circle"], [0], SAMPLING, ["score-difference"]))
    made = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference")]))
    assert torch.equal(named.maps["score-difference"], made.maps["score-difference"])
    with pytest.raises(UsageError, match="unknown map 'tarot'"):
        localize(pipe, ["a red circle"], [0], SAMPLING, ["tarot"])
