import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cryptomnesia import Calibration, Sampling, UsageError
from cryptomnesia.detectors import DETECTORS, SIGNALS
from cryptomnesia.pipelines.fingerprint import fingerprint, weights_digest
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, stable_diffusion


def test_a_third_gives_the_regions_and_the_rest_the_null(calibration):
    assert calibration.prompts == 102
    assert calibration.reference.delta.mean.shape == (3,)
    assert set(calibration.null) == DETECTORS.keys() - SIGNALS.keys()
    assert all(scores.shape == (68, 3) for scores in calibration.null.values())


def test_p_values_are_conformal(calibration):
    simple = replace(calibration, null={"stability": torch.tensor([1.0, 2.0, 3.0, 3.0])[:, None]})
    scores = torch.tensor([0.0, 1.0, 2.5, 3.0, 4.0, torch.nan])
    torch.testing.assert_close(
        simple.p_value("stability", scores),
        torch.tensor([1.0, 1.0, 0.6, 0.6, 0.2, torch.nan], dtype=torch.float64),
        equal_nan=True,
    )


def test_the_threshold_is_where_the_p_value_reaches_the_rate(calibration):
    null = torch.rand(99, generator=torch.Generator().manual_seed(0))
    simple = replace(calibration, null={"stability": null[:, None]})
    for rate in (0.01, 0.05, 0.1, 0.5):
        threshold = torch.tensor([simple.threshold("stability", rate)])
        below = torch.nextafter(threshold, torch.tensor(0.0))
        assert simple.p_value("stability", threshold).item() <= rate
        assert simple.p_value("stability", below).item() > rate


def test_p_values_hold_their_promise(calibration):
    generator = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(2000):
        scores = torch.randn(50, generator=generator)
        p = replace(calibration, null={"s": scores[1:, None]}).p_value("s", scores[:1])
        hits.append(p.item() <= 0.1)
    assert abs(sum(hits) / 2000 - 0.1) < 0.02


def test_a_running_score_is_judged_against_the_null_of_the_same_evaluation(calibration):
    simple = replace(calibration, null={"stability": torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])})
    score = torch.tensor([4.0])
    assert simple.p_value("stability", score, 0).item() == 0.25
    assert simple.p_value("stability", score).item() == 1.0
    assert simple.threshold("stability", 0.25, 0) == pytest.approx(3.0)
    with pytest.raises(UsageError, match=r"got evaluation 2 of a run of 2; give one in 0 … 1"):
        simple.p_value("stability", score, 2)


def test_a_rate_needs_enough_references(calibration):
    with pytest.raises(UsageError, match=r"rate of 0\.01 needs at least 99 null references, the calibration has 68"):
        calibration.threshold("stability", 0.01)
    assert calibration.threshold("stability", 1 / 69) > 0


def test_saving_keeps_everything(calibration, tmp_path):
    path = tmp_path / "calibration.safetensors"
    calibration.save(path)
    again = Calibration.load(path)
    assert again.fingerprint == calibration.fingerprint
    assert (again.prompts, again.prompts_sha256) == (calibration.prompts, calibration.prompts_sha256)
    for name, scores in calibration.null.items():
        assert torch.equal(again.null[name], scores)
    assert torch.equal(again.reference.x0.std, calibration.reference.x0.std)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_path_may_be_a_string(calibration, tmp_path):
    path = f"{tmp_path}/calibration.safetensors"
    calibration.save(path)
    assert Calibration.load(path).prompts_sha256 == calibration.prompts_sha256


def test_a_place_that_cannot_be_written_to_is_explained(calibration, tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*calibration\.safetensors .*; give another place"):
        calibration.save(tmp_path / "missing" / "calibration.safetensors")
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        calibration.save(tmp_path)
    with pytest.raises(UsageError, match="is not a calibration"):
        Calibration.load(tmp_path)


def test_no_picture_is_decoded(calibration, monkeypatch):
    pipe = stable_diffusion()
    monkeypatch.setattr(pipe.vae, "decode", None)
    again = Calibration.fit(pipe, PROMPTS, SAMPLING, batch_size=34)
    assert torch.equal(again.reference.delta.mean, calibration.reference.delta.mean)
    assert torch.equal(again.null["stability"], calibration.null["stability"])


def test_the_same_setup_is_accepted(calibration, pipe):
    assert calibration.check(pipe, SAMPLING) is None  # raises otherwise
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
    with pytest.raises(UsageError, match=named):
        calibration.check(pipe, changed)


def test_another_model_or_solver_is_refused_by_name(calibration):
    other = stable_diffusion()
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    with pytest.raises(UsageError, match=r"weights\.unet is"):
        calibration.check(other, SAMPLING)
    other = stable_diffusion()
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, timestep_spacing="trailing")
    with pytest.raises(UsageError, match=r"scheduler_config\.timestep_spacing is trailing, calibrated leading"):
        calibration.check(other, SAMPLING)


def test_the_digest_survives_half_precision(pipe):
    digest = weights_digest(pipe)
    assert weights_digest(stable_diffusion().to(torch.float16)) == digest
    assert fingerprint(pipe, SAMPLING)["dtype"] == "float32"


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
    save_file(
        {"a": torch.zeros(1)},
        path,
        metadata={"about": json.dumps({"kind": "calibration", "format": 99, "content": ""})},
    )
    with pytest.raises(UsageError, match="format 99, this version reads 1"):
        Calibration.load(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"about": json.dumps({"kind": "map", "format": 1, "content": ""})})
    with pytest.raises(UsageError, match="is a map, not a calibration"):
        Calibration.load(path)


def test_an_edited_file_is_refused(calibration, tmp_path):
    path = tmp_path / "calibration.safetensors"
    calibration.save(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()["about"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    save_file({**tensors, "null/stability": tensors["null/stability"] * 2}, path, metadata={"about": about})
    with pytest.raises(UsageError, match="damaged or edited"):
        Calibration.load(path)
    save_file(tensors, path, metadata={"about": about.replace('"prompts": 102', '"prompts": 1020')})
    with pytest.raises(UsageError, match="damaged or edited"):
        Calibration.load(path)


def test_too_few_references_are_refused(pipe):
    with pytest.raises(UsageError, match="got 3 reference prompts; give at least 100"):
        Calibration.fit(pipe, PROMPTS[:3], SAMPLING)
