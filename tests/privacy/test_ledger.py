import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from medx.privacy import SampledGaussian
from medx.privacy.accounting import epsilon_pld
from medx.privacy.ledger import PrivacyLedger, Reservation
from medx.privacy.ledger_folder import make_folder, record_set
from medx.schema import LedgerError

DELTA = 1e-5
STEP = SampledGaussian(1.0, 15.0, 0.1)


MODEL = b"model"


def asked(run_id="run", steps=60, noise_source="seed", *, step=STEP, records=None, unit="record"):
    return Reservation(run_id, step, steps, noise_source, unit, records)


def images(*numbers):
    """One image for each number, none equal to another's."""
    return np.stack([np.random.default_rng(number).integers(0, 256, (4, 4, 1), np.uint8) for number in numbers])


def records(folder, *numbers):
    return record_set(images(*numbers), folder)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledgers" / "client_0.sqlite"


@pytest.fixture
def ledger(path):
    ledger = PrivacyLedger(path, create=True)
    yield ledger
    ledger.close()


def spent_steps(ledger):
    return [entry.event[1] for entry in ledger.entries()]


def epsilon(*steps, step=STEP):
    return epsilon_pld([(step, count) for count in steps], DELTA)


def test_a_reservation_counts_in_full_until_the_run_is_finished(ledger):
    ledger.reserve(asked(), delta=DELTA, budget=None)
    assert ledger.begin_round("run", 1, 6, release=MODEL) == 0
    ledger.commit_round("run", 1)
    ledger.begin_round("run", 2, 6, release=MODEL)  # begun and never committed: its data may have been touched
    assert ledger.executed("run") == [(STEP, 12)]
    assert spent_steps(ledger) == [60]
    ledger.finish("run")
    assert spent_steps(ledger) == [12]
    with pytest.raises(LedgerError, match="finished"):
        ledger.begin_round("run", 3, 6, release=MODEL)


def test_a_ledger_may_be_closed_while_a_thread_uses_it(path):
    for attempt in range(20):
        ledger = PrivacyLedger(path, create=attempt == 0)
        ledger.reserve(asked(f"run {attempt}", steps=10**6), delta=DELTA, budget=None)

        def use(ledger=ledger, run=f"run {attempt}"):
            for number in range(10**6):
                ledger.begin_round(run, number, 1, release=MODEL)

        with ThreadPoolExecutor(1) as pool:
            using = pool.submit(use)
            time.sleep(0.01)
            ledger.close()
            with pytest.raises(LedgerError, match="cannot be used: Cannot operate on a closed database"):
                using.result(30)


def test_runs_on_the_same_data_compose_up_to_the_budget(ledger):
    budget = epsilon_pld([(STEP, 100)], DELTA)
    ledger.reserve(asked("first"), delta=DELTA, budget=budget)
    with pytest.raises(LedgerError, match=r"budget=.* would be exceeded: .* by 1 run\(s\)"):
        ledger.reserve(asked("second"), delta=DELTA, budget=budget)
    assert spent_steps(ledger) == [60]
    ledger.begin_round("first", 1, 40, release=MODEL)
    ledger.finish("first")
    ledger.reserve(asked("second"), delta=DELTA, budget=budget)  # 40 executed and 60 reserved fit exactly
    with pytest.raises(LedgerError, match="exceeded"):
        ledger.reserve(asked("first"), delta=DELTA, budget=budget)  # re-opening asks for all of it again
    with pytest.raises(LedgerError, match="was reserved as"):
        ledger.reserve(asked("second", steps=61), delta=DELTA, budget=None)
    with pytest.raises(LedgerError, match="no reservation"):
        ledger.begin_round("third", 1, 1, release=MODEL)


def test_a_round_beyond_the_reservation_does_not_start(ledger):
    ledger.reserve(asked(steps=10), delta=DELTA, budget=None)
    ledger.begin_round("run", 1, 6, release=MODEL)
    with pytest.raises(LedgerError, match="6 of the 10 reserved"):
        ledger.begin_round("run", 2, 6, release=MODEL)
    assert ledger.executed("run") == [(STEP, 6)]
    with pytest.raises(LedgerError, match="never begun"):
        ledger.commit_round("run", 2)


def test_a_repeated_round_is_charged_with_system_noise_only(ledger):
    for source, attempts, steps in (("seed", [0, 0, 0], 6), ("system", [0, 1, 2], 18)):
        ledger.reserve(asked(source, steps=18, noise_source=source), delta=DELTA, budget=None)
        assert [ledger.begin_round(source, 1, 6, release=MODEL) for _ in range(3)] == attempts
        assert ledger.executed(source) == [(STEP, steps)]
    with pytest.raises(LedgerError, match="18 of the 18"):
        ledger.begin_round("system", 1, 6, release=MODEL)
    with pytest.raises(LedgerError, match="with 6 steps, now 5"):
        ledger.begin_round("seed", 1, 5, release=MODEL)  # not the same computation


VICTIM = """
import os, signal, sys
from pathlib import Path
from medx.privacy import SampledGaussian
from medx.privacy.ledger import PrivacyLedger, Reservation
from medx.privacy.ledger_folder import make_folder, record_set
ledger = PrivacyLedger(Path(sys.argv[1]), create=True)
ledger.reserve(Reservation("run", SampledGaussian(1.0, 15.0, 0.1), 60, "system"), delta=1e-5, budget=None)
for index in range(1, 4):
    ledger.begin_round("run", index, 6, release=b"")
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    ledger.commit_round("run", index)
"""


def test_kill_dash_nine_loses_nothing(path):
    done = subprocess.run([sys.executable, "-c", VICTIM, path], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    ledger = PrivacyLedger(path, create=False)
    assert ledger.executed("run") == [(STEP, 18)]
    assert spent_steps(ledger) == [60]
    ledger.reserve(asked(noise_source="system"), delta=DELTA, budget=None)  # the resume
    assert ledger.begin_round("run", 3, 6, release=MODEL) == 1
    assert ledger.executed("run") == [(STEP, 24)]
    ledger.close()


def test_runs_at_once_never_overspend_together(path):
    PrivacyLedger(path, create=True).close()
    budget = epsilon_pld([(STEP, 3 * 60)], DELTA)
    start = Barrier(8)

    def run(index):
        ledger = PrivacyLedger(path, create=False)
        start.wait()
        try:
            ledger.reserve(asked(f"run {index}"), delta=DELTA, budget=budget)
        except LedgerError as error:
            return str(error)
        finally:
            ledger.close()
        return ""

    with ThreadPoolExecutor(8) as pool:
        refusals = [refusal for refusal in pool.map(run, range(8)) if refusal]
    assert len(refusals) == 5
    assert all("exceeded" in refusal for refusal in refusals)
    ledger = PrivacyLedger(path, create=False)
    assert epsilon(*spent_steps(ledger)) <= budget
    ledger.close()


def test_two_that_create_at_once_share_one_ledger(path):
    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(lambda _: PrivacyLedger(path, create=True), range(4)))
    for index, ledger in enumerate(ledgers):
        ledger.reserve(asked(f"run {index}"), delta=DELTA, budget=None)
    assert spent_steps(ledgers[0]) == [60] * 4
    for ledger in ledgers:
        ledger.close()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_locked_ledger_is_refused_after_the_time_out(ledger, path):
    ledger.reserve(asked(), delta=DELTA, budget=None)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    impatient = PrivacyLedger(path, create=False, timeout=0.1)
    with pytest.raises(LedgerError, match="locked"):
        impatient.begin_round("run", 1, 6, release=MODEL)
    holder.execute("ROLLBACK")
    assert impatient.begin_round("run", 1, 6, release=MODEL) == 0
    holder.close()
    impatient.close()


def test_a_missing_ledger_is_an_error_on_resume(path):
    with pytest.raises(LedgerError, match="missing"):
        PrivacyLedger(path, create=False)
    assert not path.parent.exists()
    path.parent.mkdir()
    Path(f"{path}-wal").write_bytes(b"left behind")
    with pytest.raises(LedgerError, match="journal"):
        PrivacyLedger(path, create=True)


def other_database(path):
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE runs (x)")
    database.commit()
    database.close()


def truncated(path):
    PrivacyLedger(path, create=True).close()
    with path.open("r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def overwritten(path):
    ledger = PrivacyLedger(path, create=True)
    for index in range(80):
        ledger.reserve(asked(f"run {index}"), delta=DELTA, budget=None)
    ledger.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a database, but longer than a header"),
        other_database,
        truncated,
        overwritten,
        folder,
    ],
    ids=["empty", "text", "other", "truncated", "overwritten", "folder"],
)
@pytest.mark.parametrize("create", [True, False])
def test_a_damaged_ledger_is_refused_and_kept(path, damage, create):
    path.parent.mkdir()
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(LedgerError, match="ledger") as refused:
        PrivacyLedger(path, create=create)
    assert "restore" not in str(refused.value)  # a copy forgets what was spent since
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_ledger_that_may_not_be_read_or_made_says_so(path, monkeypatch):
    PrivacyLedger(path, create=True).close()
    with pytest.raises(LedgerError, match=r"^privacy\.ledger=.*/below: Not a directory; accepted: a folder"):
        PrivacyLedger(path / "below" / "ledger.sqlite", create=True)
    with pytest.raises(LedgerError, match="File name too long"):
        make_folder(path.parent / ("a" * 300))

    def forbidden(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for attempt in (lambda: PrivacyLedger(path, create=True), lambda: make_folder(path.parent)):
        with pytest.raises(LedgerError, match="Permission denied") as refused:
            attempt()
        assert not re.search("corrupt|damaged|remove|delete", str(refused.value))


LOOKS = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute("SELECT total(steps) FROM rounds").fetchone())
"""


@pytest.mark.parametrize("opened_again", [False, True])
def test_another_process_that_looks_at_a_ledger_takes_no_entry_away(ledger, path, opened_again):
    """Where the ledger was opened twice here, who closed it elsewhere took its journal, and all entries after."""
    ledger.reserve(asked(steps=60, noise_source="system"), delta=DELTA, budget=None)
    if opened_again:
        PrivacyLedger(path, create=False).close()
    for number in (1, 2):
        ledger.begin_round("run", number, 6, release=MODEL)
        said = subprocess.run([sys.executable, "-c", LOOKS, str(path)], capture_output=True, text=True, check=True)
        assert said.stdout == f"({6.0 * number},)\n"
    assert ledger.executed("run") == [(STEP, 12)]


def test_another_model_in_a_seeded_round_is_another_release(ledger):
    """Its noise must not be free: two releases under one noise tell what they differ in."""
    ledger.reserve(asked(steps=12), delta=DELTA, budget=None)
    assert ledger.begin_round("run", 2, 6, release=b"one") == 0
    assert ledger.begin_round("run", 2, 6, release=b"another") == 1
    assert [ledger.begin_round("run", 2, 6, release=model) for model in (b"one", b"another")] == [0, 1]
    assert ledger.executed("run") == [(STEP, 12)]
    with pytest.raises(LedgerError, match="12 of the 12 reserved"):
        ledger.begin_round("run", 2, 6, release=b"a third")


def reserve(folder, name, reservation, budget):
    ledger = PrivacyLedger(folder / f"{name}.sqlite", create=True)
    try:
        ledger.reserve(reservation, delta=DELTA, budget=budget)
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ((1, 2, 3), (1, 2, 3), True),
        ((1, 2, 3), (3, 2, 1, 1), True),  # in another order, one of them twice
        ((1, 2, 3), (1, 2, 3, 4), True),  # one record more
        ((1, 2, 3), (3, 4), True),
        ((1, 2, 3), (4, 5), False),
        ((1, 2, 3), (), False),  # a hospital without records
        (None, (4, 5), True),  # not known, so it may be any
        ((1, 2, 3), None, True),
    ],
)
def test_a_budget_follows_records_from_hospital_to_hospital(tmp_path, first, second, shared):
    budget = epsilon(100)
    sets = [None if numbers is None else records(tmp_path, *numbers) if numbers else nobody(tmp_path)
            for numbers in (first, second)]  # fmt: skip
    reserve(tmp_path, "client_0000", asked("one", records=sets[0]), budget)
    if shared:
        with pytest.raises(LedgerError, match=r"budget=.* would be exceeded: .* by 1 run\(s\) on a record"):
            reserve(tmp_path, "client_0001", asked("two", records=sets[1]), budget)
    else:
        reserve(tmp_path, "client_0001", asked("two", records=sets[1]), budget)


def nobody(folder):
    return record_set(images(1)[:0], folder)


def test_each_record_is_charged_for_the_runs_that_it_was_in(tmp_path):
    """Three runs of 60 steps, no record in more than two of them: a fourth may come up to the third 60, not beyond."""
    for index, numbers in enumerate([(1, 2), (2, 3), (3, 4)]):
        reserve(tmp_path, f"client_{index}", asked(f"run {index}", records=records(tmp_path, *numbers)), epsilon(120))
    everybody = asked("all", records=records(tmp_path, 1, 2, 3, 4, 5))
    with pytest.raises(LedgerError, match=r"by 2 run\(s\)"):
        reserve(tmp_path, "client_0", everybody, 0.999 * epsilon(180))
    reserve(tmp_path, "client_0", everybody, epsilon(180))


def test_a_hospital_spends_once_a_run_and_for_all_its_records(tmp_path):
    """The unit client: it is the same hospital where any record is, and its run may stand in several ledgers."""
    for index, numbers in enumerate([(1, 2), (3, 4)]):
        reserve(tmp_path, f"client_{index}", asked("one", unit="client", records=records(tmp_path, *numbers)), None)
    both = asked("two", unit="client", records=records(tmp_path, 1, 4, 5))
    with pytest.raises(LedgerError, match=r"by 1 run\(s\) on a client"):
        reserve(tmp_path, "server", both, 0.999 * epsilon(120))
    reserve(tmp_path, "server", both, epsilon(120))


def test_a_patient_spends_no_less_than_at_any_hospital_and_images_are_not_mixed_with_patients(tmp_path):
    """In one run a patient is at one hospital, it is not known at which; one that was in no step blocks nobody."""
    often, loud = SampledGaussian(1.0, 9.0, 0.1), SampledGaussian(0.02, 0.6, 0.1)
    for index, (step, steps) in enumerate([(often, 12), (loud, 11)]):
        one = asked("one", steps, step=step, unit="patient", records=records(tmp_path, index, index + 10))
        reserve(tmp_path, f"client_{index}", one, None)
    worst = max(epsilon_pld([(often, 12), (STEP, 60)], DELTA), epsilon_pld([(loud, 11), (STEP, 60)], DELTA))
    for touched in ((0,), (1,), (0, 1)):  # one image more never makes it less
        two = asked("two", unit="patient", records=records(tmp_path, *touched))
        spent = {(0,): epsilon_pld([(often, 12), (STEP, 60)], DELTA)}.get(touched, worst if len(touched) > 1 else None)
        spent = spent or epsilon_pld([(loud, 11), (STEP, 60)], DELTA)
        with pytest.raises(LedgerError, match=r"on a patient of this run"):
            reserve(tmp_path, "client_2", two, 0.999 * spent)
    with pytest.raises(LedgerError, match="runs whose unit is another have touched these records"):
        reserve(tmp_path, "client_3", asked("three", records=records(tmp_path, 0)), 100.0)
    withdrawn = asked("four", unit="patient", records=records(tmp_path, 30))
    ledger = PrivacyLedger(tmp_path / "client_4.sqlite", create=True)
    ledger.reserve(withdrawn, delta=DELTA, budget=None)
    ledger.finish("four")
    ledger.close()
    reserve(tmp_path, "client_5", asked("five", records=records(tmp_path, 30)), 100.0)


def test_a_lost_key_makes_every_record_the_same(tmp_path):
    reserve(tmp_path, "client_0", asked("one", records=records(tmp_path, 1, 2)), epsilon(100))
    (tmp_path / "records.key").unlink()
    with pytest.raises(LedgerError, match="exceeded"):
        reserve(tmp_path, "client_0", asked("two", records=records(tmp_path, 3)), epsilon(100))
    (tmp_path / "records.key").write_bytes(b"short")
    with pytest.raises(LedgerError, match=r"records\.key: 5 bytes"):
        records(tmp_path, 3)


def test_hospitals_of_one_folder_at_once_never_overspend_together(tmp_path):
    """Each with a ledger of its own, all with the same record."""
    start = Barrier(6)

    def run(index):
        asks = asked(f"run {index}", records=records(tmp_path, 1, 10 + index))
        start.wait()
        try:
            reserve(tmp_path, f"client_{index}", asks, epsilon(3 * 60))
        except LedgerError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(6) as pool:
        refusals = [refusal for refusal in pool.map(run, range(6)) if refusal]
    assert len(refusals) == 3
    assert all("exceeded" in refusal for refusal in refusals)


VERSION_1 = """
PRAGMA application_id = 1298490456;
PRAGMA user_version = 1;
CREATE TABLE runs (run_id TEXT PRIMARY KEY, data TEXT NOT NULL, step TEXT NOT NULL, steps INTEGER NOT NULL,
    noise_source TEXT NOT NULL, open INTEGER NOT NULL) STRICT;
CREATE TABLE rounds (run_id TEXT NOT NULL REFERENCES runs, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    steps INTEGER NOT NULL, committed INTEGER NOT NULL, PRIMARY KEY (run_id, round, attempt)) STRICT, WITHOUT ROWID;
INSERT INTO runs VALUES ('old', 'hash/0',
    '{"clip_norm": 0.1, "noise_multiplier": 15.0, "sampling_probability": 1.0}', 60, 'seed', 0);
INSERT INTO rounds VALUES ('old', 1, 0, 40, 1);
"""


def test_a_ledger_of_version_1_counts_for_every_record(path):
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.executescript(VERSION_1)
    database.close()
    ledger = PrivacyLedger(path, create=False)
    assert [entry.event for entry in ledger.entries()] == [(STEP, 40)]
    new = asked("new", records=records(path.parent, 1))
    with pytest.raises(LedgerError, match=r"by 1 run\(s\)"):
        ledger.reserve(new, delta=DELTA, budget=0.999 * epsilon(100))
    ledger.reserve(new, delta=DELTA, budget=epsilon(100))
    ledger.close()
