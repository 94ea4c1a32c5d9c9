"""What trainers put around a model: keys of a file's top level, and prefixes of tensor names.

The same network is saved as a module, as its state dict, in a dict beside an optimizer, wrapped for
several GPUs, compiled, averaged, or as a part of a larger module. Here the tensors of the network
are found by names that only they have (marks), and get the names that they have in the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segcore.models.pickles import Stub
from segcore.text import printable

# Keys and names under which averaged weights are kept. They are preferred to the last ones.
_AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema")
_LAST = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module")
_MAX_DEPTH = 4  # of dicts in dicts
_MAX_NODES = 1000  # dicts and objects that are looked at
# Parts of tensor names that are no part of any network: added by torch for several GPUs and by
# torch.compile, at the front or at the submodule that was wrapped.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_COUNTERS = ("n_averaged", "updates", "num_updates", "decay")  # tensors of averages


@dataclass(frozen=True)
class Mark:
    """A tensor by which a model is recognised.

    Attributes:
        name: Its name, without `root`.
        root: What all names of the network begin with.
    """

    name: str
    root: str = ""


class AmbiguousModel(Exception):
    """A file holds several copies of a model, and none of them is an average; says which."""


def find_candidates(root: Any) -> Iterator[tuple[str, Stub | dict[Any, Any]]]:
    """What may be the model in the object tree of a file, and where it is, the best first.

    Places are written as in Python: ``['ema']``; "" for the file itself.
    """
    nodes = [("", root, 0)] if isinstance(root, Stub | dict) else []
    seen: set[int] = set()
    while nodes and len(seen) < _MAX_NODES:
        place, node, depth = nodes.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield place, node
        if depth < _MAX_DEPTH:
            children = [
                (f"{place}['{printable(key[:100])}']", child, depth + 1)
                for key, child in _children(node)
            ]
            nodes = (children + nodes)[:_MAX_NODES]


def _children(node: Stub | dict[Any, Any]) -> list[tuple[str, Stub | dict[Any, Any]]]:
    """Dicts and objects in a dict or in an object that is not a module, in order of preference."""
    if isinstance(node, Stub):
        if "_modules" in node.attributes:
            return []
        node = node.attributes
    items = [
        (key, value)
        for key, value in list(node.items())[:_MAX_NODES]
        if isinstance(key, str) and isinstance(value, Stub | dict) and not key.startswith("optim")
    ]
    order = {key: position for position, key in enumerate((*_AVERAGED, *_LAST))}
    return sorted(items, key=lambda item: order.get(item[0], len(order)))


def unwrap_names(names: Iterable[str], marks: Sequence[Mark]) -> dict[str, str] | None:
    """Names in the network -> names in the file; None if no mark is among them.

    Raises:
        AmbiguousModel: There are several copies.
    """
    bare = _without_wrappers(list(names))
    found: dict[str, Mark] = {}  # by prefix
    for name in bare:
        for mark in marks:
            if name == mark.name or name.endswith("." + mark.name):
                found.setdefault(name[: len(name) - len(mark.name)], mark)
    if not found:
        return None
    prefix = _preferred(list(found))
    root = found[prefix].root
    unwrapped = {}
    for name, original in bare.items():
        if name in _COUNTERS:
            continue
        if name.startswith(prefix):
            unwrapped[root + name[len(prefix) :]] = original
        elif not any(other and name.startswith(other) for other in found):
            unwrapped[name] = original  # of no copy: the family refuses it
    return unwrapped


def _without_wrappers(names: list[str]) -> dict[str, str]:
    """Names without `_WRAPPERS` -> names. As they are, if two would become equal."""
    bare = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names
    }
    return bare if len(bare) == len(names) else {name: name for name in names}


def _preferred(prefixes: list[str]) -> str:
    """The prefix of the copy to use."""
    averaged = [prefix for prefix in prefixes if _is_averaged(prefix)]
    choice = averaged or prefixes
    if len(choice) > 1:
        listed = " and ".join(f"`{printable(prefix[:100])}`" for prefix in choice[:3])
        raise AmbiguousModel(f"it holds {len(choice)} copies of the model, under {listed}")
    return choice[0]


def _is_averaged(prefix: str) -> bool:
    parts = prefix.replace("_", ".").split(".")
    return "ema" in parts
