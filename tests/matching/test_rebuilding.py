"""A build that is run again: replaced, removed and touched files, changed shards and captions, damaged indexes."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from cryptomnesia import ImageIndex, UsageError
from cryptomnesia.matching import Changes, Readings, candidates, describing, reading
from cryptomnesia.matching.sources import tars
from picture_files import encoded, picture, write_tar


@pytest.fixture
def images(tmp_path):
    """A folder of ten pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encoded(picture(number)))
    return folder


def build(images, tmp_path, **settings):
    return ImageIndex.build(images, tmp_path / "index", **settings)


def nearest(index, seed):
    found = index.search([picture(seed)])
    return index.paths[found.positions.item()] if found.distances.item() < 0.01 else None


def test_a_file_replaced_under_its_name_is_described_anew(images, tmp_path):
    build(images, tmp_path, shard=4)
    (images / "3.png").write_bytes(encoded(picture(33)))
    index = build(images, tmp_path, shard=4)
    assert index.changes == Changes(replaced=1, unchanged=9)
    assert (len(index), nearest(index, 33), nearest(index, 3)) == (10, "3.png", None)
    assert build(images, tmp_path).changes == Changes(unchanged=10)


def test_a_replacement_of_the_same_size_and_time_is_seen(images, tmp_path):
    build(images, tmp_path)
    old, new = encoded(picture(3), "BMP"), encoded(picture(34), "BMP")
    (images / "3.png").write_bytes(old)
    before = (images / "3.png").stat()
    build(images, tmp_path)
    (images / "3.png").write_bytes(new)
    os.utime(images / "3.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert nearest(build(images, tmp_path), 34) == "3.png"


def test_a_file_that_was_only_touched_is_not_decoded_again(images, tmp_path, monkeypatch):
    build(images, tmp_path)
    for path in images.iterdir():
        os.utime(path)

    def decode(*_):
        raise AssertionError("a picture was decoded")

    with monkeypatch.context() as patched:
        patched.setattr(reading, "squares", decode)
        assert build(images, tmp_path).changes == Changes(unchanged=10)
    # the new times were stored, so the content is not even read now
    monkeypatch.setattr(describing, "read", decode)
    assert build(images, tmp_path).changes == Changes(unchanged=10)


def test_what_is_there_no_more_leaves_the_index(images, tmp_path):
    build(images, tmp_path, shard=3)
    for number in (0, 1, 2, 7):
        (images / f"{number}.png").unlink()
    (images / "5.png").write_text("broken now")
    index = build(images, tmp_path, shard=3)
    assert index.changes == Changes(removed=5, unchanged=5)
    assert index.paths == ["3.png", "4.png", "6.png", "8.png", "9.png"]
    assert set(index.skipped) == {"5.png"}
    assert [nearest(index, seed) for seed in (3, 4, 6, 8, 9, 7)] == [*index.paths, None]


def test_an_empty_source_does_not_empty_an_index(images, tmp_path):
    build(images, tmp_path)
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    with pytest.raises(UsageError, match="no pictures in"):
        build(images, tmp_path)
    assert len(ImageIndex(tmp_path / "index")) == 10


def test_new_captions_are_stored_and_pictures_not_described_again(images, tmp_path):
    build(images, tmp_path)
    (images / "4.txt").write_text("a caption")
    index = build(images, tmp_path)
    assert index.changes == Changes(unchanged=10)
    assert index.match([picture(4)]).captions == ["a caption"]
    (images / "4.txt").unlink()
    assert build(images, tmp_path).match([picture(4)]).captions == [""]


def test_a_changed_shard_keeps_what_has_not_changed(tmp_path):
    for name in ("a", "b"):
        members = {f"{name}{number}.png": encoded(picture(ord(name) + number)) for number in range(3)}
        write_tar(tmp_path / "shards" / f"{name}.tar", {**members, "note": b"x"})
    build(tmp_path / "shards", tmp_path)
    assert build(tmp_path / "shards", tmp_path).changes == Changes(unchanged=6)
    members = {"b0.png": encoded(picture(ord("b"))), "b1.png": encoded(picture(5)), "b9.png": encoded(picture(6))}
    write_tar(tmp_path / "shards" / "b.tar", members)
    index = build(tmp_path / "shards", tmp_path)
    assert index.changes == Changes(added=1, replaced=1, removed=1, unchanged=4)
    assert (nearest(index, 5), nearest(index, 6)) == ("b.tar/b1.png", "b.tar/b9.png")
    assert index.skipped == {"a.tar/note": "not a picture"}


def test_an_unchanged_shard_is_not_read_again(tmp_path, monkeypatch):
    for name in ("a", "b"):
        members = {f"{number}.png": encoded(picture(ord(name) + number)) for number in range(3)}
        write_tar(tmp_path / "shards" / f"{name}.tar", {**members, "note": b"x"})
    build(tmp_path / "shards", tmp_path, shard=3)
    read = []
    items = tars.items

    def noted(path, name):
        read.append(name)
        yield from items(path, name)

    monkeypatch.setattr(tars, "items", noted)
    index = build(tmp_path / "shards", tmp_path)
    assert (read, index.changes, len(index.skipped)) == ([], Changes(unchanged=6), 2)
    # a lost shard of the index is noticed, and comes back
    for path in (tmp_path / "index").glob("00000.*"):
        path.unlink()
    with pytest.raises(UsageError, match="has lost a shard"):
        ImageIndex(tmp_path / "index")
    index = build(tmp_path / "shards", tmp_path)
    assert (read, index.changes) == (["a.tar", "b.tar"], Changes(added=3, unchanged=3))


def test_a_rebuild_that_was_stopped_goes_on(images, tmp_path):
    build(images, tmp_path, shard=2)
    for number in range(6):
        (images / f"{number}.png").write_bytes(encoded(picture(40 + number)))
    (images / "9.png").unlink()

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path, shard=2, progress=stop)
    with pytest.raises(UsageError, match="not finished"):
        ImageIndex(tmp_path / "index")
    index = build(images, tmp_path, shard=2)
    assert sorted(index.paths) == [f"{number}.png" for number in range(9)]
    assert [nearest(index, 40 + number) for number in range(6)] == [f"{number}.png" for number in range(6)]
    assert nearest(index, 0) is None


def test_codes_are_made_anew_when_positions_move(images, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed")
    monkeypatch.setattr(candidates, "CANDIDATES", 16)
    for number in range(10, 300):
        (images / f"{number}.png").write_bytes(encoded(picture(number, 16)))
    build(images, tmp_path, faiss=True)
    (images / "100.png").unlink()
    index = build(images, tmp_path)
    assert len(index) == 299
    assert (tmp_path / "index" / candidates.FILE).exists()
    assert index.paths[index.search([picture(250, 16)]).positions.item()] == "250.png"
    for number in range(10, 300):
        (images / f"{number}.png").unlink(missing_ok=True)
    assert len(build(images, tmp_path)) == 10
    assert not (tmp_path / "index" / candidates.FILE).exists()


def test_another_source_and_other_readings_are_refused(images, tmp_path):
    build(images, tmp_path)
    with pytest.raises(UsageError, match=r"built with other readings \(exif both, alpha all\); give these"):
        build(images, tmp_path, readings=Readings(exif="ignore"))
    with pytest.raises(UsageError, match=r"is an index of .*images, not of pictures from Python"):
        build([picture(0)], tmp_path)


DAMAGE = {
    "no source": ("index.json", lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "source"})),
    "wrong source": ("index.json", lambda text: json.dumps({**json.loads(text), "source": [1]})),
    "other JSON": ("index.json", lambda _: '{"a": 1}'),
    "a number": ("index.json", lambda _: "7"),
    "deep JSON": ("index.json", lambda _: "[" * 200_000),
    "a huge integer": ("index.json", lambda _: '{"format": ' + "9" * 10_000 + "}"),
    "skipped is a list": ("index.json", lambda text: json.dumps({**json.loads(text), "skipped": [1]})),
    "paths of other kind": ("00000.json", lambda _: '{"paths": [1], "readings": {}}'),
    "old paths": ("00000.json", lambda _: '["a.png"]'),
    "deep paths": ("00000.json", lambda _: "[" * 200_000),
    "readings of other kind": ("00000.json", lambda text: json.dumps({**json.loads(text), "readings": {"x": "y"}})),
    "empty names": ("00000.json", lambda _: ""),
    "no descriptors": ("00000.npy", lambda _: ""),
    "cut descriptors": ("00000.npy", lambda _: "\x93NUMPY"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_index_is_refused_in_one_line(images, tmp_path, cryptomnesia, what):
    build(images, tmp_path)
    name, damage = DAMAGE[what]
    path = tmp_path / "index" / name
    path.write_text(damage("" if name.endswith("npy") else path.read_text()))
    for command in (["match", images, "--index"], ["index", "duplicates"]):
        code, out, err = cryptomnesia(*command, tmp_path / "index")
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1
        assert err.startswith("error: ")


def test_damaged_captions_and_a_missing_shard_are_refused(images, tmp_path):
    build(images, tmp_path)
    for damage in (b"", b"[1]", b'{"caption": ["a"], "stamp": [], "digest": []}', b"[" * 200_000):
        (tmp_path / "index" / "00000.more").write_bytes(damage)
        with pytest.raises(UsageError, match="00000 is damaged"):
            build(images, tmp_path)
        with pytest.raises(UsageError, match="00000 is damaged"):
            ImageIndex(tmp_path / "index").match(torch.rand(1, 3, 8, 8))
    np.save(tmp_path / "index" / "00000.npy", np.zeros(3, dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="00000 is damaged"):
        ImageIndex(tmp_path / "index")
    for path in (tmp_path / "index").glob("00000.*"):
        path.unlink()
    with pytest.raises(UsageError, match="has lost a shard; run `cryptomnesia index build` again"):
        ImageIndex(tmp_path / "index")
    assert len(build(images, tmp_path)) == 10


def test_an_index_needs_its_source_only_to_be_built(images, tmp_path):
    build(images, tmp_path)
    shutil.rmtree(images)
    assert nearest(ImageIndex(tmp_path / "index"), 4) == "4.png"
    with pytest.raises(UsageError, match="no folder or file"):
        build(images, tmp_path)
