"""Base models: which are here, and bringing others."""

from pathlib import Path

from tunesmith import access, catalog, registry, weights
from tunesmith.catalog import ModelSpec
from tunesmith.errors import BaseInUse
from tunesmith.jobs import JobStatus
from tunesmith.phases.child import CONVERT, Conversion
from tunesmith.phases.messages import Converted
from tunesmith.service.core import Core
from tunesmith.weights import Offer

__all__ = ["Bases", "Offer"]


class Bases(Core):
    """The verbs about base models."""

    def bases(self) -> list[tuple[ModelSpec, Path | None]]:
        """The catalogue and what was brought beside it, each with the folder of its weights, or
        None where they are not here."""
        return catalog.listed(self.settings.home)

    def base(self, name: str) -> ModelSpec:
        """UnknownBaseModel or WeightsNotHere."""
        return catalog.find(name, self.settings.home)

    def offer_base(self, source: str, name: str = "", *, revision: str = "") -> Offer:
        """What `add_base` would bring: its size, licence and source.

        `source`: a name of the catalogue, organisation/name of the hub, a folder, or a GGUF file.
        """
        return weights.offer(source, name, revision)

    def add_base(self, source: str, name: str = "", *, revision: str = "") -> ModelSpec:
        """Bring the weights of a base model, for all homes of this user; whoever calls this agrees
        to what `offer_base` tells.

        BaseNotBrought, UnsafeBaseModel or UnfitBaseModel where that cannot be done; nothing of it
        is kept then.
        """
        access.require(self.principal, "CREATE MODEL", name or source)
        return weights.bring(weights.offer(source, name, revision), self._convert)

    def remove_base(self, name: str, *, force: bool = False) -> None:
        """Remove what was brought. BaseInUse where models or jobs of this home need it, unless by
        force."""
        access.require(self.principal, "OWNERSHIP", name)
        home = self.settings.home
        folder = str(weights.folder_of(name))
        models = registry.listing(self.store, home)
        jobs = self.store.jobs_in_pages([s for s in JobStatus if not s.is_final])
        using = [m.name for m in models if m.folder and m.base.folder == folder]
        using += [j.name for j in jobs if j.base.get("folder") == folder]
        if using and not force:
            raise BaseInUse(count=len(using), name=name, models=", ".join(using[:5]))
        weights.remove(name)

    def _convert(self, source: Path, target: Path) -> str:
        work = Conversion(str(source), str(target), self.settings.threads)
        return self._run(CONVERT, work, Converted).quantisation
