import pytest
import torch

from cryptomnesia import GuidanceMagnitude, ScoreDifference, UsageError
from cryptomnesia.detectors import detector
from cryptomnesia.detectors.guidance_magnitude import first, last
from cryptomnesia.localizers import Watched
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING
from cryptomnesia.tracing.generation import generate
from runs import trajectory

SEEN = trajectory([[0.0, 0.0, 0.0]], guidance=[[3.0, 1.0, 2.0]])
NONE = trajectory([[0.0, 0.0]], guidance=[[torch.nan, torch.nan]])


def test_the_first_all_or_the_last_evaluation_count():
    assert GuidanceMagnitude().score(SEEN, SEEN).item() == 2.0
    assert GuidanceMagnitude("first").score(SEEN, SEEN).item() == 3.0
    assert GuidanceMagnitude("last").score(SEEN, SEEN).item() == 2.0
    assert GuidanceMagnitude().running(SEEN, SEEN).tolist() == [[3.0, 2.0, 2.0]]
    assert GuidanceMagnitude("first").running(SEEN, SEEN).tolist() == [[3.0, 3.0, 3.0]]
    assert GuidanceMagnitude("last").running(SEEN, SEEN).tolist() == [[3.0, 1.0, 2.0]]


def test_it_cannot_tell_without_guidance_or_from_a_run_cut_short():
    for over in ("first", "mean", "last"):
        assert GuidanceMagnitude(over).score(NONE, NONE).isnan().all()
    short = trajectory([[0.0]], guidance=[[1.0]], planned=2)
    assert GuidanceMagnitude("last").score(short, SEEN).isnan().all()
    assert GuidanceMagnitude("mean").score(short, SEEN).isnan().all()
    assert GuidanceMagnitude("first").score(short, SEEN).item() == 1.0


@pytest.mark.parametrize("over", ["first", "mean", "last"])
def test_the_registered_names_are_those_of_the_variants(over, pipe):
    made = detector(f"guidance-{over}")
    assert made == GuidanceMagnitude(over)
    assert made.name == f"guidance-{over}"
    assert {"first": first(), "mean": GuidanceMagnitude(), "last": last()}[over] == made
    for text in (made.summary, made.use_when, made.avoid_when, made.source):
        assert text
    with pytest.raises(
        UsageError, match=rf"guidance-{over} needs the unconditional branch, and at guidance 1 this Stable"
    ):
        Setup.of(pipe, {"guidance_scale": 1.0}).check([made])


def test_at_the_last_evaluation_it_ranks_as_the_mean_of_score_differences_does(pipe):
    (batch,) = generate(Setup(pipe, SAMPLING), PROMPTS[:8], range(8), keep=(-1,))
    maps = ScoreDifference().map(Watched(batch.trajectory, family_of(pipe).denoiser())).values
    scores = last().score(batch.trajectory, batch.trajectory)
    assert maps.mean(dim=(1, 2)).argsort().tolist() == scores.argsort().tolist()
    assert last().observes == ScoreDifference().observes
