"""How fast the HTML report opens: docs/results/report_speed.json.

    python benchmarks/report_speed.py > docs/results/report_speed.json

A report of 1,000 prompts with two pictures of 512 pixels each, all of them flagged, which is the most that a page can
hold: every picture has a map of 64×64, a mask, another picture under mitigation and a nearest training image. Contents
are made up. The page is opened from disk in Debian's Chromium, each time in a new, empty profile.

For the report without pictures (`left_out`) and with them (`embedded`):
`seconds_to_interactive`: from asking for the page until the key j has moved to the first prompt and that is painted,
the median over loads; `loads`: all of them. `cpu_seconds_to_interactive`: CPU time of the page's thread in that time,
which other work on the machine does not lengthen. `seconds_to_open`: from Enter on that prompt until its evidence is
painted.
`seconds_to_read`: until the whole file is read. `seconds_to_write`: of `html()`. `bytes`: of the file.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from common import Start, print_json, progress
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from cryptomnesia import __version__
from cryptomnesia.auditing.evidence import Level, gate
from cryptomnesia.auditing.outcome import Judged, Outcome
from cryptomnesia.auditing.store import CALIBRATION, Store
from cryptomnesia.calibration import Calibration
from cryptomnesia.detectors import Drift
from cryptomnesia.proving_ground import BUNDLE
from cryptomnesia.report.html import html
from cryptomnesia.settings import AuditSettings
from cryptomnesia.tracing.columns import NORM
from cryptomnesia.tracing.trajectory import NORMS

PROMPTS = 1000
SEEDS = 2
SIDE = 512
LOADS = 9
CONTENTS = 40

DETECTOR = Drift()
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main() -> None:
    """Measure and print JSON."""
    with progress() as start, tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), start)
    print_json(figures)


def measure(folder: Path, start: Start) -> dict[str, Any]:
    """All figures."""
    calibration = BUNDLE / "pipeline" / CALIBRATION
    store = Store.create(folder / "run", about(Calibration.load(calibration)))
    (store.folder / CALIBRATION).write_bytes(calibration.read_bytes())
    made_up = outcome(store)
    figures: dict[str, Any] = {"prompts": PROMPTS, "images": PROMPTS * SEEDS}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        figures["chromium"] = browser.version
        for name, embed in (("left_out", False), ("embedded", True)):
            began = time.perf_counter()
            page = html(made_up, store, embed_images=embed, training=store.folder)
            written = time.perf_counter() - began
            file = folder / f"{name}.html"
            file.write_text(page, encoding="utf-8")
            tell, loads = start(name, LOADS), []
            for number in range(LOADS):
                loads.append(opened(browser, file))
                tell(number + 1)
            figures[name] = {key: statistics.median(load[key] for load in loads) for key in loads[0]}
            figures[name] |= {
                "loads": [load["seconds_to_interactive"] for load in loads],
                "seconds_to_write": written,
                "bytes": file.stat().st_size,
            }
        browser.close()
    return figures


def opened(browser: Browser, file: Path) -> dict[str, float]:
    """Seconds of one load."""
    context = browser.new_context()
    page = context.new_page()
    metrics = context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.perf_counter()
    page.goto(file.as_uri(), wait_until="commit")
    page.locator("#count", has_text="prompts").wait_for()
    page.keyboard.press("j")
    page.evaluate(PAINTED)
    listening = time.perf_counter()
    used = {metric["name"]: metric["value"] for metric in metrics.send("Performance.getMetrics")["metrics"]}
    pressed = time.perf_counter()
    page.keyboard.press("Enter")
    page.locator("tbody:focus-within.open .image").nth(SEEDS - 1).wait_for()
    page.evaluate(PAINTED)
    shown = time.perf_counter()
    page.wait_for_load_state("load")
    read = time.perf_counter()
    context.close()
    return {
        "seconds_to_interactive": listening - began,
        "cpu_seconds_to_interactive": used["TaskDuration"],
        "seconds_to_open": shown - pressed,
        "seconds_to_read": read - began,
    }


def about(calibration: Calibration) -> dict[str, Any]:
    """What a made-up run depends on, as far as a report shows it."""
    settings = AuditSettings.resolve({"model": "made up", "images_per_prompt": SEEDS}, environment={})
    return {
        "model": "made up",
        "settings": settings.model_dump(mode="json"),
        "fingerprint": calibration.fingerprint,
        "methods": {"detector": DETECTOR.name, "localizer": "settled-detail", "mitigation": "rephrasing"},
        "weights": "0" * 64,
        "index": ["tiles", 9],
        "versions": {"cryptomnesia": __version__},
    }


def outcome(store: Store) -> Outcome:
    """A made-up run, in which everything is found."""
    generator = np.random.default_rng(0)
    evaluations = Calibration.load(store.folder / CALIBRATION).evaluations
    prompts = [
        Judged(f"a painting of subject {number}", Level.confirmed, list(images(store, number, evaluations, generator)))
        for number in range(PROMPTS)
    ]
    decision = gate([judged.level for judged in prompts], Level.corroborated, 0)
    settings = AuditSettings.resolve(store.about["settings"], environment={})
    return Outcome(store.about, settings, DETECTOR.name, DETECTOR.describe(), 0.01, prompts, decision)


def images(store: Store, number: int, evaluations: int, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows of evidence on one prompt."""
    for seed in range(SEEDS):
        made, other, training = (picture(store, f"{number}-{seed}-{kind}") for kind in ("made", "other", "training"))
        heat = generator.random((64, 64))
        yield {
            "timesteps": list(range(evaluations)),
            **{f"{NORM}{name}": generator.uniform(1, 2, evaluations).tolist() for name in NORMS},
            **dict.fromkeys(("matched_whole", "matched_region", "region", "repeated"), True),
            **dict.fromkeys(("region_path", "region_relative", "region_p", "map_missing")),
            "detector": DETECTOR.name,
            "seed": seed,
            "level": "confirmed",
            "score": 5 + generator.random(),
            "p_value": 0.004,
            "map": heat.tolist(),
            "mask": (heat > 0.7).tolist(),
            "fraction": 0.3,
            "image": made,
            "instead": other,
            "action": "mitigated",
            "dropped": ["subject"],
            "reason": "made up",
            "whole_path": training,
            "whole_relative": 0.5,
            "whole_p": 0.01,
        }


def picture(store: Store, name: str) -> str:
    """A file of its own of one of a few pictures."""
    path = store.folder / f"{name}.jpg"
    path.write_bytes(jpeg(sum(name.encode()) % CONTENTS))
    return path.name


@cache
def jpeg(number: int) -> bytes:
    """Blots with a little grain, about as hard to compress as a photograph."""
    generator = np.random.default_rng(number)
    blots = Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    grain = generator.normal(0, 6, (SIDE, SIDE, 3))
    pixels = np.clip(np.asarray(blots.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) + grain, 0, 255)
    made = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(made, "JPEG", quality=90)
    return made.getvalue()


if __name__ == "__main__":
    main()
