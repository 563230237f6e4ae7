"""The commands of docs/how-to/real-checkpoints.md run on random miniatures, with made-up lists in the published form.

Nothing is copied from the page: its blocks are read and run. `SMALLER` says what is replaced in them, and everything
that is downloaded is made up by `lists`.
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers import PNDMScheduler
from PIL import Image

from cryptomnesia.testing.miniatures import stable_diffusion

SMALLER = {
    "CompVis/stable-diffusion-v1-4": "model",
    "CompVis/stable-diffusion-v1-1": "early",
    "CRYPTOMNESIA_STEPS=50": "CRYPTOMNESIA_STEPS=3",
    "CRYPTOMNESIA_DTYPE=float16": "CRYPTOMNESIA_DTYPE=float32",
    "ORDINARY, REFERENCES = 500, 450": "ORDINARY, REFERENCES = 8, 150",
}
"""On the page → in the test: models, steps and numbers of prompts."""

MADE_UP = ("hf download",)
"""Commands that are not run, because `lists` makes what they download."""

QUICK = ("export", "python", "calibrate", "guard --policy observe", "index", "match", "bench detect --scheduler pndm")
"""Beginnings of the commands that run in the quick test, in the words of `named`."""

ENDINGS = (0, 1, 3)
"""Exit codes of commands that did their work."""


def blocks(page, language):
    """The blocks of a language on the page, with `SMALLER` in place."""
    for old, new in SMALLER.items():
        page = page.replace(old, new)
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(page):
    """Every command of the page, in one line each."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def named(words):
    """A command in the few words that tell it from others."""
    words = words[1:] if words[0] == "cryptomnesia" else words
    first = 2 if words[0] in ("bench", "index", "hf") else 1
    told = [f"{name} {words[words.index(name) + 1]}" for name in ("--policy", "--scheduler") if name in words]
    return " ".join([*words[:first], *(told[:1] if words[0] in ("guard", "bench") else [])])


def lists(folder):
    """Made-up lists of the form of the published ones, and training pictures."""
    rng = np.random.default_rng(0)

    def picture(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(file)

    def parquet(file, columns):
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)

    for number in range(150):
        picture(folder / "training" / f"dl_{number:03}.png")
    templates = folder / "lists" / "templates"
    for number in range(2):
        picture(templates / "imgs" / f"{number}_img.jpg")
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[: 8 + 4 * number] = 255
        (templates / "mask").mkdir(exist_ok=True)
        Image.fromarray(mask).save(templates / "mask" / f"{number}_mask.jpg")
    names = {f"{kind}_file": [f"templates/{where}/{n}_{kind}.jpg" for n in range(2)] for kind, where in FOLDERS}
    parquet(templates / "metadata.parquet", {**names, "url": ["http://a/0", "http://a/1"]})
    kinds = ["MV", "RV", "TV", "TV", "TV", "N", "N", "TV"]
    truth = {
        "caption": [
            "a red ring",
            "a red disc",
            "a blue ring",
            "a blue disc",
            'a "blue" bar, wide',
            "a pink heart",
            "a red ring ",
            "a star",
        ],
        "url": [f"http://b/{number}" for number in range(8)],
        "index": list(range(8)),
        "overfit_type": kinds,
        "retrieved_urls": [
            [],
            ["http://b/0"],
            ["http://a/0"],
            ["http://a/0", "http://a/1"],
            ["http://a/1"],
            [],
            [],
            None,
        ],
        "template_indices": [[], [], [[0]], [[0, 1]], [[1]], [], [], []],
    }
    parquet(folder / "lists" / "groundtruth_parquets" / "sdv1_bb_edge_groundtruth.parquet", truth)
    others = ["a red ring", "a green star 0", *(f" a green star {number}" for number in range(200))]
    parquet(folder / "others" / "data" / "eval.parquet", {"Prompt": others})


FOLDERS = (("img", "imgs"), ("mask", "mask"))


@pytest.fixture
def page(request):
    return (request.config.rootpath / "docs" / "how-to" / "real-checkpoints.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the reader of the page has, as the current one."""
    lists(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(page, cryptomnesia, monkeypatch):
    """Run a line of the page, and say what it printed."""

    def line(text):
        words = shlex.split(text)
        if words[0] == "export":
            for word in words[1:]:
                monkeypatch.setenv(*word.split("=", 1))
            return ""
        if words == ["python", "labels.py"]:
            return python(blocks(page, "python")[0])
        assert words[0] == "cryptomnesia", text
        code, out, err = cryptomnesia(*map(os.path.expandvars, words[1:]))
        assert code in ENDINGS, f"{text}\n{err}"
        return out

    return line


def python(code):
    """What a block of Python prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "the page", "exec"), {})
    return printed.getvalue()


def models(folder, prediction):
    """The model and its less-trained checkpoint, with PNDM as Stable Diffusion has it."""
    pipe = stable_diffusion(prediction)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    for name in ("model", "early"):
        pipe.save_pretrained(folder / name)


def test_everything_that_the_test_replaces_is_on_the_page(page):
    assert [old for old in SMALLER if old not in page] == []
    assert len(blocks(page, "python")) == 2
    known = [named(shlex.split(command)) for command in commands(page)]
    assert [name for name in QUICK if not any(one.startswith(name) for one in known)] == []
    assert any(one.startswith(MADE_UP) for one in known)


def test_the_lists_become_labels(page, place, run):
    run("export LIST=sdv1_bb_edge_groundtruth")
    assert run("python labels.py").splitlines() == [
        "memorized.csv 5 prompts, 2 clusters",
        "labels.csv 15 prompts, 12 clusters",
        "templates.csv 11 prompts, 9 clusters",
        "references.csv 150 prompts, 150 clusters",
    ]
    assert Path("labels.csv").read_text(encoding="utf-8").splitlines()[:9] == [
        "prompt,label,cluster,mask",
        "a red ring,memorized,http://b/0,",
        "a red disc,memorized,http://b/0,",
        "a blue ring,memorized,template 0,lists/templates/mask/0_mask.jpg",
        "a blue disc,memorized,template 0,lists/templates/mask/0_mask.jpg",
        '"a ""blue"" bar, wide",memorized,template 0,lists/templates/mask/1_mask.jpg',
        "a pink heart,unconfirmed,http://b/5,",
        "a star,unconfirmed,http://b/7,",
        "a green star 0,ordinary,,",
    ]


def test_the_quick_commands_run(page, place, run):
    models(place, "epsilon")
    for command in commands(page):
        if named(shlex.split(command)).startswith(QUICK) and "mitigated" not in command:
            run(command)
    assert Path("detect-pndm/packet.json").exists()
    assert len(list(Path("plain").glob("*.png"))) == 5
    # a copy of a whole picture, and one of a template inside its mask
    plain = sorted(Path("plain").iterdir())
    plain[0].write_bytes(Path("training/dl_017.png").read_bytes())
    with Image.open("lists/templates/imgs/0_img.jpg") as picture:
        template = np.array(picture.convert("RGB"))
    template[8:] = 255 - template[8:]
    Image.fromarray(template).save(plain[2])
    assert python(blocks(page, "python")[1]) == "2 of 5 prompts confirmed\n"
    checked = Path("checked-labels.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[-3] for line in checked[1:7]] == [
        "memorized", "unconfirmed", "memorized", "unconfirmed", "unconfirmed", "unconfirmed",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_all_commands_run(page, place, run, prediction):
    """In their order, on miniatures of Stable Diffusion 1 and 2."""
    models(place, prediction)
    printed = {
        command: run(command) for command in commands(page) if not named(shlex.split(command)).startswith(MADE_UP)
    }
    [figures] = [out for command, out in printed.items() if "verify" in command and "--json" in command]
    for part in ("labelled", "with_ordinary", "curvature-difference-checkpoint", "oracle_iou"):
        assert f'"{part}"' in figures
    assert Path("audit.json").exists()
    assert Path("maps-all/maps.safetensors").exists()
    assert len(list(Path("mitigated").glob("*.png"))) == 5
    python(blocks(page, "python")[1])
