from __future__ import annotations

from pathlib import Path

import pytest

import segcore
from segcore.config import RayOptions
from segcore.distributed.cluster import _code_to_ship, connected
from segcore.errors import ClusterError


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_an_error_at_once(address):
    connection = connected(RayOptions(address=address))
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: .*refused") as caught, connection:
        raise AssertionError("connected to nothing")
    assert "--address" in caught.value.hint


def test_the_code_that_is_shipped_is_the_package():
    assert _code_to_ship() == {"py_modules": [str(Path(segcore.__file__).resolve().parent)]}
