"""Ray's job server: which address and token reach it, and every request with a time limit."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from segcore.distributed.cluster import NodeResources
from segcore.errors import ClusterError, UsageError
from segcore.text import one_line, printable, redact_link

REQUEST_TIMEOUT_S = 30
MIN_RAY = (2, 60)  # the floor of pyproject.toml
_MAX_ANSWER_BYTES = 16 << 20
_MODE = "RAY_AUTH_MODE"
_EXTRA_HINT = "Install it with: pip install 'segcore[cluster]'"
_ADDRESS_HINT = (
    "The job server is Ray's dashboard: http://HEAD:8265 by default. `ray start --head` starts it "
    "where ray[default] is installed; reach one behind a firewall with `kubectl port-forward` or "
    "`ssh -L`."
)
_GET_TOKEN = (
    "`ray get-auth-token` on the head prints it; give it as RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token."
)


class Token(NamedTuple):
    """A token as Ray sets it up; its text is in no message.

    Attributes:
        origin: Where it comes from, for people.
        is_explicit: It was given for this purpose, not left behind by a local Ray.
    """

    text: str
    origin: str
    is_explicit: bool


@dataclass(frozen=True)
class JobServer:
    """A job server that answers.

    Attributes:
        address: ``http://host:port``, without what may be secret.
        ray_version: Of the cluster.
        client: Ray's client; each request has a time limit.
        nodes: The living nodes.
    """

    address: str
    ray_version: str
    client: Any
    nodes: tuple[NodeResources, ...]

    def elsewhere(self) -> list[NodeResources]:
        """The nodes that are not on this machine."""
        return [node for node in self.nodes if not node.is_on_this_machine()]


def find_token() -> Token | None:
    """The token that Ray would use here: the variable, the file it names, or that of the home."""
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(text, "RAY_AUTH_TOKEN", True)
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    origin = "the file of RAY_AUTH_TOKEN_PATH" if named else "~/.ray/auth_token"
    is_explicit = bool(named) or os.environ.get(_MODE, "").lower() == "token"
    return Token(text, origin, is_explicit) if text else None


def connect(address: str) -> JobServer:
    """Reach the job server at `address`; with a token if it asks for one.

    Args:
        address: ``http(s)://host:port``; ``host:port`` is taken as http.

    Raises:
        UsageError: The address is none of a job server.
        ClusterError: Nothing answers there, it is something else, it refuses us, its Ray is too
            old, or Ray's client is not installed here.
    """
    url = _checked_url(address)
    shown = redact_link(url)
    client_class = _client_class()
    headers = _headers(url, shown)
    version = _read_version(_get(url, "/api/version", headers), shown)
    if _release(version) < MIN_RAY:
        raise ClusterError(
            f"The cluster at {shown} runs Ray {version}; segcore needs Ray "
            f"{'.'.join(map(str, MIN_RAY))} or newer there.",
        )
    try:
        client = client_class(url, headers=dict(headers))
    except Exception as error:  # Ray raises bare ones
        raise ClusterError(
            f"Ray's client cannot talk to {shown}: {one_line(error, 300)}",
            hint=_ADDRESS_HINT,
        ) from None
    return JobServer(shown, version, client, _read_nodes(_get(url, "/nodes?view=summary", headers)))


def _checked_url(address: str) -> str:
    """The address as an URL without a path.

    Raises:
        UsageError: It is none of a job server.
    """
    url = address.strip()
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        parts.port  # noqa: B018  (raises where it is none)
    except ValueError:
        is_url = False
    if not is_url or address.strip() == "auto":
        raise UsageError(
            f"--address {redact_link(address)}: expected http://HOST:PORT of Ray's job server.",
            hint=_ADDRESS_HINT,
        )
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"--address {redact_link(address)} holds a user, a password or a query.",
            hint=f"A cluster asks for a token alone. {_GET_TOKEN}",
        )
    return url


def _client_class() -> Any:
    """Ray's client, with a time limit on each request.

    Raises:
        ClusterError: What it needs is not installed.
    """
    try:
        import aiohttp  # noqa: F401  (the client says nothing clear without it)
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ClusterError(
            f"Ray's job client is not installed here ({error}).", hint=_EXTRA_HINT
        ) from None

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", REQUEST_TIMEOUT_S)
            return super()._do_request(*args, **kwargs)

    return Client


class _Answer(NamedTuple):
    status: int
    body: bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _get(url: str, path: str, headers: dict[str, str]) -> _Answer:
    """Ask for a path.

    Raises:
        ClusterError: Nothing answers, or what answers does not speak HTTP.
    """
    request = urllib.request.Request(url + path, headers=headers)
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
            return _Answer(answer.status, answer.read(_MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return _Answer(error.code, b"")
    except (OSError, ValueError) as error:  # http.client's errors are not all OSErrors
        reason = getattr(error, "reason", error)
        raise ClusterError(
            f"No job server answers at {redact_link(url)}: {_reason(reason)}.", hint=_ADDRESS_HINT
        ) from None
    except Exception as error:  # no HTTP, as from Ray's other ports
        raise ClusterError(
            f"What listens at {redact_link(url)} is no job server: {_reason(error)}.",
            hint=_ADDRESS_HINT,
        ) from None


def _reason(error: object) -> str:
    return one_line(error, 200).rstrip(".") or type(error).__name__


def _headers(url: str, shown: str) -> dict[str, str]:
    """The headers that the server accepts; a token only where it asks for one, or we are told to.

    Raises:
        ClusterError: It refuses us.
    """
    mode = os.environ.get(_MODE, "").lower()
    if mode not in ("", "token", "disabled"):
        return {}  # such as k8s: Ray's own client knows what to send
    token = find_token() if mode != "disabled" else None
    headers = {"Authorization": f"Bearer {token.text}"} if token and mode == "token" else {}
    status = _get(url, "/api/version", headers).status
    if status == 401 and not headers:
        headers = {"Authorization": f"Bearer {_offered(token, url, shown, mode).text}"}
        status = _get(url, "/api/version", headers).status
    if status in (401, 403):
        origin = token.origin if token else "nowhere"
        raise ClusterError(
            f"The cluster at {shown} does not accept the token from {origin}.",
            hint=f"It is another cluster's. {_GET_TOKEN}",
        )
    return headers


def _offered(token: Token | None, url: str, shown: str, mode: str) -> Token:
    """The token for a server that wants one.

    A token that a local Ray left behind goes to this machine alone, unless RAY_AUTH_MODE says so.

    Raises:
        ClusterError: There is none, or it is not to be sent there.
    """
    if mode == "disabled":
        raise ClusterError(
            f"The cluster at {shown} wants a token, and RAY_AUTH_MODE=disabled forbids to send it.",
            hint=f"Set RAY_AUTH_MODE=token. {_GET_TOKEN}",
        )
    if token is None:
        raise ClusterError(f"The cluster at {shown} wants a token.", hint=_GET_TOKEN)
    if token.is_explicit or _is_loopback(urlsplit(url).hostname or ""):
        return token
    raise ClusterError(
        f"The cluster at {shown} wants a token. There is one in {token.origin}, which may be that "
        "of a Ray on this machine, so it is not sent to another one unasked.",
        hint=f"Set RAY_AUTH_MODE=token if it is the right one. Otherwise: {_GET_TOKEN}",
    )


def _is_loopback(host: str) -> bool:
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(name == "::1" or name.startswith("127.") for name in addresses)


def _read_version(answer: _Answer, shown: str) -> str:
    """The version of Ray that a server names.

    Raises:
        ClusterError: It is not Ray's.
    """
    try:
        document = json.loads(answer.body) if answer.status == 200 else {}
        return printable(str(document["ray_version"]))[:40]
    except (ValueError, KeyError, TypeError):
        raise ClusterError(
            f"What answers at {shown} (HTTP status {answer.status}) is no job server of Ray.",
            hint=_ADDRESS_HINT,
        ) from None


def _release(version: str) -> tuple[int, ...]:
    numbers = version.split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdecimal())


def _read_nodes(answer: _Answer) -> tuple[NodeResources, ...]:
    """The living nodes; none where the answer says nothing of them."""
    try:
        nodes = [node["raylet"] | node for node in json.loads(answer.body)["data"]["summary"]]
        return tuple(
            NodeResources(
                cpus=0.0,
                gpus=0.0,
                node_id=str(node["nodeId"]),
                address=str(node["ip"]),
                host=str(node["hostname"]),
            )
            for node in nodes
            if node["state"] == "ALIVE"
        )
    except (ValueError, KeyError, TypeError):
        return ()
