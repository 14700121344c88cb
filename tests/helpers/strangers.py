"""What somebody tries who holds nothing but ca.crt and the address that nodes use."""

import contextlib
import re
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

# How often a wish can be written, so that some part reads it as one of the Control API.
DISGUISES = (
    "/v1/control/{name}",
    "//v1/control/{name}",
    "/v1//control/{name}",
    "/v1/./control/{name}",
    "/v1/fleet/../control/{name}",
    "/v1/fleet/%2e%2e/control/{name}",
    "/v1/fleet/%2E./control/{name}",
    "/v1/fleet/..%2fcontrol/{name}",
    "/v1/fleet%2f..%2fcontrol/{name}",
    "/v1/fleet/..;/control/{name}",
    "/v1/fleet/..\\control\\{name}",
    "/v1/fleet/activate-node/../../control/{name}",
    "/v1/fleet/activate-node%2f..%2f..%2fcontrol%2f{name}",
    "/v1/fleet/activate-node%00/../../control/{name}",
    "/v1/fleet/activate-node?/../../control/{name}",
    "/v1/fleet/activate-node%3f/../../control/{name}",
    "/v1/fleet/activate-node%0a/../../control/{name}",
    "/%76%31/%63ontrol/{name}",
    "/v1/control/../control/{name}",
    "/V1/Control/{name}",
    "https://localhost/v1/control/{name}",
    "https://localhost/v1/fleet/../control/{name}",
    "http://127.0.0.1:{own_port}/v1/control/{name}",
    "@127.0.0.1:{own_port}/v1/control/{name}",
)
# Beside the Control API: what else Flower serves on that port.
OTHER_PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/v1/runtime/acquire-task",
    "/v1/runtime/get-nodes",
    "/v1/fleet/",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/activate-node/",
)
# What nginx refuses itself: by its rule, or because it is no request at all.
REFUSED = {400, 403, 405}


def registration() -> bytes:
    """Return the body of a call that registers a new node's key."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return RegisterNodeRequest(public_key=public_key_to_bytes(key)).SerializeToString()


def piece(size: int) -> bytes:
    """Return the body of a call that uploads a piece of an array of that many bytes."""
    return PushObjectRequest(object_content=bytes(size)).SerializeToString()


def paths(own_port: int) -> list[str]:
    """Return every path that a stranger may not reach, plain and in disguise."""
    hidden = [path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")]
    disguised = [path.format(name="register-node", own_port=own_port) for path in DISGUISES]
    return [*hidden, *OTHER_PATHS, *disguised]


def ask(
    port: int, ca: Path, target: str, body: bytes = b"", method: str = "POST", more: str = ""
) -> int:
    """Send one request with its target as it is, and return the status; 0: hung up.

    Args:
        more: further header lines, each ended by CR LF.
    """
    context = ssl.create_default_context(cafile=str(ca))
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: {PROTOBUF_MEDIA_TYPE}\r\nAccept: {PROTOBUF_MEDIA_TYPE}\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        # A body too large is refused before its end; what is left to send then fails.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            line.sendall(head.encode() + body)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := line.recv(65536):
                answer += piece
    status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(status[1]) if status else 0
