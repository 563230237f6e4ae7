import json
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cryptomnesia import Calibration, Detector, Drift, GuidanceMagnitude, Sampling, Stability, UsageError, calibrate
from cryptomnesia.calibration.captions import Captions
from cryptomnesia.calibration.judging import Judge
from cryptomnesia.calibration.stored import FILE, FORMAT, calibration_of, norm_in_words, resolved, split
from cryptomnesia.detectors import MapMean, detector, free_detectors
from cryptomnesia.localizers import Collapse, Curvature
from cryptomnesia.pipelines.fingerprint import fingerprint
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import CALL, PROMPTS, SAMPLING, stable_diffusion
from runs import calibration_of_runs, trajectory


@dataclass(frozen=True)
class Given(Detector):
    """The norm z, as it is."""

    name: str = "given"
    reads: frozenset[str] = frozenset({"z"})

    def running(self, runs, references):
        return runs.norms["z"]


def with_null(*rows):
    """A calibration whose null of `Given` has these scores; the references before them are put where `split` looks."""
    null = torch.tensor(rows)
    count = next(count for count in range(2, 1000) if len(split(count)[1]) == len(null))
    values = torch.zeros(count, null.shape[1])
    values[split(count)[1]] = null
    return calibration_of_runs(trajectory(values))


def test_a_third_shows_what_is_usual_and_the_rest_is_the_null(calibration, pipe):
    assert len(calibration) == 102
    assert (len(calibration.references), len(calibration.others)) == (34, 68)
    first, second = split(102)
    assert sorted(first + second) == [*range(102)]
    assert split(102) == (first, second)
    assert calibration.references.norms["delta"].shape == (34, 3)
    free = free_detectors(Setup(pipe, SAMPLING))
    assert len(free) == 10
    for found in free:
        assert calibration.null(found).shape == (68, 3)
    assert calibration.lowest_fpr == 1 / 69
    assert calibration.evaluations == 3
    assert calibration.sampling == SAMPLING


def test_p_values_are_conformal():
    simple = with_null([1.0], [2.0], [3.0], [3.0])
    scores = torch.tensor([0.0, 1.0, 2.5, 3.0, 4.0, torch.nan])
    torch.testing.assert_close(
        simple.p_value(Given(), scores),
        torch.tensor([1.0, 1.0, 0.6, 0.6, 0.2, torch.nan], dtype=torch.float64),
        equal_nan=True,
    )


def test_the_threshold_is_where_the_p_value_reaches_the_rate():
    null = torch.rand(99, 1, generator=torch.Generator().manual_seed(0))
    simple = with_null(*null.tolist())
    for rate in (0.01, 0.05, 0.1, 0.5):
        threshold = torch.tensor([simple.threshold(Given(), rate)])
        below = torch.nextafter(threshold, torch.tensor(0.0))
        assert simple.p_value(Given(), threshold).item() <= rate
        assert simple.p_value(Given(), below).item() > rate


def test_p_values_hold_their_promise():
    generator = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(2000):
        scores = torch.randn(50, 1, generator=generator)
        hits.append(with_null(*scores[1:].tolist()).p_value(Given(), scores[0]).item() <= 0.1)
    assert abs(sum(hits) / 2000 - 0.1) < 0.02


def test_a_running_score_is_judged_against_the_null_of_the_same_evaluation():
    simple = with_null([1.0, 5.0], [2.0, 5.0], [3.0, 5.0])
    score = torch.tensor([4.0])
    assert simple.p_value(Given(), score, 0).item() == 0.25
    assert simple.p_value(Given(), score).item() == 1.0
    assert simple.threshold(Given(), 0.25, 0) == pytest.approx(3.0)
    with pytest.raises(UsageError, match=r"got evaluation 2 of a run of 2; give one in 0 … 1"):
        simple.p_value(Given(), score, 2)


def test_a_rate_needs_enough_references(calibration):
    with pytest.raises(UsageError, match=r"rate of 0\.01 needs at least 99 null references, the calibration has 68"):
        calibration.threshold(Stability(), 0.01)
    assert calibration.threshold(Stability(), 1 / 69) > 0


def test_a_copy_with_other_runs_has_other_nulls(calibration):
    null = calibration.null(Stability())
    norms = {**calibration.runs.norms, "delta": calibration.runs.norms["delta"].flip(0)}
    other = replace(calibration, runs=replace(calibration.runs, norms=norms))
    assert not torch.equal(other.null(Stability()), null)
    assert torch.equal(calibration.null(Stability()), null)


@pytest.fixture(scope="module")
def mapped():
    """A calibration with signals and maps."""
    return calibrate(
        stable_diffusion(), PROMPTS, detectors=["collapse"], localizers=["curvature"], batch_size=51, **CALL
    )


def test_saving_keeps_everything(mapped, pipe, tmp_path):
    path = tmp_path / "calibration.safetensors"
    mapped.save(path)
    again = Calibration.load(path)
    assert again.fingerprint == mapped.fingerprint
    assert again.prompts_sha256 == mapped.prompts_sha256
    assert again.left_out == ()
    for part in ("texts", "lengths", "words"):
        assert torch.equal(getattr(again.captions, part), getattr(mapped.captions, part))
    assert again.captions.among(Captions.of(PROMPTS)).all()
    assert again.made_by == mapped.made_by
    assert again.runs.timesteps == mapped.runs.timesteps
    assert again.runs.complete
    assert len(again) == len(mapped) == 102
    for kind in (lambda found: found.runs.norms, lambda found: found.runs.signals, lambda found: found.maps):
        assert kind(again).keys() == kind(mapped).keys()
        for name, values in kind(mapped).items():
            assert torch.equal(kind(again)[name].nan_to_num(), values.nan_to_num())
            assert kind(again)[name].dtype == values.dtype
    assert mapped.runs.signals.keys() == {"collapse"}
    assert mapped.maps.keys() == {"curvature"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_nulls_and_masks_computed_on_load_equal_those_before_saving(mapped, pipe, tmp_path):
    path = tmp_path / "calibration.safetensors"
    mapped.save(path)
    again = Calibration.load(path)
    for found in [*free_detectors(Setup(pipe, SAMPLING)), detector("collapse")]:
        assert torch.equal(again.null(found), mapped.null(found))
        assert again.threshold(found, 0.1) == mapped.threshold(found, 0.1)
    first, second = (found.map_reference(Curvature()) for found in (again, mapped))
    assert first.threshold(0.1) == second.threshold(0.1)
    assert torch.equal(first.null, second.null)
    again.check(Setup(pipe, SAMPLING))


def test_a_path_may_be_a_string(calibration, tmp_path):
    path = f"{tmp_path}/calibration.safetensors"
    calibration.save(path)
    assert Calibration.load(path).prompts_sha256 == calibration.prompts_sha256


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_file_has_the_permissions_that_the_umask_gives(calibration, tmp_path, umask):
    path = tmp_path / "calibration.safetensors"
    before = os.umask(umask)
    try:
        calibration.save(path)
        calibration.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_place_that_cannot_be_written_to_is_explained(calibration, tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*calibration\.safetensors .*; give another place"):
        calibration.save(tmp_path / "missing" / "calibration.safetensors")
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        calibration.save(tmp_path)
    with pytest.raises(UsageError, match="is a folder; give the file of a calibration"):
        Calibration.load(tmp_path)


def test_the_same_set_up_is_accepted(calibration, pipe):
    assert calibration.check(Setup(pipe, SAMPLING)) is None  # raises otherwise
    assert calibration.fingerprint == fingerprint(pipe, SAMPLING)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (Sampling(steps=4, guidance=2.0), "steps is 4, calibrated 3"),
        (Sampling(steps=3, guidance=2.5), r"guidance is 2.5, calibrated 2.0"),
        (Sampling(steps=3, guidance=2.0, height=32), "height is 32, calibrated None"),
    ],
)
def test_another_setting_is_refused_by_name(calibration, pipe, changed, named):
    with pytest.raises(UsageError, match=named + r"; use that set-up, or .* with `cryptomnesia calibrate`"):
        calibration.check(Setup(pipe, changed))


def test_another_model_or_solver_is_refused_by_name(calibration):
    other = stable_diffusion()
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        calibration.check(Setup(other, SAMPLING))
    other = stable_diffusion()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, timestep_spacing="trailing")
    with pytest.raises(UsageError, match=r"scheduler_config\.timestep_spacing is trailing, calibrated leading"):
        calibration.check(Setup(other, SAMPLING))


def written(path: Path, about: dict[str, Any]) -> Path:
    save_file({"a": torch.zeros(1)}, path, metadata={"about": json.dumps({"content": "", **about})})
    return path


def test_unusable_files_are_explained(tmp_path):
    path = tmp_path / "calibration.safetensors"
    with pytest.raises(UsageError, match="no calibration file"):
        Calibration.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="is not a calibration"):
        Calibration.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="is not a calibration"):
        Calibration.load(path)
    with pytest.raises(UsageError, match=f"format 99, this version reads {FORMAT}"):
        Calibration.load(written(path, {"kind": "calibration", "format": 99}))
    with pytest.raises(UsageError, match="is a map, not a calibration"):
        Calibration.load(written(path, {"kind": "map", "format": 1}))


@pytest.mark.parametrize(("kind", "format"), [("calibration", 1), ("calibration", 2), ("map calibration", 1)])
def test_files_of_older_versions_are_refused_with_the_command_that_makes_a_new_one(kind, format, tmp_path):
    path = written(tmp_path / "old.safetensors", {"kind": kind, "format": format})
    with pytest.raises(UsageError, match=rf"{re.escape(str(path))}.*; make one with `cryptomnesia calibrate`$"):
        Calibration.load(path)


def test_an_edited_file_is_refused(calibration, tmp_path):
    path = tmp_path / "calibration.safetensors"
    calibration.save(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()["about"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    save_file({**tensors, "norm/delta": tensors["norm/delta"] * 2}, path, metadata={"about": about})
    with pytest.raises(UsageError, match="damaged or edited"):
        Calibration.load(path)
    assert '"steps": 3' in about
    save_file(tensors, path, metadata={"about": about.replace('"steps": 3', '"steps": 30')})
    with pytest.raises(UsageError, match="damaged or edited"):
        Calibration.load(path)
    save_file(tensors, path, metadata={"about": about})
    assert len(Calibration.load(path)) == 102


def test_a_detector_that_reads_stored_norms_works_with_an_older_file(calibration, pipe, tmp_path):
    path = tmp_path / "calibration.safetensors"
    calibration.save(path)

    class Later(Given):
        """Made after the file."""

        def running(self, runs, references):
            return runs.norms["z"] / references.norms["x0"].mean(dim=0)

    loaded = Calibration.load(path)
    later = Later("later", frozenset({"z", "x0"}))
    assert loaded.null(later).shape == (68, 3)
    (verdict,) = Judge(loaded, later, fpr=0.5)(loaded.others.rows([0]))
    assert verdict.detector == "later"
    assert 0 < verdict.p_value <= 1


@dataclass(frozen=True)
class Power:
    """A power of the norm of the latents: a norm of one's own."""

    exponent: float = 2.0
    name: str = "power"

    def __call__(self, step, latents, previous):
        return latents.flatten(1).norm(dim=1) ** self.exponent


@dataclass(frozen=True)
class ByPower(Detector):
    """A detector that reads a norm of its own."""

    exponent: float = 2.0
    name = "by-power"
    reads = frozenset({"power"})

    @property
    def norms(self):
        return (Power(self.exponent),)

    def running(self, runs, references):
        return runs.norms["power"]


def test_a_detector_that_reads_something_new_is_refused_with_the_cost(calibration):
    message = (
        r"has not recorded power, which by-power reads; generate the references again with `cryptomnesia calibrate "
        r"--detector by-power` \(102 images of 3 evaluations\), or use another detector"
    )
    with pytest.raises(UsageError, match=message):
        calibration.null(ByPower())
    with pytest.raises(
        UsageError, match=r"has not recorded collapse, which collapse reads; .* `.* --detector collapse`"
    ):
        Judge(calibration, MapMean(Collapse()))


def test_a_norm_of_ones_own_is_calibrated_stored_and_judged(pipe, tmp_path):
    path = tmp_path / "calibration.safetensors"
    calibrate(pipe, PROMPTS, detectors=[ByPower()], batch_size=51, **CALL).save(path)
    again = Calibration.load(path)
    torch.testing.assert_close(again.runs.norms["power"], again.runs.norms["z"] ** 2)
    assert again.null(ByPower()).shape == (68, 3)
    assert again.made_by == {"power": norm_in_words(Power())}
    assert "exponent=2.0" in again.made_by["power"]
    # the same name with another setting is another norm
    with pytest.raises(
        UsageError, match=r"power is .*exponent=3\.0.*, calibrated .*exponent=2\.0.*; use the same settings"
    ):
        again.null(ByPower(3.0))
    # detectors that read what is always recorded work as well
    assert again.null(Drift()).shape == (68, 3)


def test_a_norm_may_describe_itself():
    class Described(Power):
        def describe(self):
            return "the second power"

    assert norm_in_words(Described()) == "the second power"


def test_a_map_with_other_settings_is_refused(mapped):
    with pytest.raises(UsageError, match=r"collapse is .*, calibrated .*; use the same settings, or calibrate again"):
        mapped.null(MapMean(Collapse(step=0.5)))
    with pytest.raises(UsageError, match=r"map curvature is .*, calibrated .*; use the same settings"):
        mapped.map_reference(Curvature(step=0))
    with pytest.raises(UsageError, match=r"no maps of collapse \(it has: curvature\); .*`.* --localizer collapse`"):
        mapped.map_reference(Collapse())


def test_a_detector_whose_norm_was_never_measured_is_refused():
    runs = trajectory(torch.rand(102, 3), guidance=torch.full((102, 3), torch.nan))
    unguided = calibration_of_runs(runs)
    for over in ("first", "mean", "last"):
        with pytest.raises(
            UsageError, match=rf"have no guidance, which guidance-{over} reads; .* calibrate with guidance above 1"
        ):
            Judge(unguided, GuidanceMagnitude(over), 0.5)
    assert unguided.null(Stability()).shape == (68, 3)


def test_a_detector_that_gives_some_references_no_score_is_refused():
    values = torch.rand(102, 3)
    values[split(102)[1][0], 1] = torch.nan
    with pytest.raises(UsageError, match="given gives no score to 1 of the 68 reference runs"):
        calibration_of_runs(trajectory(values)).null(Given())


def test_the_file_beside_the_model_is_used_when_none_is_given(calibration, tmp_path):
    made = stable_diffusion()
    made.save_pretrained(tmp_path / "tiny")
    loaded = type(made).from_pretrained(tmp_path / "tiny")
    assert calibration_of(loaded) is None
    with pytest.raises(UsageError, match=f"no {FILE} beside the model; make one with `cryptomnesia calibrate`"):
        resolved(None, loaded)
    calibration.save(tmp_path / "tiny" / FILE)
    assert calibration_of(loaded) == tmp_path / "tiny" / FILE
    found = resolved(None, loaded)
    assert found.prompts_sha256 == calibration.prompts_sha256
    found.check(Setup(loaded, SAMPLING))
    assert resolved(calibration, loaded) is calibration
    assert resolved(str(tmp_path / "tiny" / FILE), loaded).fingerprint == calibration.fingerprint
    # a pipeline that was not loaded from anywhere has no such file
    assert calibration_of(made) is None
