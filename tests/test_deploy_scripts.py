"""What deploy/ holds beside the running federation: certificates, units, the proxy's rules."""

import datetime
import re
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

DEPLOY = Path(__file__).parents[1] / "deploy"
MOST_EXPOSED = 4.0  # of 10, as systemd-analyze counts


def certificates(*words: str) -> subprocess.CompletedProcess[str]:
    """Call ``certificates.sh``."""
    return subprocess.run(
        [str(DEPLOY / "certificates.sh"), *words], capture_output=True, text=True, timeout=60
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "of ours"
    assert certificates("authority", str(folder)).returncode == 0
    return folder


def test_the_authoritys_key_stays_where_it_was_made(authority: Path, tmp_path: Path) -> None:
    target = tmp_path / "server"
    hosts = ("superlink.example.org", "192.0.2.10", "2001:db8::1")
    assert certificates("server", str(authority), str(target), *hosts).returncode == 0
    assert names_in(authority) == {"ca.crt", "ca.key"}
    assert names_in(target) == {"ca.crt", "server.crt", "server.key"}
    assert (target / "server.key").stat().st_mode & 0o777 == 0o600
    assert (authority / "ca.key").stat().st_mode & 0o777 == 0o600
    made = x509.load_pem_x509_certificate((target / "server.crt").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == list(hosts)
    checked = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", target / "ca.crt", target / "server.crt"],
        capture_output=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr


def test_the_loopback_pair_is_trusted_as_itself(tmp_path: Path) -> None:
    assert certificates("loopback", str(tmp_path)).returncode == 0
    assert names_in(tmp_path) == {"loopback.crt", "loopback.key"}
    context = ssl.create_default_context(cafile=str(tmp_path / "loopback.crt"))
    context.load_cert_chain(tmp_path / "loopback.crt", tmp_path / "loopback.key")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a,DNS:evil.example.org",
        "a\nsubjectAltName=DNS:evil",
        "https://superlink.example.org",
        "superlink.example.org:8000",
        "192.0.2.300",
        "1:2",
        "1::2::3",
        "-option",
        "a..b",
        "*.example.org",
        "x" * 64,
    ],
)
def test_what_is_no_host_is_named_and_nothing_is_written(
    host: str, authority: Path, tmp_path: Path
) -> None:
    target = tmp_path / "server"
    done = certificates("server", str(authority), str(target), "good.example.org", host)
    assert done.returncode == 1 and not target.exists()
    named = host.splitlines()[0] if host else ""
    assert done.stderr.count("\n") == 1 and f"'{named}" in done.stderr
    assert "superlink.example.org or 192.0.2.10" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("authority", "AUTHORITY"), "holds ca.key already; choose another folder"),
        (("authority", "FILE"), "can't be made"),
        (("server", "EMPTY", "NEW", "a.example.org"), "make the authority first"),
        (("server", "NOWHERE", "NEW", "a.example.org"), "make the authority first"),
        (("server", "AUTHORITY", "AUTHORITY", "a.example.org"), "holds ca.crt already"),
        (("server", "BROKEN", "NEW", "a.example.org"), "openssl x509 failed"),
    ],
)
def test_certificates_say_what_is_wrong_in_a_sentence_and_write_nothing(
    words: tuple[str, ...], sentence: str, authority: Path, tmp_path: Path
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    (tmp_path / "BROKEN").mkdir()
    for name in ("ca.crt", "ca.key"):
        (tmp_path / "BROKEN" / name).write_text("no key")
    (tmp_path / "AUTHORITY").symlink_to(authority)
    before = names_in(authority)
    given = [word if word.islower() else str(tmp_path / word) for word in words]
    done = certificates(*given)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert sentence in done.stderr, done.stderr
    assert names_in(authority) == before and not (tmp_path / "NEW").exists()


def test_certificates_without_openssl_say_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", str(DEPLOY / "certificates.sh"), "authority", str(tmp_path / "new")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "openssl isn't installed" in done.stderr


@pytest.mark.parametrize("unit", sorted(path.name for path in DEPLOY.glob("*.service")))
def test_units_are_hardened(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(DEPLOY / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    overall = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert overall is not None and float(overall[1]) <= MOST_EXPOSED, done.stdout
    text = (DEPLOY / unit).read_text()
    assert "UMask=0077" in text and "StateDirectoryMode=0700" in text
    assert re.search(r"^User=fedmitr\S*$", text, re.MULTILINE)
    script = re.search(r"^ExecStart=/opt/fedmitr/fedmitr-app/deploy/(\S+)$", text, re.MULTILINE)
    assert script is not None and (DEPLOY / script[1]).stat().st_mode & 0o111


def test_the_proxy_forwards_every_call_of_a_node_and_no_other() -> None:
    rules = (DEPLOY / "proxy.conf").read_text()
    rule = re.search(r"\^POST /v1/fleet/\(\?<name>([a-z|-]+)\)", rules)
    assert rule is not None
    fleet = {
        path.removeprefix("/v1/fleet/")
        for method, path in PROTOBUF_REQUEST_TYPES
        if path.startswith("/v1/fleet/") and method == "POST"
    }
    # Only nodes without a key register themselves.
    assert set(rule[1].split("|")) == fleet - {"register-node", "unregister-node"}


@pytest.mark.parametrize(
    ("script", "told", "sentence"),
    [
        ("supernode.sh", {"FEDMITR_CLIENT": ""}, "FEDMITR_CLIENT isn't set"),
        ("supernode.sh", {"FEDMITR_KEY": "/nowhere"}, "/nowhere doesn't exist"),
        ("supernode.sh", {"FEDMITR_CLIENT": 'a" x="'}, "FEDMITR_CLIENT holds a quote"),
        ("supernode.sh", {"FEDMITR_SECONDS": "soon"}, "FEDMITR_SECONDS is 'soon'"),
        ("supernode.sh", {"FEDMITR_TRUSTED": "/dev/null"}, "names no ssh-ed25519 key"),
        ("superlink.sh", {"FEDMITR_LOOPBACK": "/nowhere"}, "deploy/certificates.sh loopback"),
        ("proxy.sh", {}, "set FEDMITR_CERTIFICATES"),
        ("proxy.sh", {"FEDMITR_CERTIFICATES": "/nowhere"}, "/nowhere/server.crt can't be read"),
    ],
)
def test_scripts_say_what_is_wrong_in_a_sentence(
    script: str, told: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    whole = {
        "FEDMITR_SUPERLINK": "127.0.0.1:1",
        "FEDMITR_CA": "/dev/null",
        "FEDMITR_KEY": "/dev/null",
        "FEDMITR_CLIENT": "a",
        "FEDMITR_DATA": "/",
        "PATH": "/usr/sbin:/usr/bin:/bin",
    }
    done = subprocess.run(
        [str(DEPLOY / script)],
        cwd=tmp_path,
        env=whole | told,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert sentence in done.stderr, done.stderr


def test_the_proxy_does_not_start_with_a_certificate_that_ended(
    authority: Path, tmp_path: Path
) -> None:
    done = start_proxy(authority, tmp_path, days=-1)
    assert done.returncode == 1 and "or ended: notAfter=" in done.stderr, done.stderr


@pytest.mark.parametrize(("days", "warned"), [(29, True), (31, False)])
def test_the_proxy_says_that_its_certificate_ends_soon(
    days: int, warned: bool, authority: Path, tmp_path: Path
) -> None:
    done = start_proxy(authority, tmp_path, days)
    assert ("server.crt ends within 30 days" in done.stderr) == warned
    assert "can't hold" in done.stderr  # the host's name: it went on to its settings
    unit = (DEPLOY / "fedmitr-proxy.service").read_text()
    assert {"Restart=always", "RuntimeMaxSec=7d"} <= set(unit.splitlines())  # it looks each week


def start_proxy(authority: Path, folder: Path, days: int) -> subprocess.CompletedProcess[str]:
    """Have the proxy try to start, on no host, with a certificate that has some days left."""
    pair = folder / "server"
    assert certificates("server", str(authority), str(pair), "a.example.org").returncode == 0
    assert certificates("loopback", str(folder / "loopback")).returncode == 0
    now = datetime.datetime.now(datetime.UTC)
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    (pair / "server.crt").write_bytes(made.public_bytes(Encoding.PEM))
    told = {"FEDMITR_CERTIFICATES": str(pair), "FEDMITR_HOST": "no;host"}
    return subprocess.run(
        [str(DEPLOY / "proxy.sh")],
        cwd=folder,
        env=told | {"PATH": "/usr/sbin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
