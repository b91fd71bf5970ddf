"""A hospital admits what its policy allows and nothing else, and says which rule refused."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml

import medx
from medx.site.approvals import Approvals, admit
from medx.site.policy import TEMPLATE, Asked, Policy, PolicyError, as_table, check, refusals

STUDY, OTHER, SERVER = "a1" * 32, "b2" * 32, "c3" * 32
ODD = (math.nan, math.inf, -math.inf, -1, True, "3", [3], 10**400, -(10**5000), np.float64("nan"), np.arange(3), 3j)


def asked(**changes) -> Asked:
    values = {
        "study": STUDY,
        "title": "Pneumonia at three hospitals",
        "datasets": "folder",
        "mechanism": "distributed_dp",
        "epsilon": 10.0,
        "delta": 1e-4,
        "unit": "patient",
        "noise_source": "system",
        "secure": True,
        "num_hospitals": 3,
        "peers": (OTHER, SERVER),
        "assumed_colluders": 0,
        "minimum_survivors": 3,
        "num_rounds": 1000,
        "max_abstentions": 10,
        "model": "cnn",
        "version": medx.__version__,
        "num_records": 100,
        "coordinator": SERVER,
    }
    return Asked(**(values | changes))


def template(**changes) -> dict:
    return yaml.safe_load(TEMPLATE.read_text()) | changes


def policy(**changes) -> Policy:
    return Policy.model_validate(template(**changes))


def load(folder: Path, text: str, mode: int = 0o600) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text)
    path.chmod(mode)
    return Policy.load(path)


def broken(rules: Policy, study: Asked) -> list[str]:
    return [refusal.rule for refusal in refusals(rules, study)]


def one_line(error: pytest.ExceptionInfo[PolicyError]) -> str:
    text = str(error.value)
    assert text.isprintable(), text
    assert text.isascii(), text
    assert "accepted: " in text or "did you mean" in text, text
    return text


OPEN = {"secure_aggregation": False, "trusted_server": SERVER}
BARE = {"mechanism": "none", "epsilon": None, "delta": None, "unit": None, "max_abstentions": None}
SEEDED = {"mechanism": "local_dp", "noise_source": "seed"}
# The rule, the policy's change, a study that just passes, one that just fails by this rule alone.
RULES = [
    ("studies", {"approval": "listed", "studies": [STUDY]}, {}, {"study": OTHER}),
    ("studies", {}, {}, {"study": STUDY.upper()}),
    ("studies", {}, {}, {"study": STUDY + "\n"}),
    ("datasets", {"datasets": ["phantom", "folder"]}, {"datasets": "phantom"}, {"datasets": "phantom "}),
    ("models", {}, {"model": "resnet18"}, {"model": "resnet"}),
    ("versions", {}, {}, {"version": medx.__version__ + ".1"}),
    ("versions", {"versions": ["0.1.0"]}, {"version": "0.1.0"}, {}),
    ("mechanisms", {}, {"mechanism": "local_dp"}, {"mechanism": "central_dp"}),
    ("units", {}, {"unit": "record"}, {"unit": "client"}),
    ("units", {"mechanisms": ["none"]}, BARE, BARE | {"unit": "client"}),
    ("units", {"mechanisms": ["none"]}, BARE, BARE | {"epsilon": 3.0, "delta": 1e-5, "max_abstentions": 0}),
    ("max_epsilon", {}, {"epsilon": 10}, {"epsilon": math.nextafter(10, 11)}),
    ("max_epsilon", {"mechanisms": ["none", "local_dp"]}, BARE, {"mechanism": "local_dp", "epsilon": None}),
    ("max_delta", {}, {"delta": 0.0}, {"delta": math.nextafter(1e-4, 1)}),
    ("noise_sources", {"noise_sources": ["seed"]}, {"noise_source": "seed"}, {"noise_source": "system"}),
    ("noise_sources", {"mechanisms": ["none", "local_dp"]}, BARE | {"noise_source": "seed"}, SEEDED),
    ("secure_aggregation", {"trusted_server": SERVER}, {}, {"secure": False}),
    ("trusted_server", OPEN, {"secure": False}, {"secure": False, "coordinator": OTHER}),
    ("trusted_server", OPEN | {"trusted_server": None}, {"coordinator": OTHER}, {"secure": False}),
    ("peers", {"peers": [OTHER, SERVER]}, {}, {"peers": (OTHER, STUDY)}),
    ("assumed_colluders", {"assumed_colluders": 1}, {"assumed_colluders": 1}, {}),
    ("minimum_hospitals", {}, {}, {"num_hospitals": 2}),
    ("minimum_survivors", {}, {"minimum_survivors": np.int64(3)}, {"minimum_survivors": 2}),
    ("minimum_records", {}, {}, {"num_records": 99}),
    ("maximum_rounds", {}, {}, {"num_rounds": 1001}),
    ("maximum_abstentions", {}, {"max_abstentions": 0}, {"max_abstentions": 11}),
    ("maximum_abstentions", {}, {}, {"max_abstentions": None}),
]


@pytest.mark.parametrize(("rule", "change", "passes", "fails"), RULES)
def test_each_rule_admits_what_just_keeps_it_and_refuses_what_just_breaks_it(rule, change, passes, fails):
    assert broken(policy(**change), asked(**passes)) == []
    check(policy(**change), asked(**passes))
    assert broken(policy(**change), asked(**fails)) == [rule]
    with pytest.raises(PolicyError, match=f"^policy: {rule}: ") as error:
        check(policy(**change), asked(**fails))
    assert error.value.rules == (rule,)
    one_line(error)


def test_every_rule_is_tried_and_stands_in_the_table():
    later = {"approval", "total_epsilon"}
    assert {rule for rule, *_ in RULES} == set(Policy.model_fields) - later
    table = as_table(policy(), asked(model="vit", title="x\x1b[2J\n" * 40, coordinator="z" * 500))
    assert max(map(len, table.splitlines())) <= 80
    assert len(table.splitlines()) < 50
    assert all(line.isprintable() and line.isascii() for line in table.splitlines())
    words = [line.split() for line in table.splitlines() if line]
    verdicts = {row[0]: row[-1] for row in words if row[0] in Policy.model_fields}
    assert set(verdicts) == set(Policy.model_fields)
    assert {name for name, verdict in verdicts.items() if verdict == "refused"} == {"models"}
    assert {name for name, verdict in verdicts.items() if verdict == "later"} == later


def test_all_that_fails_is_named():
    with pytest.raises(PolicyError) as error:
        check(policy(), asked(epsilon=12.0, model="vit", secure=False))
    assert error.value.rules == ("models", "max_epsilon", "secure_aggregation", "trusted_server")
    assert "max_epsilon: the study asks for 12, accepted: at most 10; " in one_line(error)


@pytest.mark.parametrize("name", [field.name for field in fields(Asked)])
@pytest.mark.parametrize("open_to_all", [False, True])
def test_odd_values_are_refused_never_compared(name, open_to_all):
    names = {"max_epsilon": 1e300, "max_delta": 0.99, "maximum_rounds": 2**60, "maximum_abstentions": 2**60}
    rules = policy(**(OPEN | names | {"mechanisms": ["none", "local_dp", "distributed_dp"]} if open_to_all else {}))
    text = name in ("title", "coordinator")  # the first is no rule's, the second only where updates are single
    base = {"secure": False} if name == "coordinator" and open_to_all else {}
    at_least = name in ("num_hospitals", "assumed_colluders", "minimum_survivors", "num_records")
    for value in (*ODD, None, "", object()):
        enough = at_least and isinstance(value, int) and value == 10**400
        yes = name == "secure" and value is True
        found = refusals(rules, asked(**(base | {name: value})))
        assert bool(found) != (enough or yes or (text and not base)), value
        assert all(refusal.text.isprintable() and len(refusal.text) < 400 for refusal in found)
        assert as_table(rules, asked(**(base | {name: value})))


def test_a_policy_whose_lists_are_empty_admits_nothing():
    numbers = {name: value for name, value in template().items() if type(value) in (int, float)}
    rules = Policy.model_validate(numbers)
    assert broken(rules, asked()) == ["datasets", "models", "mechanisms", "units"]
    assert broken(rules, asked(**BARE)) != []


def test_the_template_is_a_policy_with_a_comment_on_every_key(tmp_path: Path):
    rules = load(tmp_path, TEMPLATE.read_text())
    assert set(template()) == set(Policy.model_fields)
    assert (rules.approval, rules.max_epsilon, rules.total_epsilon, rules.max_delta) == ("prompt", 10, 20, 1e-4)
    lines = TEMPLATE.read_text().splitlines()
    for name in Policy.model_fields:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert any(line.startswith("#") for line in lines[at - 2 : at]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_epsilom": 3}, "max_epsilom is unknown; did you mean max_epsilon"),
        ({"max_epsilon": 0}, "max_epsilon = 0; accepted: greater than 0"),
        ({"max_epsilon": math.nan}, "max_epsilon = nan; accepted: "),
        ({"max_epsilon": math.inf}, "max_epsilon = inf; accepted: "),
        ({"max_epsilon": True}, "max_epsilon = True; accepted: "),
        ({"max_epsilon": "many"}, "max_epsilon = many; accepted: "),
        ({"max_delta": 1}, "max_delta = 1; accepted: less than 1"),
        ({"models": "cnn"}, "models = cnn; accepted: a valid list"),
        ({"mechanisms": ["dp"]}, "mechanisms.0 = dp; accepted: 'local_dp', "),
        ({"studies": ["../x"], "approval": "listed"}, "studies.0 = ../x; accepted: "),
        ({"studies": [STUDY]}, "studies has no meaning with approval: prompt; accepted: "),
        ({"minimum_hospitals": 2}, "minimum_hospitals = 2; accepted: at least 3"),
        ({"minimum_survivors": 2}, "minimum_survivors = 2; accepted: at least 3"),
        ({"minimum_hospitals": 0} | OPEN, "minimum_hospitals = 0; accepted: "),
        ({"secure_aggregation": "off, please"}, "secure_aggregation = off, please; accepted: "),
        ({"maximum_rounds": 3.0}, "maximum_rounds = 3; accepted: "),
        ({"total_epsilon": None}, "total_epsilon = None; accepted: "),
        ({"unk\nown\x1b": 1}, "is unknown; "),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_key(tmp_path: Path, change, said):
    with pytest.raises(PolicyError) as error:
        load(tmp_path, yaml.safe_dump(template(**change)))
    assert said in one_line(error)


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [", "\x00", "a: !!python/name:os.system", "- " * 3000, "{a: 2026-99-99}"]
)
def test_what_is_no_policy_is_refused_in_one_line(tmp_path: Path, text):
    with pytest.raises(PolicyError) as error:
        load(tmp_path, text)
    one_line(error)


def test_a_policy_is_a_file_of_its_own_that_others_cannot_write_to(tmp_path: Path):
    with pytest.raises(PolicyError, match=r"policy\.yaml is missing: nothing is allowed; accepted: ") as error:
        Policy.load(tmp_path / "policy.yaml")
    one_line(error)
    with pytest.raises(PolicyError, match="nothing is allowed"):
        Policy.load(tmp_path)
    assert load(tmp_path, TEMPLATE.read_text(), 0o644)
    for mode in (0o620, 0o602):
        with pytest.raises(PolicyError, match=f"has mode {mode:o}; accepted: "):
            load(tmp_path, TEMPLATE.read_text(), mode)
    with pytest.raises(PolicyError, match="max_epsilon stands twice"):
        load(tmp_path, TEMPLATE.read_text() + "max_epsilon: 100\n")
    assert load(tmp_path, TEMPLATE.read_text().replace("1.0e-4", "1e-4")).max_delta == 1e-4  # text, as YAML has it


def test_a_study_waits_for_a_person_whose_last_word_counts(tmp_path: Path):
    approvals = Approvals(tmp_path / "approvals")
    assert (approvals.state(STUDY), approvals.listed()) == ("pending", [])
    with pytest.raises(PolicyError, match=f"pending: approve it with medx site approve KIT {STUDY}$") as error:
        admit(policy(), approvals, asked())
    assert error.value.rules == ("approval",)
    approvals.ask(STUDY, "first\x1b[2J\nline")
    approvals.ask(STUDY, "another")
    assert [(entry.study, entry.state, entry.summary) for entry in approvals.listed()] == [
        (STUDY, "pending", "first?[2J\nline\n")
    ]
    approvals.decide(STUDY, True, "ethics vote 12")
    admit(policy(), Approvals(tmp_path / "approvals"), asked())
    with pytest.raises(PolicyError) as error:  # an approval is of one study, and stands above no rule
        admit(policy(), approvals, asked(epsilon=11))
    assert error.value.rules == ("max_epsilon",)
    with pytest.raises(PolicyError, match="pending"):
        admit(policy(), approvals, asked(study=OTHER))
    approvals.decide(STUDY, False, "withdrawn")
    with pytest.raises(PolicyError, match="refused by this hospital; accepted") as error:
        admit(policy(), approvals, asked())
    one_line(error)
    (entry,) = approvals.listed()
    assert (entry.state, entry.note, entry.summary) == ("refused", "withdrawn", "first?[2J\nline\n")
    assert entry.user
    assert entry.time.endswith("+00:00")
    names = sorted(path.name for path in (tmp_path / "approvals").iterdir())
    assert names == [f"{STUDY}.json", f"{STUDY}.pending"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "approvals").rglob("*"))


def test_a_listed_study_needs_nobody_but_a_refusal_counts(tmp_path: Path):
    rules, approvals = policy(approval="listed", studies=[STUDY]), Approvals(tmp_path)
    admit(rules, approvals, asked())
    approvals.decide(OTHER, True, "")
    with pytest.raises(PolicyError) as error:
        admit(rules, approvals, asked(study=OTHER))
    assert error.value.rules == ("studies",)
    approvals.decide(STUDY, False, "")
    with pytest.raises(PolicyError, match="approval: refused"):
        admit(rules, approvals, asked())


def test_a_garbled_or_foreign_decision_is_a_refusal(tmp_path: Path):
    approvals = Approvals(tmp_path)
    approvals.decide(STUDY, True, "")
    path = tmp_path / f"{STUDY}.json"
    whole = path.read_bytes()
    (tmp_path / f"{OTHER}.json").write_bytes(whole)
    assert (approvals.state(STUDY), approvals.state(OTHER)) == ("approved", "refused")
    changed = [whole.replace(b'"approved"', word) for word in (b'"pending"', b'"APPROVED"', b"true", b"null")]
    for content in (b"", b"[]", b"\xff", whole[:-1], whole + b"}", b"[" * 9999, *changed):
        path.write_bytes(content)
        assert approvals.state(STUDY) == "refused", content[:40]
    path.unlink()
    path.mkdir()
    assert approvals.state(STUDY) == "refused"
    path.rmdir()
    path.write_bytes(whole)
    for place, mode in ((path, 0o666), (tmp_path, 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert approvals.state(STUDY) == "refused"
        place.chmod(before & 0o755)


@pytest.mark.parametrize(
    "digest", ["../" + "a" * 61, "a" * 63, "A" * 64, "a" * 64 + "\n", "", None, "a/" * 32, "\0" * 64]
)
def test_what_is_no_digest_is_no_file(tmp_path: Path, digest):
    approvals = Approvals(tmp_path / "in")
    for act in (
        lambda: approvals.state(digest),
        lambda: approvals.decide(digest, True, ""),
        lambda: approvals.ask(digest, ""),
    ):
        with pytest.raises(PolicyError, match="64 lowercase hex digits"):
            act()
    assert list(tmp_path.iterdir()) == []
