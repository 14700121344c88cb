#!/usr/bin/env python3
"""Signs a Flower app and offers it to a SuperLink, so that nodes run signed apps only.

``flower-supernode --trusted-entities`` takes an app only with signatures, and a SuperLink passes
signatures on only with apps that it fetched itself: from Flower's hub, or from this, which
answers like the hub on loopback. What a node runs is then decided by whoever it trusts to sign,
not by who may start runs.
"""

import argparse
import base64
import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign

HOST = "127.0.0.1"


def signatures_of(app: Path) -> Path:
    """Return where an app's signatures are kept: beside it."""
    return app.with_name(f"{app.name}.signatures.json")


def read_signatures(kept: Path) -> list[dict[str, Any]]:
    """Return the signatures in a file; ``ValueError`` if it holds anything else."""
    try:
        known = json.loads(kept.read_bytes())
        if all(entry.keys() == {"public_key_id", "signature", "signed_at"} for entry in known):
            return list(known)
    except (ValueError, TypeError, AttributeError):
        pass
    raise ValueError(f"{kept} is no file of signatures; move it away and sign again")


def sign(app: Path, key: Path, name: str) -> None:
    """Sign an app, as ``flwr app review`` would.

    Args:
        app: the bundle that ``flwr build`` made.
        key: a private Ed25519 key, as ``ssh-keygen -t ed25519 -N ''`` makes it.
        name: whom nodes' files of trusted entities know the public half as.
    """
    try:
        private = load_ssh_private_key(key.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise ValueError(f"{key} is of no use: {problem}") from problem
    if not isinstance(private, Ed25519PrivateKey):
        raise ValueError(f"{key} is no Ed25519 key; make one with ssh-keygen -t ed25519")
    now = int(time.time())
    signed = private.sign(create_message_to_sign(hashlib.sha256(app.read_bytes()).digest(), now))
    kept = signatures_of(app)
    known = read_signatures(kept) if kept.exists() else []
    text = base64.urlsafe_b64encode(signed).decode()
    known = [entry for entry in known if entry["public_key_id"] != name]
    known.append({"public_key_id": name, "signature": text, "signed_at": now})
    kept.write_text(json.dumps(known, indent=1) + "\n")


class Shelf(BaseHTTPRequestHandler):
    """Answers the two requests by which a SuperLink fetches an app."""

    app = b""
    signatures: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        """Say where the app is, and who signed it."""
        address = f"http://{HOST}:{self.server.server_address[1]}/app"
        told = {"fab_url": address, "verifications": self.signatures}
        self._send("/hub/fetch-fab", json.dumps(told).encode())

    def do_GET(self) -> None:
        """Send the app."""
        self._send("/app", self.app)

    def _send(self, path: str, body: bytes) -> None:
        if self.path != path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def offer(app: Path) -> ThreadingHTTPServer:
    """Listen on a free port of loopback for a SuperLink that wants a signed app."""
    Shelf.app, Shelf.signatures = app.read_bytes(), read_signatures(signatures_of(app))
    return ThreadingHTTPServer((HOST, 0), Shelf)


def serve(app: Path, command: list[str]) -> None:
    """Become a SuperLink's command, which finds the app where it looks for Flower's hub."""
    shelf = offer(app)
    os.environ["FLWR_SUPERGRID_API_URL"] = f"http://{HOST}:{shelf.server_address[1]}"
    parent = os.getpid()
    if os.fork():
        os.execvp(command[0], command)
    threading.Thread(target=shelf.serve_forever, daemon=True).start()
    while os.getppid() == parent:  # no longer than the SuperLink
        time.sleep(0.5)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ways = parser.add_subparsers(dest="way", required=True)
    signing = ways.add_parser("sign", help="write APP.signatures.json, or add to it")
    signing.add_argument("app", type=Path, help="the bundle that flwr build made")
    signing.add_argument("key", type=Path, help="private Ed25519 key")
    signing.add_argument("name", help="whom nodes know its public half as")
    serving = ways.add_parser("serve", help="run a SuperLink that can fetch the app")
    serving.add_argument("app", type=Path)
    serving.add_argument("command", nargs="+", help="the SuperLink's command, after --")
    told = parser.parse_args()
    try:
        if told.way == "sign":
            sign(told.app, told.key, told.name)
        else:
            serve(told.app, told.command)
    except (OSError, ValueError) as problem:
        sys.exit(f"signed_app.py: {problem}")


if __name__ == "__main__":
    main()
