import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from medx.privacy import SampledGaussian
from medx.privacy.accounting import epsilon_pld
from medx.privacy.ledger import PrivacyLedger, Reservation
from medx.schema import LedgerError

DELTA = 1e-5
STEP = SampledGaussian(1.0, 15.0, 0.1)


def asked(run_id="run", steps=60, data="hash/0", noise_source="seed", step=STEP):
    return Reservation(run_id, data, step, steps, noise_source)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledgers" / "client_0.sqlite"


@pytest.fixture
def ledger(path):
    ledger = PrivacyLedger(path, create=True)
    yield ledger
    ledger.close()


def spent_steps(ledger, data="hash/0"):
    return [steps for _, steps in ledger.spent(data)]


def test_a_reservation_counts_in_full_until_the_run_is_finished(ledger):
    ledger.reserve(asked(), delta=DELTA, budget=None)
    assert ledger.begin_round("run", 1, 6) == 0
    ledger.commit_round("run", 1)
    ledger.begin_round("run", 2, 6)  # begun and never committed: its data may have been touched
    assert ledger.executed("run") == [(STEP, 12)]
    assert spent_steps(ledger) == [60]
    ledger.finish("run")
    assert spent_steps(ledger) == [12]
    assert ledger.epsilon("hash/0", DELTA) == epsilon_pld([(STEP, 12)], DELTA)
    with pytest.raises(LedgerError, match="finished"):
        ledger.begin_round("run", 3, 6)


def test_a_ledger_may_be_closed_while_a_thread_uses_it(path):
    for attempt in range(20):
        ledger = PrivacyLedger(path, create=attempt == 0)
        ledger.reserve(asked(f"run {attempt}", steps=10**6), delta=DELTA, budget=None)

        def use(ledger=ledger, run=f"run {attempt}"):
            for number in range(10**6):
                ledger.begin_round(run, number, 1)

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
    ledger.reserve(asked("other data", data="hash/1"), delta=DELTA, budget=budget)
    ledger.begin_round("first", 1, 40)
    ledger.finish("first")
    ledger.reserve(asked("second"), delta=DELTA, budget=budget)  # 40 executed and 60 reserved fit exactly
    with pytest.raises(LedgerError, match="exceeded"):
        ledger.reserve(asked("first"), delta=DELTA, budget=budget)  # re-opening asks for all of it again
    with pytest.raises(LedgerError, match="was reserved as"):
        ledger.reserve(asked("second", steps=61), delta=DELTA, budget=None)
    with pytest.raises(LedgerError, match="no reservation"):
        ledger.begin_round("third", 1, 1)


def test_a_round_beyond_the_reservation_does_not_start(ledger):
    ledger.reserve(asked(steps=10), delta=DELTA, budget=None)
    ledger.begin_round("run", 1, 6)
    with pytest.raises(LedgerError, match="6 of the 10 reserved"):
        ledger.begin_round("run", 2, 6)
    assert ledger.executed("run") == [(STEP, 6)]
    with pytest.raises(LedgerError, match="never begun"):
        ledger.commit_round("run", 2)


def test_a_repeated_round_is_charged_with_system_noise_only(ledger):
    for source, attempts, steps in (("seed", [0, 0, 0], 6), ("system", [0, 1, 2], 18)):
        ledger.reserve(asked(source, steps=18, noise_source=source), delta=DELTA, budget=None)
        assert [ledger.begin_round(source, 1, 6) for _ in range(3)] == attempts
        assert ledger.executed(source) == [(STEP, steps)]
    with pytest.raises(LedgerError, match="18 of the 18"):
        ledger.begin_round("system", 1, 6)
    with pytest.raises(LedgerError, match="with 6 steps, now 5"):
        ledger.begin_round("seed", 1, 5)  # not the same computation


VICTIM = """
import os, signal, sys
from pathlib import Path
from medx.privacy import SampledGaussian
from medx.privacy.ledger import PrivacyLedger, Reservation
ledger = PrivacyLedger(Path(sys.argv[1]), create=True)
ledger.reserve(Reservation("run", "hash/0", SampledGaussian(1.0, 15.0, 0.1), 60, "system"), delta=1e-5, budget=None)
for index in range(1, 4):
    ledger.begin_round("run", index, 6)
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
    assert ledger.begin_round("run", 3, 6) == 1
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
    assert ledger.epsilon("hash/0", DELTA) <= budget
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
        impatient.begin_round("run", 1, 6)
    holder.execute("ROLLBACK")
    assert impatient.begin_round("run", 1, 6) == 0
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
    with pytest.raises(LedgerError, match="ledger"):
        PrivacyLedger(path, create=create)
    assert before == (path.read_bytes() if path.is_file() else None)
