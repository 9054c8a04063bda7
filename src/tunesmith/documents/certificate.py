"""The certificate: the proof that a stored model answers as the one did that was trained. Plain
data; what is measured: `evaluation.certify`.

Below the threshold nothing is loaded, promoted, exported or imported. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tunesmith import durable
from tunesmith.errors import CertificateRefused, UnsafeBaseModel
from tunesmith.safe_files import from_object, read_object
from tunesmith.tasks.specs import PREPROCESSING

LEAST_PROBES = 32
TOP1, KL = (
    0.99,
    0.01,
)  # least share of equal best tokens, largest mean divergence, where the precision was reduced
PRECISIONS = ("float32", "bfloat16", "float16")
NAME, PROBES = "certificate.json", "probes.safetensors"


@dataclass(frozen=True)
class Certificate:
    artefact: str
    """adapter, whole or merged"""
    precision: str
    probes: int
    equal: int
    ties: int
    top1: float
    kl: float
    different_from_base: int
    """Probes on which the base answers otherwise, in its log-probabilities at least."""
    stop_rate: float
    base: str
    """Its public name: where its weights were quantised before, not that of the hub's weights."""
    base_digest: str
    template_digest: str
    data_digest: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """ValueError unless every field is there and of its type."""
        found = from_object(cls, data)
        if found.precision not in PRECISIONS:
            raise ValueError(f"its precision is {found.precision!r:.40}")
        return found

    def objections(self) -> list[str]:
        """Why this artefact must not be used; empty where nothing speaks against it."""
        found = []
        if self.probes < LEAST_PROBES:
            found.append(f"{self.probes} probes, {LEAST_PROBES} are needed")
        if self.precision == "float32":
            other = self.probes - self.equal - self.ties
            found += (
                [
                    f"{other} of {self.probes} probes are answered otherwise than by the trained "
                    f"model"
                ]
                if other
                else []
            )
        elif self.top1 < TOP1 or not self.kl <= KL:
            found.append(
                f"best token equal at {self.top1:.1%} of the positions ({TOP1:.0%} are needed), "
                f"mean KL {self.kl:.3g} (at most {KL})"
            )
        if self.different_from_base == 0:
            found.append("it answers every probe exactly as its base does: the tuning does nothing")
        return found


def check(name: str, folder: Path, base_digest: str) -> Certificate:
    """The certificate of a published model; CertificateRefused where it forbids using the model, or
    the base or template is another."""
    found = read(name, folder)
    objections = found.objections()
    if found.base_digest != base_digest:
        objections.append("its base is another one than it was tuned from")
    if found.template_digest != template_digest(folder):
        objections.append("its prompt template is another one than it was tuned with")
    if objections:
        raise CertificateRefused(name=name, reasons="; ".join(objections))
    return found


def read(name: str, folder: Path) -> Certificate:
    try:
        return Certificate.from_json(read_object(folder / NAME))
    except (ValueError, UnsafeBaseModel) as e:
        raise CertificateRefused(name=name, reasons=f"{NAME} cannot be read ({e})") from None


def template_digest(folder: Path) -> str:
    """Of the file that says how rows become what goes into the model, whatever its task."""
    known = (folder / name for name in PREPROCESSING)
    return durable.sha256(next((f for f in known if f.exists()), folder / PREPROCESSING[1]))
