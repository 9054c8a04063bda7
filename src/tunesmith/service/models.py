"""Tuned and base models: what there is, promotion, removal, export and import."""

import os
import uuid
from dataclasses import asdict, replace
from pathlib import Path

from tunesmith import access, catalog, durable, registry
from tunesmith.documents import certificate
from tunesmith.documents.card import Facts
from tunesmith.documents.certificate import Certificate
from tunesmith.documents.verdict import objection
from tunesmith.errors import (
    BaseNotHere,
    DamagedRow,
    FolderTaken,
    InvalidOptionValue,
    LineAwaited,
    NotMergeable,
    NotPromoted,
    UnknownModel,
    closest,
)
from tunesmith.jobs import JobStatus
from tunesmith.models import methods
from tunesmith.names import model_key
from tunesmith.phases.child import EXPORT, Transfer
from tunesmith.phases.messages import Written
from tunesmith.registry import TunedModel
from tunesmith.service.bases import Bases
from tunesmith.store import JobStore

PRIVATE_OPTIONS = ("test_data", "swap_terms", "new_version_of")  # never in a model card


class Models(Bases):
    """The verbs about models."""

    def models(self) -> list[TunedModel]:
        return registry.listing(self.store, self.settings.home)

    def model(self, name: str) -> TunedModel:
        """The tuned or base model of this name; UnknownModel otherwise."""
        return registry.resolve(self.store, self.settings.home, name)

    def promote(self, name: str, *, force: bool = False) -> TunedModel:
        """Let the name whose versions `name` is one of (its option `new_version_of`) answer with
        it; also back: `router@1`.

        NotPromoted unless its verdict is HELPED and its answers stop, or `force`; never past a
        certificate (CertificateRefused).
        """
        tuned = self._tuned(name)
        access.require(self.principal, "OWNERSHIP", tuned.line)
        registry.must_be_proven(tuned)
        if not force and (reason := objection(tuned.verdict)):
            raise NotPromoted(line=tuned.line, name=tuned.name, reason=reason)
        self.store.promote(tuned.id)
        return self.model(f"{tuned.line}@{tuned.version}")

    def drop_model(self, name: str) -> str:
        """Remove a tuned model and its files, and give its name; its job keeps what is known of it
        and gives its name back.

        The model is the one that bears the name, or `name@2`; the name of a line answers with the
        last version that is left.

        UnknownModel, OfAnotherHome, or LineAwaited while an unfinished job is to become a version
        of a line of which this is the last.
        """
        try:
            tuned = self._files_here(registry.itself(self.store, self.settings.home, name))
        except DamagedRow as e:
            return self._drop_damaged(name, e)
        access.require(self.principal, "OWNERSHIP", tuned.name)
        is_last = [m.id for m in self.models() if m.line == tuned.line] == [tuned.id]
        for job in self.store.all_jobs([s for s in JobStatus if not s.is_final]):
            if job.options.new_version_of and _is_of(
                self.store, tuned, job.options.new_version_of, is_last
            ):
                raise LineAwaited(name=tuned.name, id=job.id, job=job.name)
        with durable.removing(Path(tuned.folder).parent):
            self.store.drop_model(tuned.id)
        return tuned.name

    def _drop_damaged(self, name: str, error: DamagedRow) -> str:
        """A model whose row cannot be believed: its row, and its files in the folder of its id,
        which is here or the error stays."""
        access.require(self.principal, "OWNERSHIP", name)
        folder = self.settings.home / "models" / str(error.fields["row"])
        if folder.name not in {p.name for p in (self.settings.home / "models").glob("*")}:
            raise error
        with durable.removing(folder):
            self.store.drop_model(folder.name)
        return name

    def export(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        merged: bool = False,
        with_base: bool = False,
    ) -> Certificate:
        """Write a tuned model as a Hugging Face folder with its model card, once it has answered
        its probes again from those files.

        `merged`: one plain model in the base's precision, or in float32 where that would round too
        much away (`Certificate.precision`). `with_base`: the base goes along, in `base/`, so that
        an adapter answers wherever the folder is. FolderTaken, or CertificateRefused where it does
        not answer as the trained model did; then nothing is written.
        """
        tuned = self._tuned(name)
        access.require(self.principal, "USAGE", tuned.name)
        target = Path(folder).expanduser().absolute()
        with durable.typed_errors(target):
            if os.path.lexists(target):
                raise FolderTaken(folder=str(folder))
            target.exists()  # a name that is too long is told before anything is computed
        if merged and not methods.METHODS[tuned.method].can_merge:
            raise NotMergeable(name=tuned.name, method=tuned.method)
        if with_base and (merged or methods.METHODS[tuned.method].artefact != "adapter"):
            allowed = "an adapter has a base; what is exported here is a whole model"
            raise InvalidOptionValue(name="with_base", value=True, allowed=allowed)
        registry.must_be_proven(tuned)
        work = Transfer(
            tuned.name,
            tuned.base.to_json(),
            tuned.method,
            tuned.folder,
            str(target),
            merged,
            asdict(replace(self._facts(tuned), has_base=with_base)),
            self.settings.device,
            self.settings.threads,
            with_base,
        )
        return Certificate.from_json(dict(self._run(EXPORT, work, Written).certificate))

    def import_model(
        self, folder: str | os.PathLike[str], name: str = "", *, base_model: str = ""
    ) -> TunedModel:
        """Take in a model that `export` wrote, here or elsewhere, once it has answered its probes
        on this machine.

        Its base must be here: it is found by its fingerprint, or named. DamagedFiles, BaseNotHere
        or CertificateRefused otherwise.
        """
        source = Path(folder).expanduser().absolute()
        manifest = durable.verify(source)
        name = name or str(manifest.get("name", source.name))
        access.require(self.principal, "CREATE MODEL", name)
        key = model_key(name)
        base = self._base_of(folder, base_model, certificate.read(name, source).base_digest)
        certificate.check(name, source, catalog.fingerprint(base))
        model_id = str(uuid.uuid4())
        place = Path("models") / model_id / "v1"
        method = "lora" if (source / "adapter_config.json").exists() else "full"
        work = Transfer(
            name,
            base.to_json(),
            method,
            str(source),
            str(self.settings.home / place),
            False,
            None,
            self.settings.device,
            self.settings.threads,
        )
        store = self.store
        with durable.making(self.settings.home / "models" / model_id):
            written = self._run(EXPORT, work, Written)
            facts = dict(
                id=model_id,
                name=name,
                model_key=key,
                job_id=None,
                base_model=base.name,
                base=base.to_json(),
                task=base.task,
                method=method,
                folder=str(place),
                digest=written.digest,
                verdict=None,
                owner=self.principal.user,
            )
            store.add_model(facts)
        return next(m for m in self.models() if m.id == model_id)

    def _facts(self, tuned: TunedModel) -> Facts:
        """What a model card tells."""
        base = tuned.base
        known = Facts(
            tuned.name,
            base.public_name,
            base.hub_id,
            base.licence,
            tuned.method,
            base.task,
            verdict=tuned.verdict,
            dequantised=base.dequantised,
        )
        if not tuned.job_id:
            return known
        job = self.store.get(tuned.job_id)
        options = job.resolved.to_json() if job.resolved else {}
        curve = [
            (m["step"], m["training_loss"], m["validation_loss"])
            for m in self.store.rows("metrics", job.id)
        ]
        return replace(
            known,
            rows=dict(job.rows),
            trained_tokens=job.trained_tokens,
            curve=curve,
            options={
                k: v["value"]
                for k, v in options.items()
                if v["value"] not in ("", 0) and k not in PRIVATE_OPTIONS
            },
        )

    def _base_of(
        self, folder: str | os.PathLike[str], named: str, digest: str
    ) -> catalog.ModelSpec:
        """The base of a model from elsewhere: the one that is named, or the one here whose
        fingerprint it carries."""
        here = (
            [catalog.find(named, self.settings.home)]
            if named
            else [
                catalog.find(spec.name, self.settings.home)
                for spec, place in self.bases()
                if place is not None
            ]
        )
        for spec in here:
            if catalog.fingerprint(spec) == digest:
                return spec
        raise BaseNotHere(
            folder=os.fspath(folder), tried=[s.name for s in here], digest=digest[:12] + "…"
        )

    def _tuned(self, name: str) -> TunedModel:
        """A tuned model; UnknownModel for a base."""
        found = self.model(name)
        if not found.folder:
            raise UnknownModel(name=name, closest=closest(name, self.store.model_names()))
        return self._files_here(found)


def _is_of(store: JobStore, tuned: TunedModel, name: str, is_last: bool) -> bool:
    """Whether a name means this model, or the line of which it is the last."""
    plain = model_key(name.partition("@")[0])
    if not is_last:
        return plain == model_key(tuned.name)
    try:
        row = store.model(plain)
    except DamagedRow:
        return False
    return tuned.line == (plain if row is None else row.line)
