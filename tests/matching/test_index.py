import json
import multiprocessing
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cryptomnesia import UsageError, cli
from cryptomnesia.matching import ImageIndex, Tiles, square
from cryptomnesia.proving_ground.scenes import Description, Draws, Scene


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """A folder of forty pictures, ten of them in a folder of their own."""
    rng = np.random.default_rng(0)
    for number in range(40):
        name = f"deep/{number:02}.png" if number % 4 == 0 else f"{number:02}.png"
        save(tmp_path / "images" / name, rng.random((64, 64, 3)))
    return tmp_path / "images"


def tensor(path):
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_search_finds_what_brute_force_does(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles(), shard=7)
    assert len(index) == 40
    queries = torch.rand(3, 3, 64, 64)
    masks = torch.rand(3, 64, 64) > 0.3
    found = index.search(queries, masks=masks, k=5)
    tiles = Tiles()
    all_pictures = torch.stack([square(tensor(pictures / path), 32) for path in index.paths])
    weights = tiles.weights(masks)
    for row in range(3):
        squares = (tiles.describe(square(queries[row], 32)[None]) - tiles.describe(all_pictures)) ** 2
        own = weights[row] * (weights[row].mean(dim=1, keepdim=True) >= 0.5)
        exact = ((own * squares).sum(dim=2) / own.sum(dim=1).clamp_min(1e-9)).amax(dim=1).sqrt()
        # stored in half precision, so near ties may change places
        torch.testing.assert_close(found.distances[row], exact.sort().values[:5], atol=2e-3, rtol=0)
        torch.testing.assert_close(found.distances[row], exact[found.positions[row]], atol=2e-3, rtol=0)


def test_a_picture_is_its_own_nearest(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    path = "deep/08.png"
    found = index.search(tensor(pictures / path)[None], k=100)
    assert index.paths[found.positions[0, 0]] == path
    assert found.distances[0, 0] < 0.002
    assert found.distances.shape == (1, 40)


def test_a_match_is_nearer_than_pictures_usually_are(pictures, tmp_path):
    for copy in range(60):  # a training image that is there many times
        save(pictures / f"copy-{copy:02}.png", tensor(pictures / "02.png").permute(1, 2, 0).numpy())
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    rng = torch.Generator().manual_seed(0)
    near = (tensor(pictures / "02.png") + 0.02 * torch.randn(3, 64, 64, generator=rng)).clamp(0, 1)
    other = torch.rand(3, 64, 64, generator=rng)
    found = index.match(torch.stack([near, other]), rate=0.05)
    assert tensor(pictures / found.paths[0]).equal(tensor(pictures / "02.png"))
    assert found.reproduced.tolist() == [True, False]
    assert found.p_values[0] <= 0.05
    assert found.p_values[1] == 1
    assert found.relative[0] < 0.2
    assert 1 < found.relative[1] <= 2
    sliver = torch.zeros(2, 64, 64)
    sliver[:, :4, :4] = 1
    assert not index.match(torch.stack([near, other]), masks=sliver).reproduced.any()


def test_a_mask_finds_what_the_whole_picture_does_not(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    template = tensor(pictures / "01.png")
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    query = torch.where(mask.bool(), template, 0.0)
    whole = index.search(query[None])
    inside = index.search(query[None], masks=mask[None])
    assert inside.distances.item() < 0.002
    assert index.paths[inside.positions.item()] == "01.png"
    assert whole.distances.item() > 0.3


def scenes(first, count):
    """Pictures of plain scenes, no two the same."""
    for number in range(first, first + count):
        draws = Draws(0, 99, number)
        yield torch.from_numpy(Scene.draw(draws, Description.draw(draws)).pixels()).permute(2, 0, 1).float() / 255


def test_plain_corners_are_no_match(tmp_path):
    for number, scene in enumerate(scenes(0, 300)):
        save(tmp_path / "pictures" / f"{number:03}.png", scene.permute(1, 2, 0).numpy())
    template = next(scenes(900, 1))
    for copy in range(20):  # whole copies say nothing of what comes by chance
        save(tmp_path / "pictures" / f"copy-{copy:02}.png", template.permute(1, 2, 0).numpy())
    for number, scene in enumerate(scenes(950, 20)):  # nor do other exposures of the template
        scene[:, :, 32:] = template[:, :, 32:]
        save(tmp_path / "pictures" / f"template-{number:02}.png", scene.permute(1, 2, 0).numpy())
    index = ImageIndex.build(tmp_path / "pictures", tmp_path / "index", Tiles())
    queries = torch.stack(list(scenes(1000, 100)))
    corner, half = torch.zeros(2, 64, 64)
    corner[:16, :16] = 1
    half[:, 32:] = 1
    # of a corner fewer are asked, since every match by chance has a null of its own
    for mask, asked, chance in ((corner, queries[:15], 0.3), (half, queries, 0.03)):
        found = index.match(asked, masks=mask.expand(len(asked), -1, -1), rate=0.05)
        assert (found.relative <= 1).float().mean() >= chance
        assert found.reproduced.float().mean() <= 0.1
        assert (found.p_values[found.relative > 1] == 1).all()
    free = torch.stack([template, *queries[:3]])
    free[0, :, :, :32] = queries[0, :, :, :32]
    found = index.match(free, masks=half.expand(4, -1, -1))
    assert found.reproduced.tolist() == [True, False, False, False]
    assert found.paths[0].startswith(("copy", "template"))
    assert found.p_values[0] == 0.01
    assert index.match(free[:1], masks=half[None], rate=0.05).p_values[0] == 0.05


def test_what_pictures_of_an_index_do_among_themselves_is_no_match(tmp_path):
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(120, 3, 32, 32, generator=rng)
    # some of the way to another picture: nearer than usual, and no copy
    siblings, again = (first.lerp(torch.rand(first.shape, generator=rng), part) for part in (0.28, 0.32))
    for number, picture in enumerate(first):
        save(tmp_path / "alone" / f"{number}.png", picture.permute(1, 2, 0).numpy())
        save(tmp_path / "in pairs" / f"{number}.png", picture.permute(1, 2, 0).numpy())
        save(tmp_path / "in pairs" / f"{number} again.png", siblings[number].permute(1, 2, 0).numpy())
    queries = torch.stack([again[0], first[1], torch.rand(3, 32, 32, generator=rng)])
    alone, pairs = (
        ImageIndex.build(tmp_path / name, tmp_path / f"index {name}", Tiles()).match(queries)
        for name in ("alone", "in pairs")
    )
    assert alone.reproduced.tolist() == [True, True, False]
    assert pairs.relative[0] <= 1
    assert pairs.p_values[0] > 0.5
    assert pairs.reproduced.tolist() == [False, True, False]
    assert pairs.p_values[1] == 0.01
    assert pairs.p_values[2] == 1


def test_a_small_index_says_how_little_it_knows(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    copy = tensor(pictures / index.paths[3])[None]
    assert index.match(copy, rate=0.05).reproduced.all()
    strict = index.match(copy)
    assert not strict.reproduced.any()
    assert strict.p_values[0] == 1 / 40


def test_what_shows_next_to_nothing_is_no_match(pictures, tmp_path):
    """However near: a picture that a safety checker has blacked out, the white ground of many pictures."""
    Image.new("RGB", (64, 64)).save(pictures / "black.png")
    for number in range(20):
        picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(number))
        picture[:, 40:] = 1
        save(pictures / f"ground-{number:02}.png", picture.numpy())
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    ground = torch.rand(3, 64, 64)
    ground[:, :, 32:] = 0.99
    masks = torch.zeros(2, 64, 64)
    masks[0], masks[1, :, 40:] = 1, 1
    found = index.match(torch.stack([torch.zeros(3, 64, 64), ground]), masks=masks, rate=0.2)
    assert (found.relative <= 0.2).all()
    assert found.p_values.tolist() == [1, 1]
    assert not found.reproduced.any()


def test_an_empty_mask_matches_nothing(pictures, tmp_path):
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    mask = torch.zeros(1, 64, 64)
    mask[0, :4, :4] = 1  # a sliver of one tile
    assert index.search(torch.rand(1, 3, 64, 64), masks=mask).distances.isinf().all()


def stopped_build(images, folder, after):
    def stop(done, total):
        if done >= after:
            os._exit(1)

    ImageIndex.build(images, folder, Tiles(), shard=5, progress=stop)


def test_a_killed_build_goes_on(pictures, tmp_path):
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
    assert seen[0][0] > 5  # what was described before is not described again
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
    (pictures / "new.png").unlink()
    with pytest.raises(UsageError, match="1 pictures of the index are gone"):
        ImageIndex.build(pictures, tmp_path / "index", Tiles())


def test_what_cannot_be_read_is_skipped_and_named(pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (pictures / "empty.jpg").touch()
    (pictures / "notes.txt").write_text("not a picture")
    save(tmp_path / "outside" / "secret.png", np.zeros((64, 64, 3)))
    (pictures / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (pictures / "folder").symlink_to(tmp_path / "outside")
    index = ImageIndex.build(pictures, tmp_path / "index", Tiles())
    assert len(index) == 40
    assert set(index.skipped) == {"broken.png", "empty.jpg", "link.png", "folder"}
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
    (folder / "index.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(UsageError, match="index format 2, this version reads 1"):
        ImageIndex(folder, Tiles())
    (folder / "index.json").write_text("[]")
    with pytest.raises(UsageError, match="is not an index"):
        ImageIndex(folder, Tiles())


def bomb(path):
    """A small PNG file that says it holds 900 million pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0), b"IDAT": zlib.compress(b"\0")}
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_files_that_lie_about_what_they_are_do_no_harm(pictures, tmp_path):
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


def test_the_command_counts_and_names_what_it_skips(pictures, tmp_path, monkeypatch, capsys):
    for number in range(12):
        (pictures / f"broken-{number:02}.jpg").write_text("no picture")
    monkeypatch.setattr(sys, "argv", ["cryptomnesia", "index", "build", str(pictures), "-o", str(tmp_path / "index")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert not stopped.value.code
    assert "40 pictures by tiles" in said.out
    assert "skipped broken-09.jpg: UnidentifiedImageError" in said.err
    assert "skipped 2 more" in said.err
