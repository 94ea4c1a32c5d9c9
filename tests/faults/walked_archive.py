"""An archive that changes at random, and what a run without Ray must find in it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

from segcore.storage import Storage
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.fake_models import RAISES

_N_NAMES = 15
_N_SHARDS = 4


class Version(NamedTuple):
    """An image, or another one of its name: ok, dark (nothing is found), raises or cut."""

    kind: str
    seed: int
    etag: str = ""  # of its file

    def bytes(self) -> bytes:
        """The image."""
        if self.kind == "raises":
            return bright_png(self.seed, RAISES)
        data = bright_png(self.seed, bright=self.kind == "ok")
        return data[: len(data) // 2] if self.kind == "cut" else data


class WalkedArchive:
    """Loose images, or tars of them; files may come back as they were once.

    Attributes:
        listing: Name -> version of each image: that of its file, or ``shard#member``.
        versions: All that there ever were, by name and etag.
    """

    def __init__(self, folder: Path, rng: random.Random, *, is_tar: bool) -> None:
        self.listing: dict[str, Version] = {}
        self.versions: dict[tuple[str, str], Version] = {}
        self._folder, self._rng, self._is_tar = folder, rng, is_tar
        self._files: dict[str, dict[str, Version]] = {}  # of a loose image, the member is ""
        self._past: dict[str, list[tuple[dict[str, Version], int]]] = {}
        self._n_drawn = 0
        folder.mkdir(parents=True)
        for _ in range(6):
            self.put()

    def put(self) -> str:
        """A new image, or another one in place of one that is there."""
        self._n_drawn += 1
        kind = self._rng.choices(["ok", "dark", "raises", "cut"], [8, 1, 2, 1])[0]
        name = f"{self._rng.randrange(_N_NAMES):02d}.png"
        file, member = name, ""
        if self._is_tar:
            file, member = f"{self._rng.randrange(_N_SHARDS)}.tar", name
        self._write(file, {**self._files.get(file, {}), member: Version(kind, self._n_drawn)})
        return f"put {name} into {file}"

    def remove(self) -> str:
        """A file or a member goes; one image stays."""
        if len(self.listing) < 3:
            return self.put()
        file, _, member = self._rng.choice(sorted(self.listing)).partition("#")
        members = {name: v for name, v in self._files[file].items() if name != member}
        if members and self._rng.random() < 0.6:
            self._write(file, members)
        elif len(self._files) > 1:
            (self._folder / file).unlink()
            del self._files[file]
            self._list()
        return f"remove {file} {member}"

    def restore(self) -> str:
        """A file as it was once, with its version."""
        file = self._rng.choice(sorted(self._past))
        self._write(file, *self._rng.choice(self._past[file]))
        return f"restore {file}"

    def _write(self, file: str, members: dict[str, Version], time_ns: int = 0) -> None:
        path = self._folder / file
        contents = [(name, version.bytes()) for name, version in members.items()]
        path.write_bytes(tar_bytes(contents) if self._is_tar else contents[0][1])
        time_ns = time_ns or (1_700_000_000 + sum(map(len, self._past.values()))) * 10**9
        os.utime(path, ns=(time_ns, time_ns))
        etag = Storage().stat(str(path)).etag
        self._files[file] = {name: v._replace(etag=etag) for name, v in members.items()}
        self._past.setdefault(file, []).append((members, time_ns))
        self._list()

    def _list(self) -> None:
        self.listing = {
            f"{file}#{member}" if member else file: version
            for file, members in self._files.items()
            for member, version in members.items()
        }
        self.versions |= {(name, v.etag): v for name, v in self.listing.items()}
