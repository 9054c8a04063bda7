"""How a certificate is made: an artefact that was read back answers the stored probes."""

from typing import Any

from tunesmith.documents.certificate import Certificate
from tunesmith.tasks.task import Agreement, Probes


def certify(
    artefact: str,
    precision: str,
    model: Any,
    probes: Probes,
    of_base: Agreement,
    *,
    base: str,
    base_digest: str,
    template_digest: str,
    data_digest: str,
) -> Certificate:
    """The certificate of an artefact that was read back as `model`; `of_base` is how its base reads
    the same probes."""
    found = probes.replay(model)
    return Certificate(
        artefact,
        precision,
        probes.count,
        found.equal,
        found.ties,
        found.top1,
        found.kl,
        probes.differing(of_base, found),
        probes.stop_rate,
        base,
        base_digest,
        template_digest,
        data_digest,
    )
