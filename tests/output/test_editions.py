"""Which edition readers take, and which newer one they name."""

from __future__ import annotations

import pytest

from segcore.errors import AccessDenied, StorageError, UsageError
from segcore.output.editions import choose_edition, newest_edition
from segcore.output.latest import publish, read_published, should_publish
from segcore.output.layout import OutputLayout
from segcore.storage import Storage

storage = Storage()


@pytest.fixture
def output(folder: str) -> OutputLayout:
    """Three editions, `old` published, `new` with the newest run, `bare` without a run."""
    output = OutputLayout(f"{folder}/out")
    for name in ("old", "middle", "bare", "new"):
        storage.write(output.edition(name).edition_json, b"{}")
    for name in ("old", "middle"):
        storage.write(output.edition(name).run_record("ab"), b"{}")
    storage.write(output.edition("new").execution("other"), b"{}")  # is no record of a run
    # Names without an edition beside them, as people leave them there.
    storage.write(f"{folder}/out/notes/readme.txt", b"x")
    storage.write(f"{folder}/out/table.csv", b"x")
    publish(storage, output.edition("old"), "ab", "success")
    return output


def test_defaults_and_names(output: OutputLayout) -> None:
    later = output.edition("new").run_record("cd")
    while newest_edition(storage, output) != "new":  # S3 dates objects by the second
        storage.write(later, b"{}")
    published = choose_edition(storage, output.uri)
    assert (published.layout.name, published.published, published.newer) == ("old", "old", "new")
    newest = choose_edition(storage, output.uri, newest=True)
    assert (newest.layout.name, newest.published, newest.newer) == ("new", "old", "")
    for named in (
        choose_edition(storage, output.uri, "middle"),
        choose_edition(storage, output.edition("middle").prefix),
    ):
        assert (named.layout.name, named.published, named.newer) == ("middle", "old", "")
    assert newest_edition(storage, output, without="new") in ("old", "middle")
    with pytest.raises(UsageError, match="has no edition missing") as caught:
        choose_edition(storage, output.uri, "missing")
    assert caught.value.hint == "Its editions: bare, middle, new, old."


def test_without_a_pointer(output: OutputLayout) -> None:
    storage.delete(output.latest_json)
    with pytest.raises(UsageError, match="holds 4 editions, and none of them is published"):
        choose_edition(storage, output.uri)
    only = choose_edition(storage, output.edition("old").prefix)
    assert only.sentences() == ["Edition old; nothing is published."]
    with pytest.raises(UsageError, match="holds no edition"):
        choose_edition(storage, f"{output.uri}/notes")


def test_a_named_edition_needs_no_other_permission(output: OutputLayout) -> None:
    class OnlyOneEdition(Storage):
        def read(self, uri: str, max_bytes: int | None = None) -> bytes:
            if uri == output.latest_json:
                raise AccessDenied("No permission.")
            return super().read(uri, max_bytes)

    choice = choose_edition(OnlyOneEdition(), output.uri, "old")
    assert (choice.published, choice.sentences()) == (None, ["Edition old."])


def test_an_outage_is_not_taken_for_an_output_without_a_pointer(output: OutputLayout) -> None:
    class Down(Storage):
        def read(self, uri: str, max_bytes: int | None = None) -> bytes:
            raise StorageError("down")

    with pytest.raises(StorageError, match="down"):
        read_published(Down(), output)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"edition": 3}', b'{"edition": "../x"}', b'{"edition": "gone"}']
)
def test_a_pointer_that_leads_nowhere_publishes_nothing(output: OutputLayout, data: bytes) -> None:
    storage.write(output.latest_json, data)
    published = read_published(storage, output)
    assert published == ("", "")
    with pytest.raises(UsageError) as caught:
        choose_edition(storage, output.uri)
    assert output.latest_json in caught.value.message or "plain relative" in caught.value.message
    assert should_publish(published, "new", None)
    assert not should_publish(published, "new", False)
