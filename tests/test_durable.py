import json
import os
import threading
from pathlib import Path

import pytest

from tunesmith import durable
from tunesmith.errors import DamagedFiles, DiskFull


def published(home: Path) -> tuple[Path, str]:
    with durable.staging(home) as outer:
        staged = outer / "thing"
        staged.mkdir()
        (staged / "a.bin").write_bytes(bytes(range(256)) * 8)
        (staged / "b.json").write_text("{}")
        digest = durable.publish(staged, home / "things" / "one", {"job": "x"})
    return home / "things" / "one", digest


def test_a_published_folder_verifies_and_nothing_is_left_in_staging(tmp_path: Path) -> None:
    folder, digest = published(tmp_path)
    assert durable.verify(folder, digest)["job"] == "x"
    assert not list((tmp_path / "tmp").iterdir())


def test_every_file_and_folder_is_synced_before_the_name_appears_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system is really asked, by the places of the descriptors."""
    asked: list[Path | str] = []
    fsync, rename = os.fsync, Path.rename

    def told(descriptor: int) -> None:
        asked.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        asked.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", told)
    monkeypatch.setattr(Path, "rename", renamed)
    folder, _ = published(tmp_path)
    at = asked.index("rename")
    before, after = asked[:at], asked[at + 1 :]
    assert {p.name for p in before if isinstance(p, Path) and p.parent.name == "thing"} == {
        "a.bin",
        "b.json",
        durable.MANIFEST,
    }
    staged = next(p.parent for p in before if isinstance(p, Path) and p.name == "a.bin")
    assert before.index(staged) > max(
        before.index(staged / n) for n in ("a.bin", "b.json", durable.MANIFEST)
    ) and after == [folder.parent]
    assert tmp_path in before, "the new folder things/ is known to its parent"


def test_what_was_not_published_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), durable.staging(tmp_path) as outer:
        (outer / "half").write_text("x")
        raise RuntimeError
    assert not list((tmp_path / "tmp").iterdir())


def _cut(folder: Path) -> None:
    (folder / "a.bin").write_bytes((folder / "a.bin").read_bytes()[:-1])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "a.bin").read_bytes())
    data[100] ^= 1
    (folder / "a.bin").write_bytes(data)


def _link(folder: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / "a.bin").rename(target)
    (folder / "a.bin").symlink_to(target)


def _forge(folder: Path) -> None:
    _flip(folder)
    manifest = json.loads((folder / durable.MANIFEST).read_text())
    manifest["files"]["a.bin"]["sha256"] = durable.sha256(folder / "a.bin")
    (folder / durable.MANIFEST).write_text(json.dumps(manifest))


DAMAGE = {
    "cut": _cut,
    "one bit": _flip,
    "deleted": lambda f: (f / "b.json").unlink(),
    "added": lambda f: (f / "c").write_text("x"),
    "link": _link,
    "no manifest": lambda f: (f / durable.MANIFEST).unlink(),
    "broken manifest": lambda f: (f / durable.MANIFEST).write_text("{"),
    "forged manifest": _forge,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_never_accepted(tmp_path: Path, kind: str) -> None:
    folder, digest = published(tmp_path)
    DAMAGE[kind](folder)
    with pytest.raises(DamagedFiles, match="were not loaded"):
        durable.verify(folder, digest)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_writing_is_a_full_disk_whoever_says_it(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(DiskFull, match="nothing was lost"), durable.staging(tmp_path):
        raise error
    assert not list((tmp_path / "tmp").iterdir())


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="MB needed"):
        durable.check_space(tmp_path / "not" / "there", 1 << 60)


def test_one_file_may_be_replaced_by_many_threads_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def write(n: int) -> None:
        try:
            for i in range(40):
                durable.replace_text(tmp_path / "said.txt", f"{n} {i}")
        except Exception as e:  # whatever it is
            errors.append(e)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors and (tmp_path / "said.txt").read_text().endswith(" 39")
    assert [p.name for p in tmp_path.iterdir()] == ["said.txt"], "no temporary file is left"
