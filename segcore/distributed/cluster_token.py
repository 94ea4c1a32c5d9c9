"""Whether a Ray cluster on this machine wants a token: Ray itself guesses, and may guess wrong.

A program that starts a Ray of its own leaves a token in the home directory. From then on, a cluster
that is started there wants that token, and one that was started before does not. With ``auto`` Ray
sends the token wherever there is one, and a cluster that knows of none breaks off; with
``host:port`` it never does, and a cluster that wants it refuses. So it is asked first, which takes
a few milliseconds.
A token is sent to this machine alone, unless RAY_AUTH_MODE says so.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from segcore.distributed import quiet

_MODE = "RAY_AUTH_MODE"
_CONNECT_TIMEOUT_S = 10


@contextmanager
def matching_token_mode(address: str) -> Iterator[None]:
    """Let `ray.init` in the block use a token if the cluster at this address wants one.

    Args:
        address: ``auto`` or ``host:port``; others, such as ``local``, are left alone.
    """
    wants_token = None
    if address != "local" and "://" not in address and _MODE not in os.environ:
        wants_token = _wants_token(address)
    if wants_token:
        _use_token()
        yield
    elif wants_token is False:
        os.environ[_MODE] = "disabled"
        try:
            yield
        finally:
            os.environ.pop(_MODE, None)  # a local Ray of this process still gets a token
    else:
        yield


def _use_token() -> None:
    """Send the token, if there is one: what Ray does of its own accord for `auto` alone."""
    try:
        from ray._private.authentication import authentication_token_setup as tokens

        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except (ImportError, AttributeError):  # `ray.init` is refused, and our hint says what to set
        return


def _wants_token(address: str) -> bool | None:
    """Whether the cluster refuses us without a token; None where it is elsewhere or not there."""
    from ray import exceptions

    try:  # Ray has no public way to ask
        from ray._private.services import canonicalize_bootstrap_address
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        server = canonicalize_bootstrap_address(address)
    except Exception:  # `ray.init` says what is wrong
        return None
    if server is None or not _listens_on_this_machine(server):
        return None
    try:
        with quiet.no_native_stderr():
            GcsClient(address=server)
    except exceptions.AuthenticationError:
        return True
    except Exception:  # as above
        return None
    return False


def _listens_on_this_machine(server: str) -> bool:
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))  # the system refuses addresses of others
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True
