"""An audit of every family, with no further option than the file of references."""

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline

from cryptomnesia import Calibration, UsageError, audit
from cryptomnesia.auditing.outcome import outcome
from cryptomnesia.auditing.scoring import score
from cryptomnesia.pipelines.loading import set_call_defaults
from cryptomnesia.report.html import html
from cryptomnesia.testing.miniatures import (
    PROMPTS,
    flux,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from tiny_audit import settings


def small_flux():
    """A pipeline with short captions and small pictures by default, so that the test is quick."""
    pipe = flux()
    set_call_defaults(pipe, max_sequence_length=16, height=16, width=16)
    return pipe


FAMILIES = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": small_flux,
    "ddim": lambda: unconditional(DDIMPipeline),
    "ddpm": lambda: unconditional(DDPMPipeline),
}

METHODS = {
    "sd": ("early-detail", "settled-detail", "partial-captions"),
    "sdxl": ("early-detail", "settled-detail", "partial-captions"),
    "sd3": ("early-detail", "settled-detail", "partial-captions"),
    "flux": ("early-detail", "settled-detail-empty", "partial-captions"),
    "ddim": ("stability-or-drift", "curvature", "stability-published"),
    "ddpm": ("stability-or-drift", "curvature", "stability-published"),
}


def test_too_few_references_for_a_single_find_among_many_are_named(audit_folder, tmp_path, caplog):
    """68 scores in the null, three prompts with two images each: the smallest p-value is 1/69."""
    given = settings(audit_folder, images_per_prompt=2, fdr=0.05)
    store = audit(**given, output=tmp_path / "run")
    (message,) = [record.getMessage() for record in caplog.records if "false-discovery" in record.getMessage()]
    assert message == (
        "at a false-discovery rate of 0.05 prompts are suspected only if 2 of 3 or more have the smallest p-value; to "
        "find a single one, calibrate on 178 prompts"
    )
    found = outcome(store)
    assert (found.fdr, found.settings.fdr) == (0.05, 0.05)
    assert found.fpr <= 0.025
    # the same command judges the run as before, whatever was done to it in between
    before = store.rows("scores")
    score(store, fpr=0.9)
    assert outcome(store).fdr == 0.05
    assert store.rows("scores") != before
    audit(**given, output=tmp_path / "run")
    assert store.rows("scores") == before
    with pytest.raises(UsageError, match=r"smaller p-values than 68 scores in the null can give, even if all 3"):
        audit(**(given | {"fdr": 0.01, "images_per_prompt": 4}), output=tmp_path / "other")


@pytest.fixture
def references(tmp_path):
    (tmp_path / "references.txt").write_text("\n".join(PROMPTS))
    return tmp_path / "references.txt"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_audited_with_the_defaults_that_suit_it(family, references, tmp_path):
    store = audit(
        FAMILIES[family](),
        ["a blue star", "a green ring"],
        tmp_path / "run",
        references=references,
        images_per_prompt=2,
        steps=4,
        fpr=0.5,
        batch_size=34,
    )
    assert tuple(store.about["methods"].values()) == METHODS[family]
    rows = store.rows("images")
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    assert all((row["map"] is not None) == row["flagged"] for row in rows)
    assert all((row["action"] != "none") == row["flagged"] for row in rows)
    assert all(row["level"] != "unknown" for row in store.rows("scores"))
    found = outcome(store)
    assert (found.detector, found.missing, found.unmapped) == (METHODS[family][0], {}, 0)
    assert "Distribution" in html(found, store)


def test_a_call_without_guidance_is_audited_by_methods_that_need_none(references, tmp_path):
    given = {"references": references, "steps": 4, "guidance": 1.0, "fpr": 0.5, "batch_size": 34}
    store = audit(stable_diffusion(), ["a blue star", "a green ring"], tmp_path / "run", **given)
    assert tuple(store.about["methods"].values()) == ("early-detail", "settled-detail-empty", "partial-captions")
    assert "score:guidance-mean" not in store.rows("scores")[0]
    assert "score:stability" in store.rows("scores")[0]


def test_steps_and_guidance_that_are_not_given_are_those_of_the_call(references, tmp_path, monkeypatch):
    pipe = stable_diffusion()
    set_call_defaults(pipe, num_inference_steps=4, guidance_scale=1.5)
    given = {"references": references, "fpr": 0.5, "batch_size": 34, "localize": False, "mitigate": False}
    store = audit(pipe, ["a blue star"], tmp_path / "run", **given)
    assert (store.about["settings"]["steps"], store.about["settings"]["guidance"]) == (None, None)
    assert (store.about["fingerprint"]["steps"], store.about["fingerprint"]["guidance"]) == (4, 1.5)
    assert len(store.rows("images")[0]["norm:z"]) == 4


def test_a_part_that_no_default_fits_is_left_out_with_a_word(references, tmp_path, caplog):
    # there is no caption to rephrase, and a solver that clips cannot be steered
    pipe = unconditional(DDIMPipeline)
    pipe.scheduler.register_to_config(clip_sample=True)
    given = {"references": references, "steps": 4, "fpr": 0.5, "batch_size": 34, "localize": False}
    store = audit(pipe, ["anything"], tmp_path / "run", **given)
    assert store.about["methods"]["mitigation"] is None
    (record,) = (record for record in caplog.records if record.name == "cryptomnesia")
    assert record.getMessage().startswith(
        "the audit goes on without it: none of the mitigations partial-captions, rephrasing"
    )
    with pytest.raises(UsageError, match="cannot steer a DDIMScheduler with clip_sample=True"):
        audit(pipe, ["anything"], tmp_path / "other", mitigation="stability-published", **given)


def test_a_run_that_is_too_short_is_refused_where_the_solver_shifts_its_timesteps(references, tmp_path):
    pipe = stable_diffusion_3()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_dynamic_shifting=True)
    given = {"references": references, "steps": 1, "fpr": 0.5, "localize": False, "detector": "drift"}
    with pytest.raises(UsageError, match="drift needs 2 evaluations before there is a score, and a run of 1 steps"):
        audit(pipe, ["a blue star"], tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_arguments_of_the_pipelines_call_hold_for_references_and_images(references, tmp_path):
    given = {"references": references, "fpr": 0.5, "batch_size": 34, "localize": False, "mitigate": False}
    call = {"num_inference_steps": 4, "guidance_scale": 2.0, "eta": 0.5, "guidance_rescale": None}
    store = audit(stable_diffusion(), ["a blue star"], tmp_path / "run", **given, **call)
    assert (store.about["settings"]["steps"], store.about["settings"]["guidance"]) == (4, 2.0)
    assert store.about["call"] == {"eta": 0.5}
    calibration = Calibration.load(store.folder / "calibration.safetensors")
    for print_of in (store.about["fingerprint"], calibration.fingerprint):
        assert (print_of["steps"], print_of["guidance"], print_of["options"]) == (4, 2.0, {"eta": 0.5})
    # the same settings under their other names are the same run
    audit(stable_diffusion(), ["a blue star"], tmp_path / "run", **given, steps=4, guidance=2.0, eta=0.5)
    with pytest.raises(UsageError, match=r"another run: eta is 0\.25, there 0\.5; give another folder"):
        audit(stable_diffusion(), ["a blue star"], tmp_path / "run", **given, **{**call, "eta": 0.25})
    plain = audit(stable_diffusion(), ["a blue star"], tmp_path / "plain", **given, **{**call, "eta": None})
    assert plain.about["call"] == {}
    assert plain.rows("images")[0]["norm:z"] != store.rows("images")[0]["norm:z"]
    assert plain.rows("references")[0]["norm:z"] != store.rows("references")[0]["norm:z"]


def test_names_that_neither_an_audit_nor_the_pipeline_knows_are_refused_with_both_lists(references, tmp_path):
    def refused(**more):
        with pytest.raises(UsageError) as error:
            audit(stable_diffusion(), ["a blue star"], tmp_path / "run", references=references, fpr=0.5, **more)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    message = refused(guidance_rescal=0.5, true_cfg_scale=2.0)
    assert message.startswith(
        "got the unknown setting guidance_rescal (did you mean guidance_rescale?), true_cfg_scale"
    )
    assert "known are the settings steps, guidance, " in message
    assert "arguments of a StableDiffusionPipeline's call clip_skip, " in message
    assert refused(steps=4, num_inference_steps=4).startswith("got both steps and num_inference_steps, which are the")
    assert "which the library gives for every image" in refused(output_type="np")


def test_several_workers_share_arguments_of_the_call_that_are_json_values(audit_folder, tmp_path):
    given = settings(audit_folder, localize=False, mitigate=False, eta=0.5)
    store = audit(**given, output=tmp_path / "run", workers=2)
    assert store.about["fingerprint"]["options"] == {"eta": 0.5}
    with pytest.raises(UsageError, match="got cross_attention_kwargs with a value that is no JSON value"):
        audit(**given, cross_attention_kwargs={"scale": torch.ones(1)}, output=tmp_path / "other", workers=2)
    assert not (tmp_path / "other").exists()
