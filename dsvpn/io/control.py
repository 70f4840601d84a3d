"""The control socket: how `dsvpn show` asks a running gateway.

A Unix stream socket that only its owner may use. One line of JSON asks, one line of JSON answers:

    {"show": "peers"}    ->    {"ok": {...}}    or    {"error": "why"}
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsvpn.errors import DsvpnError, HostError, MisuseError

RUN_DIRECTORY = Path("/run/dsvpn")

_MAX_REQUEST = 4096
_MAX_CLIENTS = 16
#: A client that does not ask, or does not take its answer, is cut off after so many seconds.
_CLIENT_DEADLINE = 10.0
_ANSWER_DEADLINE = 10.0
#: sun_path holds 108 octets with the terminating zero.
_MAX_PATH = 107

Handler = Callable[[dict[str, Any]], Any]


class ControlServer:
    """Answers requests at `path` with what `handler(request)` gives, a value that JSON can carry.

    A DsvpnError of the handler becomes the answer's error.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._clients = 0
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._socket = self._bind()

    def _bind(self) -> socket.socket:
        path = self._path
        if len(os.fsencode(path)) > _MAX_PATH:
            raise HostError(f"gateway.control_socket: {path} is longer than the {_MAX_PATH} octets a socket may have")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path.parent}: cannot make the control socket: {error.strerror}") from None
        try:
            # Two gateways that start at once would each take the other's fresh socket for a dead one.
            fcntl.flock(directory, fcntl.LOCK_EX)
            if answers(path):
                raise HostError(
                    f"{path}: another gateway answers there; stop it, or give this one another name or control_socket"
                )
            with suppress(FileNotFoundError):
                path.unlink()
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            mask = os.umask(0o177)
            try:
                bound.bind(str(path))
            except BaseException:
                bound.close()
                raise
            finally:
                os.umask(mask)
            bound.listen(_MAX_CLIENTS)
            self._inode = path.stat().st_ino
            return bound
        except OSError as error:
            raise HostError(f"{path}: cannot make the control socket: {error.strerror}") from None
        finally:
            os.close(directory)

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._socket, limit=_MAX_REQUEST)

    def close(self) -> None:
        """Stop answering and remove the socket, unless another gateway has its own there by now."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            async with asyncio.timeout(_CLIENT_DEADLINE):
                if self._clients > _MAX_CLIENTS:
                    answer: dict[str, Any] = {"error": "too many clients at once"}
                else:
                    answer = self._answer(await _read_line(reader))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # a client that went away or never asked: its loss alone
        finally:
            self._clients -= 1
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"error": "the request is not one line of JSON"}
        if not isinstance(request, dict):
            return {"error": "the request is not a JSON object"}
        try:
            return {"ok": self._handler(request)}
        except DsvpnError as error:
            return {"error": str(error)}


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        return b""  # longer than the limit: no request of ours is


def answers(path: Path) -> bool:
    """Whether somebody listens at a control socket. HostError if that cannot be found out."""
    with suppress(OSError):
        # The kernel refuses a connection to a plain file as it does one to a dead socket; the file is not ours.
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(f"{path}: this file is no socket; remove it, or choose another control_socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_ANSWER_DEADLINE)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True  # its queue is full, so it is there
        except OSError as error:
            raise HostError(f"{path}: cannot reach the gateway: {error.strerror}") from None
    return True


def ask(path: Path, request: dict[str, Any]) -> Any:
    """The answer of the gateway at `path`. HostError if there is none, MisuseError if it refuses the request."""
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(_ANSWER_DEADLINE)
            client.connect(str(path))
            client.sendall(json.dumps(request).encode() + b"\n")
            while chunk := client.recv(1 << 16):
                received += chunk
        answer = json.loads(received)
    except (FileNotFoundError, ConnectionRefusedError):
        raise HostError(f"{path}: no gateway answers there") from None
    except TimeoutError:
        raise HostError(f"{path}: the gateway does not answer") from None
    except OSError as error:
        raise HostError(f"{path}: cannot reach the gateway: {error.strerror}") from None
    except ValueError:
        raise HostError(f"{path}: what answers there is no gateway") from None
    if not isinstance(answer, dict) or ("ok" not in answer and "error" not in answer):
        raise HostError(f"{path}: what answers there is no gateway")
    if "error" in answer:
        raise MisuseError(str(answer["error"]))
    return answer["ok"]


def running_gateways(directory: Path = RUN_DIRECTORY) -> list[Path]:
    """The control sockets in a directory that a gateway answers at, in the order of their names."""
    found = []
    for path in sorted(directory.glob("*.sock")):
        with suppress(HostError):
            if answers(path):
                found.append(path)
    return found
