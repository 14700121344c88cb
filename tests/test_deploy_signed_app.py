"""Signed apps: Flower's SuperLink takes them from deploy/signed_app.py, its nodes trust them."""

import importlib.util
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flwr.supercore.fab import Fab
from flwr.superlink.servicer.control import control_handlers
from flwr.supernode.start_client_internal import _verify_fab

SCRIPT = Path(__file__).parents[1] / "deploy" / "signed_app.py"


@pytest.fixture(scope="module")
def signed_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("signed_app", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Make a key pair and return the public half."""
    words = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)]
    subprocess.run(words, check=True, timeout=60)
    return path.with_suffix(".pub").read_text().strip()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.fab"
    path.write_bytes(b"what flwr build made")
    return path


@pytest.fixture
def fetched(
    signed_app: ModuleType, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Fab, str]]:
    """Sign an app twice, have Flower fetch it, and give it with the first signer's key."""
    public = make_key(tmp_path / "first")
    make_key(tmp_path / "second")
    for name in ("first", "second", "first"):
        signed_app.sign(app, tmp_path / name, name)
    shelf = signed_app.offer(app)
    threading.Thread(target=shelf.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{shelf.server_address[1]}"
    monkeypatch.setattr(control_handlers, "FLWR_SUPERGRID_API_URL", address)
    content, signatures, _ = control_handlers._get_remote_fab(None, "@fedmitr/fedmitr-app")
    yield Fab("", content, signatures), public
    shelf.shutdown()
    shelf.server_close()


def test_a_node_runs_what_somebody_signed_whom_it_trusts(fetched: tuple[Fab, str]) -> None:
    fab, public = fetched
    assert fab.content == b"what flwr build made" and set(fab.verifications) == {
        "first",
        "second",
        "valid_license",
    }
    assert _verify_fab(fab, {"first": public})


def test_a_node_refuses_changed_apps_and_other_signers(
    fetched: tuple[Fab, str], tmp_path: Path
) -> None:
    fab, public = fetched
    assert not _verify_fab(Fab("", fab.content + b"!", fab.verifications), {"first": public})
    assert not _verify_fab(fab, {"stranger": public})
    assert not _verify_fab(fab, {"second": public})


def test_only_ed25519_keys_sign(signed_app: ModuleType, app: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "ecdsa")
    with pytest.raises(ValueError, match="no Ed25519 key"):
        signed_app.sign(app, tmp_path / "other", "other")
    assert not signed_app.signatures_of(app).exists()


@pytest.mark.parametrize(
    ("passphrase", "key", "signatures", "sentence"),
    [
        ("a passphrase", None, None, "is of no use: Key is password-protected"),
        ("", b"no key", None, "is of no use: "),
        ("", b"", None, "is of no use: "),
        ("", None, "{", "is no file of signatures"),
        ("", None, "7", "is no file of signatures"),
        ("", None, '[{"public_key_id": "a"}]', "is no file of signatures"),
        ("", None, "[[1]]", "is no file of signatures"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    passphrase: str,
    key: bytes | None,
    signatures: str | None,
    sentence: str,
    signed_app: ModuleType,
    app: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_key(tmp_path / "key", passphrase=passphrase)
    kept = signed_app.signatures_of(app)
    if key is not None:
        (tmp_path / "key").write_bytes(key)
    if signatures is not None:
        kept.write_text(signatures)
    ways = [["sign", str(app), str(tmp_path / "key"), "a"]]
    ways += [["serve", str(app), "true"]] if signatures else []  # before the SuperLink starts
    for words in ways:
        monkeypatch.setattr("sys.argv", ["signed_app.py", *words])
        with pytest.raises(SystemExit) as ended:
            signed_app.main()
        told = str(ended.value.code)
        assert told.startswith("signed_app.py: ") and sentence in told and "\n" not in told
    assert signatures is None or kept.read_text() == signatures
    assert signatures is not None or not kept.exists()
