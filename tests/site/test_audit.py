"""An audit log that was changed says where, and one that cannot be written lets nothing happen."""

import hashlib
import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from medx.site.audit import FIRST, AuditError, AuditLog, entries, head, verify


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("refused", study="a" * 64, rules=("max_epsilon",), epsilon=float("nan"), path=Path("x"))
    log.write("admitted", study="b" * 64, note="Köln \x1b\r\n\udcff")
    log.write("admitted")
    return log


def broken(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(AuditError) as error:
        verify(path)
    text = str(error.value)
    assert text.isprintable()
    assert "accepted: " in text
    return text


def test_entries_are_chained_counted_and_private(log: AuditLog):
    first, second, third = entries(log.path)
    assert [first.previous, second.previous, third.previous] == [FIRST, first.hash, second.hash]
    assert first.details == {"study": "a" * 64, "rules": ["max_epsilon"], "epsilon": "nan", "path": "x"}
    assert second.details["note"] == "Köln \x1b\r\n\udcff"
    assert first.time.endswith("+00:00")
    assert (verify(log.path), head(log.path)) == (3, (3, third.hash))
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.read_bytes().isascii()
    assert log.path.read_bytes().count(b"\n") == 3


def test_every_byte_that_is_flipped_is_found_in_its_line(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("admitted", a=[1.5, None])
    log.path.write_bytes(log.path.read_bytes() + b'{"de')  # torn, and closed by what follows
    log.write("refused")
    content = log.path.read_bytes()
    assert verify(log.path) == 3
    for at in range(len(content)):
        line = content[:at].count(b"\n") + 1
        for bit in (32, 1 << at % 8):  # 32: a letter's case
            flipped = bytes([content[at] ^ bit])
            assert f"line {line} " in broken(log.path, content[:at] + flipped + content[at + 1 :])


def test_removed_inserted_and_moved_lines_are_found(log: AuditLog, tmp_path: Path):
    one, two, three = log.path.read_bytes().splitlines(keepends=True)
    other = AuditLog(tmp_path / "other")
    other.write("admitted", study="c")
    foreign = other.path.read_bytes()
    for lines, number in (
        ([two, three], 1),
        ([one, three], 2),
        ([one, one, two, three], 2),
        ([one, two, two, three], 3),
        ([one, two, three, three], 4),
        ([two, one, three], 1),
        ([one, three, two], 2),
        ([foreign, two, three], 2),
        ([one, two, three, foreign], 4),
        ([one, b"\n", two, three], 2),
        ([one, two + b" ", three], 3),
    ):
        assert f"line {number} " in broken(log.path, b"".join(lines)), number


def test_an_entry_whose_number_alone_is_wrong_is_found(log: AuditLog):
    *before, last = log.path.read_bytes().splitlines(keepends=True)
    entry = json.loads(last) | {"number": 4}
    del entry["hash"]
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    entry["hash"] = hashlib.sha256(b"medx audit v1\0" + text.encode()).hexdigest()
    line = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert "line 3 is entry 4 and does not follow" in broken(log.path, b"".join([*before, line]))


def test_an_entry_that_was_made_anew_breaks_the_chain_after_it_and_the_noted_head(log: AuditLog, tmp_path: Path):
    noted = head(log.path)
    one, *_ = lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(one)
    AuditLog(log.path).write("admitted", study="forged")
    log.path.write_bytes(log.path.read_bytes() + lines[2])
    assert "line 3 " in broken(log.path, log.path.read_bytes())
    log.path.write_bytes(b"".join(lines[:2]))  # cut off at the end: only the head tells
    assert verify(log.path) == 2
    with pytest.raises(AuditError, match=f"entry 3 with hash {noted[1]} is not in it, though it has 2 entries"):
        verify(log.path, noted)
    log.path.write_bytes(b"".join(lines))
    AuditLog(log.path).write("later")
    assert verify(log.path, noted) == 4
    assert verify(log.path, (0, FIRST)) == 4
    with pytest.raises(AuditError, match="is not in it"):
        verify(log.path, (2, noted[1]))


def test_a_line_that_was_cut_off_is_closed_by_the_next_and_the_chain_holds(log: AuditLog):
    content = log.path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    for length in (1, 50, len(last) - 1):
        torn = last[:length]
        assert "line 4 is cut off" in broken(log.path, content + torn)
        assert head(log.path)[0] == 3
        log.write("admitted")
        assert log.path.read_bytes().startswith(content + torn)  # nothing is taken away
        assert [entry.event for entry in entries(log.path)][3:] == ["torn", "admitted"]
        assert list(entries(log.path))[3].details["bytes"] == length
    # The closing entry is cut off too; then there is nothing but torn bytes.
    closing = log.path.read_bytes().splitlines(keepends=True)[3]
    log.path.write_bytes(content + closing[:-9])
    log.write("admitted")
    assert verify(log.path) == 5
    log.path.write_bytes(b"{")
    log.write("admitted")
    assert (verify(log.path), head(log.path)[0]) == (2, 2)


def test_nothing_follows_on_a_last_line_that_was_changed(log: AuditLog):
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-5] + b"xxxx\n")
    with pytest.raises(AuditError, match="its last line is not as it was written"):
        log.write("admitted")
    assert log.path.read_bytes() == content[:-5] + b"xxxx\n"


def write_many(path: Path, start: "multiprocessing.synchronize.Barrier", name: str) -> None:
    start.wait()
    for number in range(50):
        AuditLog(path).write("admitted", by=name, number=number)


def test_two_processes_at_once_make_one_chain(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    path = tmp_path / "audit.jsonl"
    writers = [context.Process(target=write_many, args=(path, start, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert verify(path) == 100
    for name in "ab":
        mine = [entry.details["number"] for entry in entries(path) if entry.details["by"] == name]
        assert mine == list(range(50))


def write_on_a_full_disk(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, resource.RLIM_INFINITY))
    try:
        AuditLog(path).write("admitted")
    except AuditError as error:
        os._exit(7 if "File too large" in str(error) and "does not happen; accepted: " in str(error) else 8)
    os._exit(9)


def test_a_full_disk_is_an_error_and_the_log_goes_on_once_there_is_space(log: AuditLog):
    process = multiprocessing.get_context("fork").Process(target=write_on_a_full_disk, args=(log.path,))
    process.start()
    process.join(30)
    assert process.exitcode == 7
    log.write("admitted")
    assert [entry.event for entry in entries(log.path)] == ["refused", "admitted", "admitted", "torn", "admitted"]


def test_a_log_that_cannot_be_used_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "log", tmp_path / ("x" * 300)):
        with pytest.raises(AuditError, match="so it does not happen; accepted: "):
            AuditLog(path).write("admitted")
        for read in (verify, head):
            with pytest.raises(AuditError, match="accepted: a log that this user may read"):
                read(path)
    shared = AuditLog(tmp_path / "shared")
    shared.write("admitted")
    shared.path.chmod(0o620)
    with pytest.raises(AuditError, match="has mode 620; accepted: 600"):
        shared.write("admitted")
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(tmp_path / "huge").write("admitted", number=10**5000)


def test_a_write_reads_the_end_alone(log: AuditLog, monkeypatch: pytest.MonkeyPatch):
    log.write("admitted", note="x" * 10_000)  # more than a block
    log.path.write_bytes(b"no entry\n" * 100_000 + log.path.read_bytes())
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: (read.append(args[1]), pread(*args))[1])
    assert log.write("admitted").number == 5
    assert sum(read) < 50_000
    assert json.loads(log.path.read_bytes().splitlines()[-1])["number"] == 5
