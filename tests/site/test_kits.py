"""Kits: what is made of a plan is what Flower and TLS read, and whoever tampers with it is refused in one line."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.auth.superexec_secret import load_superexec_auth_secret
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, _try_setup_client_authentication

from medx.aggregation.roster import read_identity
from medx.schema import ConfigError
from medx.site import certificates, kits
from medx.site.consortium import Consortium, Member, Plan, read_plan
from medx.site.site_config import SiteConfig

NAMES = ("north", "south", "west")
HOST = "medx.example.org"
SECRET_NAMES = {"ca.key", "server.key", "exec.secret", "coordinator.pem", "node.key", "identity.pem"}


def plan(**changed):
    return Plan(**{"name": "lungs", "host": HOST, "port": 8000, "hospitals": NAMES, **changed})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium") / "lungs"
    kits.init(plan(), folder)
    return folder


@pytest.fixture(scope="module")
def own_keys(tmp_path_factory):
    """Of a plan by which hospitals make their keys; nobody has."""
    folder = tmp_path_factory.mktemp("own") / "lungs"
    kits.init(plan(keys="hospital"), folder)
    return folder


@pytest.fixture
def copied(own_keys, tmp_path):
    return shutil.copytree(own_keys, tmp_path / "lungs")


def refused(call, *words):
    with pytest.raises(ConfigError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert "accepted: " in line or "did you mean" in line
    for word in words:
        assert word in line


def folders(folder):
    return [folder / "coordinator", *(folder / "kits" / name for name in NAMES)]


def test_everybody_reads_one_consortium(made):
    coordinator, *hospitals = folders(made)
    consortium = Consortium.load(coordinator)
    assert consortium.enrolled
    assert consortium.address == f"{HOST}:8000"
    for number, (name, kit) in enumerate(zip(NAMES, hospitals, strict=True)):
        assert Consortium.load(kit, consortium.coordinator).digest == consortium.digest
        assert consortium.number(name) == number
        identity = read_identity(kit / "identity.pem")
        assert identity.public_key().public_bytes_raw().hex() == consortium.hospitals[number].identity
        site = SiteConfig.load(kit)
        assert (site.name, site.node_port, site.report) == (name, 9094 + number, "none")
        assert (site.dataset_option, site.dataset_values) == ("folder", {"path": None})
        assert site.ledger == kit / "ledger"
        assert site.cache == Path("~/.cache/medx").expanduser()
    refused(lambda: consortium.number("nrth"), "north")


def test_flower_reads_what_is_its(made, monkeypatch):
    coordinator, *hospitals = folders(made)
    for name, kit in zip(NAMES, hospitals, strict=True):
        line = ["--auth-supernode-private-key", str(kit / "node.key")]
        _, public = _try_setup_client_authentication(_parse_args_run_supernode().parse_args(line))
        assert try_load_public_key(coordinator / "nodes" / f"{name}.pub") == public_key_to_bytes(public)
        assert len(load_superexec_auth_secret(str(kit / "exec.secret"))) == 64
    monkeypatch.setenv("FLWR_HOME", str(coordinator / "flwr"))
    connection = read_superlink_connection()
    assert (connection.name, connection.address, connection.insecure) == ("medx", "127.0.0.1:8000", False)
    assert Path(connection.root_certificates).read_bytes() == (hospitals[0] / "ca.crt").read_bytes()


def test_no_secret_lies_in_two_places(made):
    private = [path for path in made.rglob("*") if path.is_file() and path.name in SECRET_NAMES]
    assert len(private) == 4 + 3 * len(NAMES)
    contents = [path.read_bytes() for path in private]
    assert len(set(contents)) == len(contents)
    for path in made.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        assert (b"PRIVATE KEY" in text) == (path.name in SECRET_NAMES - {"exec.secret"}), path
        inside = [secret for secret in private if path != secret and secret.read_bytes() in text]
        assert not inside
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in private)


def test_checksums_are_sha256sums(made):
    for folder in folders(made):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
        summed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        rest = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - summed
        unsummed = {"SHA256SUMS", "consortium.json", "consortium.sig", "site.yaml", "policy.yaml", "flwr/config.toml"}
        assert rest <= unsummed


def greeting(coordinator, authority, name):
    """What a client that trusts the authority hears of the coordinator's server under a name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(coordinator / "server.pem", coordinator / "server.key")
    client = ssl.create_default_context(cafile=authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does

    def serve(listener):
        raw, _ = listener.accept()
        with raw, suppress(ssl.SSLError, ConnectionError), server.wrap_socket(raw, server_side=True) as stream:
            stream.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as raw,
                client.wrap_socket(raw, server_hostname=name) as stream,
            ):
                return stream.recv(5)
        finally:
            thread.join(5)


def test_tls_holds_for_the_host_and_this_machine_alone(made, own_keys):
    coordinator, kit = made / "coordinator", made / "kits" / "north"
    for name in (HOST, "localhost", "127.0.0.1"):
        assert greeting(coordinator, kit / "ca.crt", name) == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greeting(coordinator, kit / "ca.crt", "other.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        greeting(coordinator, own_keys / "coordinator" / "ca.crt", HOST)


def test_a_server_by_address(tmp_path):
    end = datetime.now(UTC).date() + timedelta(days=400)
    certificates.make_authority(tmp_path, "lungs", end)
    certificates.make_server(tmp_path, "192.0.2.7", end)
    assert greeting(tmp_path, tmp_path / "ca.crt", "192.0.2.7") == b"hello"
    assert certificates.warnings_of(tmp_path) == []
    refused(lambda: certificates.make_authority(tmp_path, "lungs", end), "ca.key", "never overwritten")


def test_certificates_that_end_are_told(made, tmp_path):
    assert certificates.warnings_of(made / "coordinator") == []
    assert certificates.days_left(made / "coordinator" / "server.pem") in (365, 366)
    today = datetime.now(UTC).date()
    certificates.make_authority(tmp_path, "lungs", today)
    certificates.make_server(tmp_path, HOST, today + timedelta(days=20))
    ended, ends = certificates.warnings_of(tmp_path)
    assert "ca.crt ended" in ended
    assert "server.pem ends in 19 days" in ends
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        greeting(tmp_path, tmp_path / "ca.crt", HOST)
    (tmp_path / "ca.crt").write_text("none")
    refused(lambda: certificates.warnings_of(tmp_path), "no certificate")


@pytest.mark.parametrize("change", ["host", "digit", "unsigned", "none", "extra", "identity", "brackets"])
def test_a_consortium_that_was_tampered_with_is_refused(copied, change):
    kit = copied / "kits" / "north"
    path = kit / "consortium.json"
    content = json.loads(path.read_text())
    signature = kit / "consortium.sig"
    changes = {
        "host": lambda: path.write_text(json.dumps(content | {"host": "evil.example.org"})),
        "extra": lambda: path.write_text(json.dumps(content | {"hosts": HOST})),
        "identity": lambda: path.write_text(json.dumps(content | {"coordinator": "00" * 32})),
        "brackets": lambda: path.write_text("[" * 100_000),
        "digit": lambda: signature.write_text(signature.read_text().translate(str.maketrans("0123", "1230"))),
        "unsigned": lambda: signature.write_text("\n"),
        "none": signature.unlink,
    }
    Consortium.load(kit)
    changes[change]()
    refused(lambda: Consortium.load(kit), str(kit))


def test_another_signer_is_refused(copied):
    kit, key = copied / "kits" / "north", Ed25519PrivateKey.generate()
    consortium = Consortium.load(kit)
    refused(lambda: consortium.save(kit, key), "coordinator = ")
    other = consortium.model_copy(update={"coordinator": key.public_key().public_bytes_raw().hex()})
    other.save(kit, key)
    refused(lambda: Consortium.load(kit), other.coordinator, consortium.coordinator)  # pinned by coordinator.pub
    (kit / "coordinator.pub").unlink()
    assert Consortium.load(kit).digest == other.digest != consortium.digest
    refused(lambda: Consortium.load(kit, consortium.coordinator), other.coordinator)


def test_hospitals_that_make_their_own_keys(copied):
    coordinator, *hospitals = folders(copied)
    assert not Consortium.load(coordinator).enrolled
    assert not any((kit / name).exists() for kit in hospitals for name in ("node.key", "identity.pem", "exec.secret"))
    enrolments = [kits.make_keys(kit) for kit in hospitals]
    refused(lambda: kits.make_keys(hospitals[0]), "exists")
    assert not kits.enrol(coordinator, enrolments[:1]).enrolled  # one by one, and again
    consortium = kits.enrol(coordinator, enrolments)
    assert consortium.enrolled
    for kit in hospitals:
        for name in ("consortium.json", "consortium.sig"):
            shutil.copy(coordinator / name, kit)
        assert Consortium.load(kit).digest == consortium.digest
        node = consortium.hospitals[consortium.number(kit.name)].node
        assert (kit / "node.pub").read_text().strip() == node
        assert (coordinator / "nodes" / f"{kit.name}.pub").read_text().strip() == node
    test_no_secret_lies_in_two_places(copied)
    test_checksums_are_sha256sums(copied)


def test_false_enrolments_are_refused(copied, made):
    coordinator, kit, south = copied / "coordinator", copied / "kits" / "north", copied / "kits" / "south"
    path, before = kits.make_keys(kit), Consortium.load(copied / "coordinator").digest
    true = json.loads(path.read_text())
    other = json.loads(kits.make_keys(south).read_text())
    wrong = copied / "wrong.json"

    def enrol(**changed):
        wrong.write_text(json.dumps(true | changed))
        return kits.enrol(coordinator, [path, wrong])

    refused(lambda: enrol(name="south"), "no signature by its identity")  # another's place
    refused(lambda: enrol(node=other["node"]), "no signature by its identity")
    refused(lambda: enrol(identity=other["identity"]), "no signature by its identity")
    refused(lambda: enrol(signature=""), "no signature by its identity")
    refused(lambda: enrol(signature=other["signature"]), "no signature by its identity")
    refused(lambda: enrol(consortium="hearts"), "consortium = hearts")
    refused(lambda: enrol(node="ssh-ed25519 AAAA"), "node = 'ssh-ed25519 AAAA'")
    refused(lambda: kits.enrol(coordinator, [made / "kits" / "north" / "enrolment.json"]), "coordinator = ")
    assert Consortium.load(coordinator).digest == before
    kits.enrol(coordinator, [path])
    again = Ed25519PrivateKey.generate()
    refused(lambda: enrol(**signed(true, again)), "enrolled with other keys")
    refused(lambda: enrol(**signed(true | {"name": "east"}, again)), "'east' is not of consortium lungs")
    refused(lambda: enrol(**signed(true | {"name": "south"}, again)), "two with node key")


def signed(content, key):
    """The enrolment under another identity, rightly signed."""
    content = content | {"identity": key.public_key().public_bytes_raw().hex()}
    return content | {"signature": key.sign(kits.Enrolment(**content).signed_part).hex()}


@pytest.mark.parametrize("number", range(2))
def test_a_used_folder_is_refused(tmp_path, number):
    used = tmp_path / "used"
    if number:
        used.write_text("a file")
    else:
        used.mkdir()
        (used / "notes.txt").touch()
    refused(lambda: kits.init(plan(), used), "is in use")


def test_keys_stay_apart(made):
    consortium = Consortium.load(made / "coordinator")
    north = consortium.hospitals[0]
    with pytest.raises(ValueError, match="one key of two"):
        Member(name="north", identity=north.identity)
    with pytest.raises(ValueError, match="coordinator's identity"):
        Consortium.model_validate(consortium.model_dump() | {"coordinator": north.identity})
    with pytest.raises(ValueError, match="without a comment"):  # by which one key could be two hospitals'
        Member(name="south", identity=north.identity, node=f"{north.node} south")


GOOD = {"name": "lungs", "host": HOST, "hospitals": list(NAMES)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "Lungs"}, ("name = 'Lungs'", "a-z")),
        ({"name": None}, ("name = None",)),
        ({"host": "http://medx"}, ("host = 'http://medx'", "IP address")),
        ({"host": "256.1.1.1"}, ("host", "IP address")),
        ({"port": 0}, ("port = 0", "1 to 65535")),
        ({"port": True}, ("port = True",)),
        ({"hospitals": []}, ("hospitals = []",)),
        ({"hospitals": "north"}, ("hospitals = 'north'",)),
        ({"hospitals": ["north", "../south"]}, ("hospitals.1 = '../south'",)),
        ({"hospitals": ["north", "north"]}, ("'north'", "distinct")),
        ({"days": 826}, ("days = 826", "1 to 825")),
        ({"keys": "both"}, ("keys = 'both'", "hospital, coordinator")),
        ({"hosts": HOST}, ("'hosts' is unknown", "did you mean host")),
    ],
)
def test_a_plan_with_a_mistake_is_refused(tmp_path, changed, words):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert (read_plan(path).days, read_plan(path).keys) == (365, "coordinator")
    path.write_text(yaml.safe_dump(GOOD | changed))
    refused(lambda: read_plan(path), str(path), *words)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "a: 2020-13-45\n", "name: a\nname: b\n", "\x00", "[" * 600])
def test_what_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    refused(lambda: read_plan(path), str(path))
    refused(lambda: read_plan(tmp_path / "none.yaml"), "No such file")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("device: gpu", ("device = 'gpu'", "cuda:1")),
        ("report: all", ("report = 'all'", "none, metrics")),
        ("node_port: 70000", ("node_port = 70000",)),
        ("dataset: {option: foldr}", ("foldr", "did you mean folder")),
        ("dataset: {path: /data}", ("option",)),
        ("ledgers: ledger", ("'ledgers' is unknown", "did you mean ledger")),
        ("name: 5", ("name = 5",)),
    ],
)
def test_a_site_with_a_mistake_is_refused(copied, line, words):
    path = copied / "kits" / "west" / "site.yaml"
    content = yaml.safe_load(path.read_text()) | yaml.safe_load(line)
    path.write_text(yaml.safe_dump(content))
    refused(lambda: SiteConfig.load(path.parent), str(path), *words)
    path.write_text(yaml.safe_dump({key: content[key] for key in content if key != "device"} | {"name": "west"}))
    refused(lambda: SiteConfig.load(path.parent), str(path))


def test_containers_and_services(made):
    coordinator, kit, _, _ = folders(made)
    node, executor = (
        yaml.safe_load((kit / "compose.yaml").read_text())["services"][name] for name in ("node", "executor")
    )
    assert executor["networks"] == ["inside"]
    assert yaml.safe_load((kit / "compose.yaml").read_text())["networks"]["inside"] == {"internal": True}
    assert not any("kit" in volume or "DATA" in volume for volume in node["volumes"])
    door = yaml.safe_load((coordinator / "compose.yaml").read_text())["services"]
    for service in (node, executor, *door.values()):
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
    # Flower takes every option that the node is started with.
    arguments = _parse_args_run_supernode().parse_args(node["command"])
    assert (arguments.superlink, arguments.port, arguments.isolation) == (f"{HOST}:8000", 9094, "process")
    unit = (kit / "medx-node.service").read_text().replace("\\\n", " ")
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert _parse_args_run_supernode().parse_args(start.split()[1:]).superlink == f"{HOST}:8000"
    units = [coordinator / "medx-coordinator.service", kit / "medx-node.service", kit / "medx-site.service"]
    if shutil.which("systemd-analyze"):
        verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
        complaints = [line for line in verified.stderr.splitlines() if "medx" in line]
        assert not [line for line in complaints if "/opt/medx/bin" not in line], complaints


def test_places_of_a_site_are_found_from_the_kit(copied):
    path = copied / "kits" / "west" / "site.yaml"
    content = yaml.safe_load(path.read_text())
    content |= {"state": "/var/lib/state", "dataset": {"option": "folder", "path": "images"}}
    path.write_text(yaml.safe_dump(content))
    site = SiteConfig.load(path.parent)
    assert site.state == Path("/var/lib/state")
    assert site.dataset_values == {"path": str(path.parent / "images")}
