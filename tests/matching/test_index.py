import json
import multiprocessing
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.matching import Changes, ImageIndex, Tiles
from picture_files import save, stopped_build, tensor


def test_a_killed_build_continues(pictures, tmp_path):
    folder = tmp_path / "index"
    for after in (1, 12, 27):
        process = multiprocessing.get_context("spawn").Process(target=stopped_build, args=(pictures, folder, after))
        process.start()
        process.join()
        assert process.exitcode == 1
        with pytest.raises(UsageError, match="not finished"):
            ImageIndex(folder, Tiles())
    seen = []
    index = ImageIndex.build(
        pictures, folder, Tiles(), shard=5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0][0] > 5  # pictures that were described before are not described again
    assert seen[-1] == (40, 40)
    assert sorted(index.paths) == sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    nearest = index.search(torch.stack([tensor(pictures / path) for path in index.paths]))
    assert nearest.positions[:, 0].tolist() == list(range(40))


def test_pictures_added_later_are_added(pictures, tmp_path):
    ImageIndex.build(pictures, tmp_path / "index", Tiles())
    save(pictures / "new.png", np.full((64, 64, 3), 0.5))
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert len(index) == 41
    assert index.paths[-1] == "new.png"
    assert index.changes == Changes(added=1, unchanged=40)


def test_files_that_cannot_be_read_are_skipped_and_named(pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (pictures / "empty.jpg").touch()
    (pictures / "notes.txt").write_text("not a picture")
    save(tmp_path / "outside" / "secret.png", np.zeros((64, 64, 3)))
    (pictures / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (pictures / "folder").symlink_to(tmp_path / "outside")
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert len(index) == 40
    assert set(index.skipped) == {"broken.png", "empty.jpg", "link.png", "folder", "notes.txt"}
    assert index.skipped["notes.txt"] == "not a picture"
    assert "leads out" in index.skipped["link.png"]
    assert "UnidentifiedImageError" in index.skipped["broken.png"]


def test_bad_indexes_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="no index in"):
        ImageIndex(tmp_path / "nowhere", Tiles())
    with pytest.raises(UsageError, match="no folder"):
        ImageIndex.build(tmp_path / "nowhere", tmp_path / "index", Tiles())
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match="no pictures in"):
        ImageIndex.build(tmp_path / "void", tmp_path / "index", Tiles())
    folder = tmp_path / "made"
    ImageIndex.build(pictures, folder, Tiles())
    with pytest.raises(
        UsageError, match="built with the descriptor tiles, 32 pixels, 4 across, asked for was tiles, 64"
    ):
        ImageIndex(folder, Tiles(side=64))
    with pytest.raises(UsageError, match="is an index of"):
        ImageIndex.build(pictures / "deep", folder, Tiles())
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, "format": 1}))
    with pytest.raises(UsageError, match="index format 1, this version reads 2; build it anew"):
        ImageIndex(folder, Tiles())
    (folder / "index.json").write_text("[]")
    with pytest.raises(UsageError, match="is not an index"):
        ImageIndex(folder, Tiles())


def bomb(path):
    """Write a small PNG file whose header claims 900 million pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0), b"IDAT": zlib.compress(b"\0")}
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_files_with_wrong_content_do_no_harm(pictures, tmp_path):
    bomb(pictures / "bomb.png")
    whole = (pictures / "01.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    # neither a folder nor a pipe is a picture; reading the pipe would wait forever
    save(pictures / "folder.png" / "inside.png", np.full((8, 8, 3), 0.5))
    os.mkfifo(pictures / "pipe.png")
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert len(index) == 41
    assert "folder.png/inside.png" in index.paths
    assert set(index.skipped) == {"bomb.png", "cut.png"}
    assert "DecompressionBombError" in index.skipped["bomb.png"]
    assert "truncated" in index.skipped["cut.png"]


def test_content_that_pillow_would_run_a_program_for_is_skipped(pictures, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (pictures / "page.png").write_bytes((tmp_path / "page.eps").read_bytes())
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert index.skipped.keys() == {"page.png"}


def test_names_that_are_no_text_are_kept(pictures, tmp_path):
    (pictures / "01.png").rename(pictures / os.fsdecode(b"caf\xe9.png"))
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    found = ImageIndex(tmp_path / "index", Tiles()).match(tensor(pictures / os.fsdecode(b"caf\xe9.png"))[None])
    assert os.fsencode(found.paths[0]) == b"caf\xe9.png"
    assert len(index) == 40


def test_links_inside_lead_to_no_picture_twice_and_circles_end(pictures, tmp_path):
    (pictures / "again").symlink_to(pictures / "deep")
    (pictures / "deep" / "up").symlink_to(pictures)
    (pictures / "circle.png").symlink_to(pictures / "circle.png")
    (pictures / "gone.png").symlink_to(pictures / "deep" / "none.png")
    (pictures / "alias.png").symlink_to(pictures / "01.png")
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert len(index) == len(set(index.paths)) == 41
    assert "alias.png" in index.paths
    assert index.skipped == dict.fromkeys(["circle.png", "gone.png"], "a link that leads nowhere")


def test_the_command_counts_and_names_what_it_skips(pictures, tmp_path, cryptomnesia):
    for number in range(12):
        (pictures / f"broken-{number:02}.jpg").write_text("no picture")
    code, output, errors = cryptomnesia("index", "build", pictures, "-o", tmp_path / "index")
    assert code == 0
    assert "40 pictures by tiles" in output
    assert "skipped broken-09.jpg: UnidentifiedImageError" in errors
    assert "skipped 2 more" in errors


def test_tiles_are_read_from_the_index(pictures, tmp_path):
    ImageIndex.build(pictures, tmp_path / "index", Tiles(side=16, across=2))
    index = ImageIndex(str(tmp_path / "index"))
    assert index.descriptor == Tiles(side=16, across=2)
    assert index.match(tensor(pictures / "01.png")[None]).paths == ["01.png"]


def test_an_index_of_another_descriptor_is_opened_with_it(pictures, tmp_path):
    ImageIndex.build(pictures, tmp_path / "index", Tiles())
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    for name, example in (
        ("sscd 0123456789ab, 288 pixels", r"ImageIndex\(folder, SSCD\(file\)\)"),
        ("colours", r"ImageIndex\(folder, descriptor\)"),
    ):
        (tmp_path / "index" / "index.json").write_text(json.dumps({**about, "descriptor": name}))
        with pytest.raises(UsageError, match=f"{name}, which the index does not contain; open it with {example}"):
            ImageIndex(tmp_path / "index")


def test_masks_may_differ_in_size_and_are_as_many_as_pictures(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    queries = [tensor(pictures / "01.png"), tensor(pictures / "02.png")]
    for query, left in zip(queries, (32, 16), strict=True):
        query[:, :, :left] = 0
    small, large = torch.zeros(8, 8), torch.zeros(64, 64)
    small[:, 4:] = 1
    large[:, 16:] = 1
    found = index.search(queries, masks=[small, large])
    assert [index.paths[place] for place in found.positions[:, 0]] == ["01.png", "02.png"]
    assert found.distances.amax() < 0.002
    alone = torch.cat(
        [index.search([queries[row]], masks=mask[None]).distances for row, mask in enumerate((small, large))]
    )
    assert found.distances.equal(alone)
    with pytest.raises(UsageError, match="got 1 masks for 2 pictures"):
        index.search(queries, masks=[small])


def test_a_killed_build_leaves_no_half_files_behind(pictures, tmp_path):
    ImageIndex.build(pictures, tmp_path / "index", Tiles())
    (tmp_path / "index" / "00001.npy.123.unfinished").write_bytes(b"half a shard")
    ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert {path.name for path in (tmp_path / "index").iterdir()} - {".lock"} == {
        "index.json",
        "00000.json",
        "00000.more",
        "00000.npy",
    }


def test_a_damaged_shard_is_named(pictures, tmp_path):
    ImageIndex.build(pictures, tmp_path / "index", Tiles(), shard=25)
    values = np.load(tmp_path / "index" / "00001.npy")
    np.save(tmp_path / "index" / "00001.npy", values[:-1])
    with pytest.raises(UsageError, match=r"shard .*00001 is damaged \(15 paths, .*\); build the index anew"):
        ImageIndex(tmp_path / "index")
    (tmp_path / "index" / "00001.npy").write_bytes(b"not an array")
    with pytest.raises(UsageError, match="00001 is damaged"):
        ImageIndex(tmp_path / "index")
    (tmp_path / "index" / "00001.npy").unlink()
    with pytest.raises(UsageError, match="00001 is damaged"):
        ImageIndex(tmp_path / "index")
