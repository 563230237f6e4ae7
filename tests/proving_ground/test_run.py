from cryptomnesia.proving_ground.run import replace_folder


def test_what_a_killed_run_was_writing_is_written_anew(tmp_path):
    (tmp_path / "made.unfinished").mkdir()
    (tmp_path / "made.unfinished" / "old").touch()
    replace_folder(tmp_path / "made", lambda folder: folder.mkdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["made"]
