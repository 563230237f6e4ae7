"""The bench on a random miniature, and its figures on scores that were made up."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from filelock import FileLock
from jsonschema import Draft202012Validator

from cryptomnesia import Drift, GuidanceMagnitude, Stability, UsageError
from cryptomnesia.bench.base import CALIBRATION
from cryptomnesia.bench.detecting import PACKET, PARTS, DetectorBench
from cryptomnesia.bench.figures import figures_of, parts_of
from cryptomnesia.bench.packet import SCHEMA, Packet, differences
from cryptomnesia.bench.trials import MEMORIZED, Trial, of_file, of_ground
from cryptomnesia.detectors.one_step import OneStep
from cryptomnesia.detectors.sharpness import Sharpness
from cryptomnesia.parts import run as run_bench
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.manifest import Manifest
from cryptomnesia.statistics import auc
from cryptomnesia.testing.miniatures import stable_diffusion

CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
DETECTORS = [Drift(), Stability(), GuidanceMagnitude(), Sharpness()]
TRIALS = [
    *(Trial(f"a red {shape}", MEMORIZED, shape, number) for number, shape in enumerate(("ring", "disc", "bar"))),
    *(Trial(f"a blue {shape}", "ordinary", shape, 9 + number) for number, shape in enumerate(("ring", "disc", "bar"))),
]
REFERENCES = [f"a green star {number}" for number in range(148)]
"""As few as a false-positive rate of 1% takes."""


def run(folder, trials=TRIALS, references=REFERENCES, detectors=DETECTORS, progress=None, **more):
    given = {"call": CALL, "about": {"model": "a miniature"}, "batch_size": 2, "folder": folder, **more}
    given |= {"trials": trials, "references": references, "detectors": detectors}
    setup = Setup.of(stable_diffusion(), CALL)
    return run_bench(lambda: DetectorBench(setup=setup, **given), folder, progress=progress)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    run(folder, truth=lambda trial, image: float(trial.cluster == "bar"), threshold=0.5)
    return folder


def test_every_detector_scores_the_same_images(whole):
    packet = Packet.load(whole / PACKET)
    assert list(packet.methods) == ["drift", "stability", "guidance-mean", "sharpness"]
    assert [packet.methods[name]["cost"] for name in packet.methods] == [0, 0, 0, 1]
    assert [(row["prompt"], row["seed"], row["group"]) for row in packet.rows] == [
        (trial.prompt, trial.seed, trial.group) for trial in TRIALS
    ]
    assert [row["reproduced"] for row in packet.rows] == [True, True, False, None, None, None]
    for row in packet.rows:
        assert row["scores"].keys() == row["p_values"].keys() == packet.methods.keys()
        assert all(0 < p <= 1 for p in row["p_values"].values())
    figures = packet.figures
    assert figures["counts"] == {
        "reproduced": {"images": 2, "clusters": 2},
        "not_reproduced": {"images": 1, "clusters": 1},
        "ordinary": {"images": 3, "clusters": 3},
    }
    positive = np.array([row["scores"]["drift"] for row in packet.rows[:2]])
    negative = np.array([row["scores"]["drift"] for row in packet.rows[3:]])
    assert figures["detectors"]["drift"]["auc"]["reproduced"]["ordinary"]["value"] == auc(positive, negative)


def test_a_packet_is_as_its_schema_says(whole, cryptomnesia):
    code, out, _ = cryptomnesia("bench", "schema")
    assert code == 0
    schema = json.loads(out)
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    validator = Draft202012Validator(schema)
    packet = json.loads((whole / PACKET).read_text())
    assert list(validator.iter_errors(packet)) == []
    packet["rows"][0]["colour"] = "red"
    assert len(list(validator.iter_errors(packet))) == 1


def test_a_packet_that_is_compressed_is_read_and_always_the_same(whole, tmp_path):
    packet = Packet.load(whole / PACKET)
    for name in ("one.json.xz", "two.json.xz"):
        packet.save(tmp_path / name)
    assert (tmp_path / "one.json.xz").read_bytes() == (tmp_path / "two.json.xz").read_bytes()
    assert Packet.load(tmp_path / "one.json.xz") == packet
    (tmp_path / "two.json.xz").write_bytes(b"nothing compressed")
    with pytest.raises(UsageError, match="is no compressed file"):
        Packet.load(tmp_path / "two.json.xz")


def test_a_calibration_that_was_stopped_goes_on_to_the_same_packet(whole, tmp_path):
    """Its first two batches of references are kept."""
    kept = [whole / "bench.json", *sorted(whole.glob("references-*"))[:2]]
    for path in kept:
        shutil.copy2(path, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in kept}
    made = []
    given = {"truth": lambda trial, image: float(trial.cluster == "bar"), "threshold": 0.5}
    run(tmp_path, progress=lambda *step: made.append(step), **given)
    assert (tmp_path / PACKET).read_bytes() == (whole / PACKET).read_bytes()
    assert {path.name: (tmp_path / path.name).stat().st_mtime_ns for path in kept} == times
    assert min(done for what, done, _ in made if what == "references") > 2
    # what is damaged is named before a calibration is made of it
    (tmp_path / CALIBRATION).unlink()
    (tmp_path / kept[1].name).write_bytes(b"no table")
    with pytest.raises(UsageError, match=f"{kept[1].name} is not a record of references"):
        run(tmp_path, **given)


def test_a_bench_that_was_killed_goes_on(whole, tmp_path):
    """Killed in its second batch of three, of which nothing is left."""
    for path in (whole / "bench.json", whole / CALIBRATION, whole / PARTS.format(0)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    given = {"truth": lambda trial, image: float(trial.cluster == "bar"), "threshold": 0.5}
    made = []
    run(tmp_path, progress=lambda *step: made.append(step), **given)
    assert (tmp_path / PACKET).read_bytes() == (whole / PACKET).read_bytes()
    # the second batch was made again, and no reference
    assert {what for what, _, _ in made} == {"images"}
    assert min(done for _, done, _ in made) > 2
    with pytest.raises(UsageError, match=r"holds a bench with other settings: .* differs in threshold, trials; go on"):
        run(tmp_path, TRIALS[:4])


def test_a_finished_bench_scores_further_detectors_that_read_what_it_recorded(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    given = {"truth": lambda trial, image: float(trial.cluster == "bar"), "threshold": 0.5}
    made = []
    detectors = [GuidanceMagnitude("last"), Stability()]
    packet = run(tmp_path, detectors=detectors, progress=lambda *step: made.append(step), **given)
    assert made == []
    assert list(packet.methods) == ["guidance-last", "stability"]
    kept = Packet.load(whole / PACKET)
    assert [row["scores"]["stability"] for row in packet.rows] == [row["scores"]["stability"] for row in kept.rows]
    with pytest.raises(UsageError, match="differs in recorded"):
        run(tmp_path, detectors=[OneStep()], **given)


def test_only_one_process_works_in_a_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="another process works in"):
        run(tmp_path)
    assert not (tmp_path / PARTS.format(0)).exists()


def test_what_could_not_be_benched_leaves_no_folder(tmp_path):
    """So that the same folder can be given with settings that can be."""
    with pytest.raises(UsageError, match=r"a rate of 0\.01 needs 148 reference prompts"):
        run(tmp_path / "run", references=REFERENCES[:-1])
    assert not (tmp_path / "run").exists()


def test_prompts_that_are_cut_off_are_named_in_a_warning(tmp_path, caplog):
    run(tmp_path, [replace(TRIALS[0], prompt="ring " * 100), *TRIALS[1:]])
    assert any("ring ring" in record.getMessage() for record in caplog.records)


def test_figures_follow_from_the_scores_alone(whole, tmp_path, cryptomnesia):
    code, out, _ = cryptomnesia("bench", "verify", whole / PACKET)
    assert code == 0
    assert "a miniature: reproduced, 2 images of 2 concepts" in out
    values = json.loads((whole / PACKET).read_text())
    values["figures"]["detectors"]["drift"]["auc"]["reproduced"]["ordinary"]["value"] = 1.5
    (tmp_path / "edited.json").write_text(json.dumps(values))
    code, _, err = cryptomnesia("bench", "verify", tmp_path / "edited.json")
    assert code == 1
    assert err.strip() == (
        f"{tmp_path / 'edited.json'} has figures that do not follow from its scores: "
        "detectors.drift.auc.reproduced.ordinary.value"
    )
    values["rows"][0]["scores"]["drift"] = 9.0
    (tmp_path / "edited.json").write_text(json.dumps(values))
    code, _, err = cryptomnesia("bench", "verify", tmp_path / "edited.json")
    assert code == 2
    assert "the scores of" in err
    (tmp_path / "no.json").write_text("[]")
    assert cryptomnesia("bench", "verify", tmp_path / "no.json")[0] == 2


def rows_of(scores, group, clusters=None, **more):
    clusters = range(len(scores)) if clusters is None else clusters
    return [
        {
            **asdict(Trial("a", group, f"{group}-{cluster}", 0, **more)),
            "reproduced": None,
            "distance": None,
            "scores": {"good": score, "bad": None if score is None else -score},
            "p_values": {"good": None if score is None else 1 / (1 + max(score, 0)), "bad": 1.0},
        }
        for score, cluster in zip(scores, clusters, strict=True)
    ]


def test_figures_of_known_scores():
    rng = np.random.default_rng(0)
    positive = rows_of((5 + rng.standard_normal(40)).tolist(), MEMORIZED, np.arange(40) // 4)
    negative = rows_of(rng.standard_normal(1200).tolist(), "ordinary")
    few = rows_of([0.0, 200.0, None], "rare_name")
    for row, p_value in zip(few, (0.5, 0.001, None), strict=True):
        row["scores"] = dict.fromkeys(("good", "bad"), row["scores"]["good"])
        row["p_values"] = dict.fromkeys(("good", "bad"), p_value)
    figures = figures_of([*positive, *negative, *few], ["good", "bad"])
    good, bad = (figures["detectors"][name] for name in ("good", "bad"))
    assert good["auc"]["labelled"]["ordinary"]["value"] > 0.99
    assert bad["auc"]["labelled"]["ordinary"]["value"] < 0.01
    assert good["tpr_at_1pct"]["labelled"]["ordinary"]["value"] > 0.95
    assert 0 < good["tpr_at_0.1pct"]["labelled"]["ordinary"]["value"] <= 1
    # of three negatives no rate of 1% can be told
    assert good["tpr_at_1pct"]["labelled"]["rare_name"] is None
    assert good["unknown"] == 1
    assert good["auc"]["labelled"]["rare_name"]["value"] == 0.5
    assert good["fpr_met"]["rare_name"]["value"] == 0.5
    assert figures["counts"]["labelled"] == {"images": 40, "clusters": 10}
    difference = figures["difference"]["labelled"]
    assert (difference["best"], difference["against"]) == ("good", "ordinary")
    assert difference["below"]["bad"]["high"] < -0.9
    assert figures_of([*positive, *negative, *few], ["good", "bad"]) == figures


def test_redrawn_clusters_with_too_few_negatives_are_left_out_of_an_interval(tmp_path):
    """Of 110 negatives in clusters of uneven size, a bootstrap sample may hold fewer than the 100 that a rate needs."""
    rng = np.random.default_rng(0)
    positive = rows_of((2 + rng.standard_normal(40)).tolist(), MEMORIZED)
    negative = rows_of(rng.standard_normal(110).tolist(), "ordinary", [*[0] * 46, *range(1, 65)])
    rows = [*positive, *negative]
    figures = figures_of(rows, ["good", "bad"])
    share = figures["detectors"]["good"]["tpr_at_1pct"]["labelled"]["ordinary"]
    assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    packet = Packet({"model": "made up"}, {"good": {}, "bad": {}}, rows, figures)
    packet.save(tmp_path / "packet.json")
    assert differences(Packet.load(tmp_path / "packet.json").figures, figures_of(rows, ["good", "bad"])) == []


def test_positives_are_told_apart_by_what_is_known_of_them():
    one = rows_of([1.0], MEMORIZED, kind="verbatim", wording="named")
    other = rows_of([1.0, 2.0], MEMORIZED, kind="template", wording="named")
    for row, reproduced in zip([*one, *other], (True, True, False), strict=True):
        row["reproduced"] = reproduced
    parts = parts_of([*one, *other, *rows_of([0.0], "ordinary")])
    assert {name: len(part) for name, part in parts.items()} == {
        "reproduced": 2,
        "verbatim": 1,
        "template": 1,
        "not_reproduced": 1,
    }


def test_the_trials_of_a_ground_are_its_planted_captions_and_every_kind_of_negative():
    manifest = Manifest.load(ground_of("drawings").bundle)
    references = manifest.control_captions("calibration", 450)
    trials = of_ground(manifest, 100, 50, references)
    groups = {name: [t for t in trials if t.group == name] for name in dict.fromkeys(t.group for t in trials)}
    assert list(groups) == [MEMORIZED, "ordinary", "look_alike", "rare_name", "fixed_pixels", "frequent"]
    assert 100 <= len(groups[MEMORIZED]) < 150
    assert len(groups["ordinary"]) == len({t.cluster for t in groups["ordinary"]}) == 50
    assert len({t.seed for t in trials}) == len(trials)
    for trial in groups[MEMORIZED]:
        entry = manifest.planted_for(trial.prompt)
        assert (entry.id, entry.kind, entry.wording) == (trial.cluster, trial.kind, trial.wording)
        assert entry.exposures == manifest.top
    for kind in ("rare_name", "fixed_pixels", "frequent"):
        assert len(groups[kind]) >= 50
        assert {t.kind for t in groups[kind]} == {""}
    assert not {t.prompt for t in trials} & set(references)


def test_trials_of_a_file_of_a_spreadsheet(tmp_path):
    """With a byte-order mark, and a caption of two lines in quotes; of JSON with a separator of Unicode."""
    (tmp_path / "labels.csv").write_bytes('\ufeffprompt,label\r\n"a cat\r\non a mat",memorized\r\nb,hard\r\n'.encode())
    assert [t.prompt for t in of_file(tmp_path / "labels.csv")] == ["a cat\non a mat", "b"]
    (tmp_path / "labels.jsonl").write_text(
        '{"prompt": "a\u2028b", "label": "memorized"}\n{"prompt": "b", "label": "x"}', encoding="utf-8"
    )
    assert [t.prompt for t in of_file(tmp_path / "labels.jsonl")] == ["a\u2028b", "b"]


def test_trials_of_a_file(tmp_path):
    (tmp_path / "labels.csv").write_text('prompt,label,cluster\n"a cat, sitting",memorized,cat\na dog,ordinary,\n')
    trials = of_file(tmp_path / "labels.csv", images_per_prompt=2)
    assert [(t.prompt, t.group, t.cluster) for t in trials] == [
        ("a cat, sitting", MEMORIZED, "cat"),
        ("a cat, sitting", MEMORIZED, "cat"),
        ("a dog", "ordinary", "a dog"),
        ("a dog", "ordinary", "a dog"),
    ]
    (tmp_path / "labels.jsonl").write_text(
        '{"prompt": "a cat", "label": "memorized"}\n{"prompt": "b", "label": "hard"}\n'
    )
    assert [t.group for t in of_file(tmp_path / "labels.jsonl")] == [MEMORIZED, "hard"]
    for name, text, message in (
        (
            "a.csv",
            "prompt,label\na cat,memorized\n",
            "has the labels memorized; give rows with the label memorized, and",
        ),
        ("b.csv", "text\na cat\n", "row 1: got"),
        ("c.jsonl", "{", "is malformed"),
        ("d.txt", "a cat", r"give a \.csv or \.jsonl file"),
        ("e.jsonl", "[1]\n", "row 1: got"),
        (
            "f.csv",
            "prompt,label\na cat,memorized\na cat,ordinary\n",
            "with the labels memorized and ordinary; give",
        ),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=message):
            of_file(tmp_path / name)
    with pytest.raises(UsageError, match="cannot read"):
        of_file(tmp_path / "none.csv")


def test_a_model_of_your_own_is_benched_with_labelled_prompts(audit_folder, tmp_path, cryptomnesia):
    (tmp_path / "labels.csv").write_text("prompt,label\na purple ring,memorized\na yellow ring,ordinary\n")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES))
    labels, references = ("--labels", tmp_path / "labels.csv"), ("--references", tmp_path / "references.txt")
    model = "--model", audit_folder / "tiny", "--steps", 3, "--guidance", 2.0, "-o", tmp_path / "run"
    more = "--detector", "drift", "--images-per-prompt", 2
    code, out, _ = cryptomnesia("bench", "detect", *model, *labels, *references, *more)
    assert code == 0
    assert "labelled," in out
    assert "drift" in out
    assert cryptomnesia("bench", "verify", tmp_path / "run" / PACKET)[0] == 0
    # by default every detector that works
    code, out, _ = cryptomnesia("bench", "detect", *model[:-1], tmp_path / "all", *labels, *references, "--json")
    assert code == 0
    some = {"anisotropy", "drift", "guidance-mean", "score-difference", "sharpness"}
    assert some < json.loads(out)["detectors"].keys()
    (tmp_path / "references.txt").write_text("\n".join([*REFERENCES, "a purple ring"]))
    code, _, err = cryptomnesia("bench", "detect", *model, *labels, *references)
    assert code == 2
    assert "1 labelled prompts are references as well, 'a purple ring' for one; take them out" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got both or none of ground and labels; give one of them"),
        (("--ground", "scenes", "--labels", "a.csv"), "got both or none of ground and labels"),
        (("--labels", "a.csv"), "got labels without model or references; give both besides"),
        (
            ("--labels", "a.csv", "--model", "m", "--references", "r", "--positives", "5"),
            "give images_per_prompt instead",
        ),
        (("--ground", "scenes", "--images-per-prompt", "2"), "give positives and negatives instead"),
        (("--ground", "scenes", "--model", "bundled"), "which has a model and references"),
        (("--labels", "a.csv", "--model", "m", "--references", "r", "--bundle", "b"), "without the ground"),
        (("--ground", "pixels"), "pixels has no captions, so nothing tells its images apart; give another ground"),
        (("--ground", "tarot"), "no proving ground is called tarot"),
        (("--ground", "scenes", "--detector", "tarot"), "unknown detector 'tarot'"),
        (
            ("--ground", "drawings", "--bundle", ground_of("scenes").bundle),
            "is a model of scenes; give one of drawings",
        ),
    ],
)
def test_what_cannot_be_benched_is_refused(cryptomnesia, tmp_path, arguments, message):
    code, _, err = cryptomnesia("bench", "detect", *arguments, "-o", tmp_path / "run")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_bench_in_which_nothing_was_reproduced_says_so(tmp_path, cryptomnesia):
    positive = [{**row, "reproduced": False, "distance": 1.0} for row in rows_of([1.0, 2.0], MEMORIZED)]
    rows = [*positive, *rows_of([0.0] * 3, "ordinary")]
    names = ["good", "bad"]
    methods = {name: {"describe": name, "cost": 0.0, "earliest": 1} for name in names}
    Packet({"model": "a model"}, methods, rows, figures_of(rows, names)).save(tmp_path / "packet.json")
    code, out, _ = cryptomnesia("bench", "verify", tmp_path / "packet.json")
    assert code == 0
    assert "a model: none of 2 images of planted captions reproduces the planted picture" in " ".join(out.split())
