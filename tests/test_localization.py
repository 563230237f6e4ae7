from dataclasses import dataclass

import pytest
import torch

from cryptomnesia import Located, Mask, UsageError, calibrate, load_pipeline, localize
from cryptomnesia.localizers import (
    Curvature,
    CurvatureDifference,
    DiagonalEstimator,
    Localizer,
    Map,
    ScoreDifference,
    Watched,
    configured,
    localizer,
)
from cryptomnesia.localizers.base import over_channels
from cryptomnesia.pipelines.contents import weights
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, stable_diffusion
from cryptomnesia.tracing.generation import generate
from family_cases import CASES
from mapped_runs import CHEAP


@pytest.fixture(scope="module")
def other():
    """A checkpoint of the same miniature that knows less."""
    return less_trained()


def less_trained():
    pipe = stable_diffusion()
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(0.9)
    return pipe


def test_all_maps_come_from_one_generation(pipe, other):
    names = ["curvature-difference", "score-difference", "score-difference-checkpoint", "curvature", "bright-ending"]
    methods = [configured(localizer(name), estimator=CHEAP) for name in names]
    evaluated = []
    hook = pipe.unet.register_forward_hook(lambda _module, _args, output: evaluated.append(len(output[0])))
    prompts = ["a red circle", "a blue star"]
    found = list(localize(pipe, prompts, seeds=[3, 4], localizers=methods, checkpoint=other, **CALL))
    hook.remove()
    (batch,) = generate(Setup.of(pipe, CALL), prompts, [3, 4], keep=(-1,))
    for located, image in zip(found, batch.images, strict=True):
        assert type(located) is Located
        assert torch.equal(located.image, image)
        assert list(located.maps) == names
        assert all(heat.shape == (8, 8) for heat in located.maps.values())
        assert list(located.errors) == ["curvature-difference", "curvature"]
        assert all(error.shape == (8, 8) for error in located.errors.values())
        assert located.masks == {}
    # three evaluations of both branches to generate; then both branches at one point, to see what it takes, and at
    # 2·16 probed ones, the conditional branch at as many, and one look at the attention
    assert evaluated == [4] * 3 + [2, 64, 1, 32, 2]
    assert [(located.prompt, located.seed) for located in found] == [("a red circle", 3), ("a blue star", 4)]


def test_a_checkpoint_is_evaluated_once_and_hashed_once(monkeypatch):
    pipe, other = stable_diffusion(), less_trained()
    names = ["curvature-difference-checkpoint", "score-difference-checkpoint", "guidance-map-checkpoint"]
    methods = [configured(localizer(name), step=-1, estimator=CHEAP) for name in names]
    hashed, evaluated = [], []
    read = weights._read
    monkeypatch.setattr(weights, "_read", lambda *given: hashed.append(1) or read(*given))
    other.unet.register_forward_hook(lambda _module, _args, output: evaluated.append(len(output[0])))
    found = list(
        localize(pipe, PROMPTS[:4], seeds=range(4), localizers=methods, checkpoint=other, batch_size=2, **CALL)
    )
    assert len(found) == 4
    # text encoder, UNet and autoencoder of either
    assert len(hashed) == 6
    # in either batch: both branches to see how it reads captions, the two images, one point, and 2·16 probed ones
    assert evaluated == [4, 2, 1, 32] * 2


def test_steps_are_counted_from_either_end(pipe):
    def located(step):
        return next(localize(pipe, "a red circle", localizers=ScoreDifference(step), **CALL))

    first = located(0)
    for same in (located(-3), located(0.3)):
        assert torch.equal(first.maps["score-difference"], same.maps["score-difference"])
    with pytest.raises(UsageError, match=r"got the evaluation 1\.5; give a whole number, or a share of the run"):
        localize(pipe, "a red circle", localizers=ScoreDifference(1.5), **CALL)
    with pytest.raises(UsageError, match="got the evaluation 3 of a run of 3; give one in 0 … 2"):
        localize(pipe, "a red circle", localizers=ScoreDifference(3), **CALL)


@pytest.fixture(scope="module")
def fitted(pipe, other):
    """A calibration with maps of two localizers."""
    names = ["score-difference", "score-difference-checkpoint"]
    return calibrate(pipe, PROMPTS, localizers=names, checkpoint=other, batch_size=34, **CALL)


def test_ordinary_pictures_get_ordinary_masks(pipe, fitted):
    prompts = [f"a blue star {number}" for number in range(40)]
    found = list(
        localize(
            pipe,
            prompts,
            seeds=range(40),
            localizers="score-difference",
            calibration=fitted,
            pixel_fpr=0.05,
            batch_size=40,
            smooth=0.5,
            **CALL,
        )
    )
    masks = [located.masks["score-difference"] for located in found]
    assert {type(mask) for mask in masks} == {Mask}
    assert all(0 < mask.p_value <= 1 and 0 < mask.mean_p_value <= 1 for mask in masks)
    assert sum(mask.fraction.item() for mask in masks) / 40 < 0.25
    heat = torch.stack([located.maps["score-difference"] for located in found])
    expected = fitted.map_reference(ScoreDifference()).mask(heat, fpr=0.05, smooth=0.5)
    assert torch.equal(torch.stack([mask.pixels for mask in masks]), expected.pixels)
    assert torch.equal(torch.stack([mask.mean_p_value for mask in masks]), expected.mean_p_value)


def untouchable():
    """A pipeline that must not be called."""
    pipe = stable_diffusion()
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("something was generated"))
    return pipe


def test_what_does_not_fit_is_refused_at_the_call(fitted):
    """`next` is never called: arguments are checked before the iterator is made."""
    pipe = untouchable()

    def refused(message, prompts="a red circle", **settings):
        with pytest.raises(UsageError, match=message):
            localize(pipe, prompts, **{**CALL, "localizers": "score-difference", **settings})

    refused("made with another set-up: steps is 4, calibrated 3", calibration=fitted, num_inference_steps=4)
    refused("got the pixel rate 1e-05 for", calibration=fitted, pixel_fpr=1e-5)
    refused("needs a less-trained checkpoint", localizers=["score-difference", "score-difference-checkpoint"])
    refused("the calibration has no maps of curvature", calibration=fitted, localizers="curvature")
    refused("unknown localizer 'tarot'", localizers=["tarot"])
    refused("got no map to compute", localizers=[])
    refused("score-difference needs the unconditional branch", guidance_scale=1.0)
    refused("takes no eta_scale; leave it out", eta_scale=1)
    refused("got generator, which the library gives for every image", generator=torch.Generator())
    refused("got height 32 and width None; give both or neither", height=32)
    refused("got 0 steps", num_inference_steps=0)
    refused("got no prompts", [])
    refused("got an empty prompt", ["a", " "])
    refused("got 2 seeds for 1 images", seeds=[0, 1])
    refused("got 0 images per prompt", images_per_prompt=0)
    refused("got a batch size of 0; give at least 1", batch_size=0)
    # also without a calibration, where there is no mask to make
    refused("got the pixel rate 5; give one between 0 and 1", pixel_fpr=5)
    refused(r"got pixel_fpr='0\.1'; give a number", pixel_fpr="0.1")
    refused("got smooth=None; give a number", smooth=None)
    refused(r"got smallest=2\.5; give a whole number", smallest=2.5)
    refused("got a blur of -1 pixels; give 0 or more", smooth=-1.0)
    refused("no calibration file", calibration="absent.safetensors")
    for settings in ({"pixel_fpr": 0.1}, {"smooth": 1.0}, {"smallest": 5}):
        refused(
            rf"got {next(iter(settings))} for masks, which need a calibration with these maps; make one with "
            r"`calibrate\(…, localizers=\['score-difference'\]\)`",
            **settings,
        )


def test_maps_do_not_depend_on_the_batch_size():
    pipe = stable_diffusion().to(torch.float64)
    estimator = DiagonalEstimator(group=8, probes=16)
    given = {"localizers": [CurvatureDifference(estimator=estimator), ScoreDifference()], "seeds": [0, 1, 2], **CALL}
    prompts = ["a red circle", "a blue star", "a red circle"]
    together = list(localize(pipe, prompts, **given))
    alone = list(localize(pipe, prompts, batch_size=1, **given))
    for first, second in zip(together, alone, strict=True):
        for name, heat in first.maps.items():
            torch.testing.assert_close(heat, second.maps[name], rtol=1e-6, atol=1e-8)
        for name, error in first.errors.items():
            torch.testing.assert_close(error, second.errors[name], rtol=1e-6, atol=1e-8)


def test_the_error_of_a_map_is_what_other_probes_change(pipe):
    setup = Setup.of(pipe, CALL)
    (batch,) = generate(setup, PROMPTS[:8], range(8), keep=(-1,))
    watched = Watched(batch.trajectory, setup.family.denoiser(), seeds=batch.seeds)
    first, second = (
        Curvature(-1, DiagonalEstimator(probes=64, group=8, seed=seed)).estimate(watched) for seed in (0, 1)
    )
    measured = (first.value - second.value).square().mean()
    estimated = (first.error.square() + second.error.square()).mean()
    assert (measured / estimated).sqrt().item() == pytest.approx(1.0, abs=0.2)


def test_a_watched_generation_can_be_mapped_by_hand(pipe):
    setup = Setup.of(pipe, CALL)
    (batch,) = generate(setup, ["a red circle"], [7], keep=(-1,))
    made = CurvatureDifference(-1, estimator=DiagonalEstimator(probes=16, group=8))
    expected = made.estimate(Watched(batch.trajectory, setup.family.denoiser(), seeds=[7]))
    found = next(localize(pipe, "a red circle", seeds=[7], localizers=[made], **CALL))
    torch.testing.assert_close(found.maps["curvature-difference"], expected.value[0].relu())
    torch.testing.assert_close(found.errors["curvature-difference"], expected.error[0])


@pytest.mark.parametrize("given", ["score-difference", ScoreDifference, ScoreDifference(), ["score-difference"]])
def test_localizers_are_given_by_name_class_or_object(pipe, given):
    found = next(localize(pipe, "a red circle", localizers=given, **CALL))
    expected = next(localize(pipe, "a red circle", localizers=(ScoreDifference(),), **CALL))
    assert torch.equal(found.maps["score-difference"], expected.maps["score-difference"])


@dataclass(frozen=True)
class Brightness(Localizer):
    """A third party's localizer: the square of the last estimate."""

    name = "brightness"

    def map(self, watched):
        step = watched.trajectory.step(-1)
        return Map(over_channels(step.cond.x0**2, step.cond_inputs))


def test_a_third_partys_localizer_makes_maps_and_masks(pipe):
    calibration = calibrate(pipe, PROMPTS, localizers=[Brightness()], batch_size=34, **CALL)
    found = next(localize(pipe, "a blue star", localizers=Brightness(), calibration=calibration, **CALL))
    assert found.maps["brightness"].shape == found.masks["brightness"].pixels.shape == (8, 8)


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_mapped_with_no_further_option(name):
    case = CASES[name]
    prompts = ["a red circle", "a blue star"]
    found = list(localize(case.make(), prompts, **case.call))
    assert [located.prompt for located in found] == prompts
    (map_name,) = found[0].maps
    for located in found:
        assert located.maps[map_name].isfinite().all()
        assert (located.maps[map_name] >= 0).all()
        assert located.image.shape == (3, *located.image.shape[1:])


def test_the_calibration_beside_the_model_makes_masks_if_it_fits(fitted, tmp_path, caplog):
    folder = tmp_path / "model"
    stable_diffusion().save_pretrained(folder)
    bare = load_pipeline(str(folder))
    assert next(localize(bare, "a red circle", localizers="score-difference", **CALL)).masks == {}
    fitted.save(folder / "calibration.safetensors")
    found = next(localize(bare, "a red circle", localizers="score-difference", **CALL))
    given = next(
        localize(
            bare,
            "a red circle",
            localizers="score-difference",
            calibration=folder / "calibration.safetensors",
            **CALL,
        )
    )
    assert torch.equal(found.masks["score-difference"].pixels, given.masks["score-difference"].pixels)
    assert caplog.messages == []
    # other maps and other settings are mapped all the same, and a warning says why there are no masks
    assert next(localize(bare, "a red circle", localizers="curvature", **CALL)).masks == {}
    other = {**CALL, "num_inference_steps": 2}
    assert next(localize(bare, "a red circle", localizers="score-difference", **other)).masks == {}
    assert [message.split(";")[0] for message in caplog.messages] == [
        "maps without masks: the calibration has no maps of curvature (it has: score-difference, "
        "score-difference-checkpoint)",
        "maps without masks: the calibration was made with another set-up: steps is 2, calibrated 3",
    ]
    with pytest.raises(UsageError, match="the calibration has no maps of curvature"):
        localize(bare, "a red circle", localizers="curvature", smallest=5, **CALL)


def test_an_image_whose_map_is_not_finite_does_not_end_the_rest():
    """The network breaks for one of three images, at points that only the map looks at."""
    pipe = stable_diffusion()
    made = Curvature(-1, CHEAP)
    call = {"localizers": made, "seeds": [0, 1, 2], **CALL}
    sound = list(localize(pipe, ["a red circle", "a blue star", "a red circle"], **call))
    star = pipe.encode_prompt("a blue star", "cpu", 1, False)[0]

    def spoil(module, args, kwargs, output):
        conditioning = kwargs["encoder_hidden_states"]
        probed = (conditioning == star).flatten(1).all(dim=1) & (len(conditioning) != 6)
        return (output[0].masked_fill(probed.view(-1, 1, 1, 1), torch.nan), *output[1:])

    hook = pipe.unet.register_forward_hook(spoil, with_kwargs=True)
    found = list(localize(pipe, ["a red circle", "a blue star", "a red circle"], **call))
    hook.remove()
    for number, (located, before) in enumerate(zip(found, sound, strict=True)):
        assert torch.equal(located.image, before.image)
        if number == 1:
            assert located.maps["curvature"].isnan().all()
        else:
            torch.testing.assert_close(located.maps["curvature"], before.maps["curvature"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_model_that_is_changed_meanwhile_gets_no_masks_of_the_old_calibration(fitted, drawn):
    name = "score-difference-checkpoint"
    call = {"localizers": name, "seeds": [0, 1], "batch_size": 1, **CALL}
    for changed, message in [(0, r"weights\.unet is"), (1, "map score-difference-checkpoint is")]:
        models = stable_diffusion(), less_trained()
        masked = localize(models[0], PROMPTS[:2], checkpoint=models[1], calibration=fitted, **call)
        bare = localize(models[0], PROMPTS[:2], checkpoint=models[1], **call)
        assert all(next(masked).masks for _ in range(drawn))
        with torch.no_grad():
            next(models[changed].unet.parameters()).mul_(1.5)
        with pytest.raises(UsageError, match=message):
            next(masked)
        # maps without masks rest on no calibration
        assert next(bare).maps[name].isfinite().all()
