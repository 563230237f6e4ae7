import pytest

from cryptomnesia.audit.run import audit
from tiny_audit import settings
from tiny_pipelines import stable_diffusion


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A miniature model, its references and some prompts."""
    folder = tmp_path_factory.mktemp("audit")
    stable_diffusion().save_pretrained(folder / "tiny")
    (folder / "references.txt").write_text("\n".join(f"a red circle {number}" for number in range(102)))
    (folder / "prompts.txt").write_text("a blue star\na green ring\na blue star\na red bar\n")
    return folder


@pytest.fixture(scope="session")
def finished(base):
    """A finished run of two images per prompt."""
    return audit(settings(base, images_per_prompt=2), base / "run")
