"""Files appear whole or not at all, are made once, and have one writer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from medx import files


def test_a_write_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(UnicodeEncodeError), files.replaced(tmp_path / "a.json") as aside:
        aside.write_text("half" * 10_000 + "\udcff", encoding="utf-8")
    assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_of_many_who_create_one_file_one_wins_and_nobody_sees_half(tmp_path: Path):
    path = tmp_path / "once"
    barrier = threading.Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        with suppress(FileExistsError), files.created(path) as aside:
            assert not path.exists() or path.read_text() in {str(other) * 9 for other in range(8)}
            aside.write_text(str(number) * 9)
        return path.read_text() == str(number) * 9

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_private_from_its_first_moment(tmp_path: Path):
    with files.created(tmp_path / "key", private=True) as aside:
        assert aside.stat().st_mode & 0o77 == 0
    assert (tmp_path / "key").stat().st_mode & 0o77 == 0


def test_a_lock_keeps_others_out_until_its_block_ends(tmp_path: Path):
    lock = tmp_path / "new" / "lock"
    with files.locked(lock), pytest.raises(BlockingIOError), files.locked(lock, wait=False):
        pass
    with files.locked(lock, wait=False):
        pass
