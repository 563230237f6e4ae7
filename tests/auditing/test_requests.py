"""An audit of a model that is loaded with options: they reach the plan, the workers and the run directory."""

import pickle

import pytest
import torch

from cryptomnesia import Store, UsageError, audit, load_pipeline
from cryptomnesia.auditing.planning import plan
from cryptomnesia.auditing.requests import Request
from cryptomnesia.testing.miniatures import stable_diffusion
from lora_files import write_lora
from tiny_audit import settings


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder, stable_diffusion(), "to_q", seed=1)
    return folder


def request_of(given):
    given = dict(given)
    return Request.of(given.pop("model"), given.pop("prompts"), given)


def test_how_a_model_is_loaded_reaches_the_plan_of_every_worker(audit_folder, lora):
    given = settings(audit_folder, lora=[f"{lora}:0.5"], device="cpu", option=["eta=0.5"])
    planned = plan(pickle.loads(pickle.dumps(request_of(given))))
    expected = load_pipeline(audit_folder / "tiny", device="cpu", lora=(lora, 0.5))
    assert planned.setup.pipe.get_active_adapters() == ["lora_0"]
    ours, theirs = planned.setup.pipe.unet.state_dict(), expected.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert planned.call == {"eta": 0.5}
    assert planned.about["settings"]["lora"] == [f"{lora}:0.5"]
    # a run may go on on another device, and options are arguments of the call
    assert not {"device", "option"} & planned.about["settings"].keys()
    assert planned.about["call"] == {"eta": 0.5}


def test_a_run_with_a_lora_goes_on_with_it_only(audit_folder, lora, tmp_path):
    def about(**more):
        return plan(request_of(settings(audit_folder, **more))).about

    Store.create(tmp_path, about(lora=[str(lora)], option=["eta=0.5"]))
    Store.create(tmp_path, about(lora=[str(lora)], eta=0.5, device="cpu"))
    with pytest.raises(UsageError, match=r"scale is 0\.5, there 1\.0; lora is .*:0\.5'\], there"):
        Store.create(tmp_path, about(lora=[f"{lora}:0.5"], eta=0.5))
    with pytest.raises(UsageError, match="got eta both as an option and as an argument; give it once"):
        about(option=["eta=0.5"], eta=0.5)


def test_a_loaded_pipeline_takes_no_options_of_loading(tmp_path):
    with pytest.raises(UsageError, match="got lora and variant with a loaded pipeline, which has its own"):
        audit(stable_diffusion(), ["a"], tmp_path / "run", lora=["a"], variant="fp16")


def test_long_prompts_are_marked_or_left_out(audit_folder, tmp_path):
    long = "red " * 40
    given = settings(audit_folder, prompts=iter(["a blue star", long]), localize=False, mitigate=False)
    store = audit(**given, output=tmp_path / "run")
    assert [row["truncated"] for row in store.rows("images")] == [False, True]
    skipped = plan(request_of({**given, "prompts": ["a blue star", long], "long": "skip"}))
    assert skipped.prompts == ["a blue star"]
    with pytest.raises(UsageError, match="has 42 tokens, the model takes 32; shorten it"):
        plan(request_of({**given, "prompts": ["a blue star", long], "long": "error"}))


def test_prompts_may_come_from_a_column(audit_folder, tmp_path):
    path = tmp_path / "prompts.tsv"
    path.write_text("description\tid\na blue star\t1\n")
    given = settings(audit_folder, prompts=path, column="description")
    assert request_of(given).texts() == ["a blue star"]
