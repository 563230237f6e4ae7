import pytest

from cryptomnesia import UsageError
from cryptomnesia.auditing.options import resolve

GIVEN = {"model": "bundled", "prompts": "p.txt"}


def test_flags_are_stronger_than_the_environment_and_that_than_the_file(tmp_path):
    file = tmp_path / "audit.toml"
    file.write_text('model = "a"\nprompts = "p.txt"\nsteps = 10\nseed = 1\nrate = 0.05\n')
    found = resolve({"steps": 30, "seed": None}, file, {"CRYPTOMNESIA_STEPS": "20", "CRYPTOMNESIA_SEED": "2"})
    assert (found.model, found.steps, found.seed, found.rate) == ("a", 30, 2, 0.05)


@pytest.mark.parametrize(
    ("flags", "text", "environment", "message"),
    [
        (GIVEN, "stepps = 3", {}, "stepps: .* not permitted, got 3; known are model, prompts"),
        (GIVEN, "", {"CRYPTOMNESIA_TAROT": "1"}, "tarot: .* not permitted"),
        (GIVEN, "steps = 0", {}, "steps: .* greater than or equal to 1, got 0"),
        (GIVEN, "steps = [", {}, "cannot read the settings"),
        (GIVEN, 'fail_on = "never"', {}, "fail_on: .*'suspected', 'corroborated' or 'confirmed', got never"),
        ({"model": "bundled"}, "", {}, "prompts: Field required"),
        ({**GIVEN, "references": "r.txt", "calibration": "c"}, "", {}, "give either them or calibration and maps"),
        ({**GIVEN, "index": "i", "training_images": "t"}, "", {}, "give either index or training_images"),
        ({**GIVEN, "fail_on": "confirmed"}, "", {}, "nothing can be confirmed without training images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, flags, text, environment, message):
    file = tmp_path / "audit.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        resolve(flags, file, environment)
    assert "\n" not in str(refused.value)
