import pytest
import torch
from safetensors.torch import save_file

from cryptomnesia import UsageError
from cryptomnesia.localizers import CurvatureDifference, DiagonalEstimator, Watched
from cryptomnesia.localizing import MapCalibration, check_methods, localize, method
from cryptomnesia.sampling import generate
from cryptomnesia.settings import Sampling
from tiny_pipelines import PROMPTS, SAMPLING, flux, stable_diffusion, unconditional

CHEAP = DiagonalEstimator(probes=16)


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
    # three evaluations of both branches to generate; then both branches at 2·16 probed points, the
    # conditional one at as many, and one look at the attention
    assert evaluated == [4] * 3 + [64, 32, 2]
    assert [(each.prompt, each.seed) for each in found] == [("a red circle", 3), ("a blue star", 4)]


def test_steps_are_counted_from_either_end(pipe):
    first = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=0)]))
    same = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=-3)]))
    assert torch.equal(first.maps["score-difference"], same.maps["score-difference"])
    with pytest.raises(UsageError, match="keep asks for step 3 of a run of 3"):
        next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("score-difference", step=3)]))


def test_methods_are_made_by_name():
    made = method("curvature-difference-checkpoint", step=-2, estimator=CHEAP)
    assert made.localizer == CurvatureDifference(-2, CHEAP)
    assert made.baseline == "checkpoint"
    assert method("score-difference", empty=True).baseline == "empty"
    for name in ("tarot", "bright-ending-checkpoint"):
        with pytest.raises(UsageError, match=rf"unknown map '{name}'; known are curvature-difference, .*-checkpoint"):
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
    found = localize(pipe, prompts, range(40), SAMPLING, methods[:1], batch_size=40)
    heat = torch.stack([each.maps["score-difference"] for each in found])
    mask = calibration.references["score-difference"].mask(heat, rate=0.05)
    assert (mask.p_value > 0).all()
    assert mask.pixels.float().mean() < 0.25


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


def test_maps_do_not_depend_on_the_batch_size(pipe):
    made = [method("curvature-difference", estimator=CHEAP), method("score-difference")]
    prompts, seeds = ["a red circle", "a blue star", "a green ring"], [0, 1, 2]
    together = list(localize(pipe, prompts, seeds, SAMPLING, made))
    alone = list(localize(pipe, prompts, seeds, SAMPLING, made, batch_size=1))
    for first, second in zip(together, alone, strict=True):
        for name, heat in first.maps.items():
            torch.testing.assert_close(heat, second.maps[name], rtol=2e-2, atol=5e-3)


def test_a_watched_generation_can_be_mapped_by_hand(pipe):
    (batch,) = generate(pipe, ["a red circle"], [0], SAMPLING, keep=(-1,))
    from cryptomnesia.adapters import adapter_for

    heat = CurvatureDifference(estimator=CHEAP).map(Watched(batch.trajectory, adapter_for(pipe).denoiser()))
    found = next(localize(pipe, ["a red circle"], [0], SAMPLING, [method("curvature-difference", estimator=CHEAP)]))
    torch.testing.assert_close(found.maps["curvature-difference"], heat[0], rtol=2e-2, atol=5e-3)
