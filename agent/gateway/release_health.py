"""Health of the live release, from its workers and the requests of programs."""

from agent.serving import Serving
from agent.telemetry import Collector
from artifact.health import ReleaseHealth, SlotHealth


def release_health(serving: Serving, collector: Collector) -> ReleaseHealth:
    """Return the health of the live release; requests count for every route to a slot."""
    deployment = serving.deployment
    if deployment is None:
        return ReleaseHealth()
    release = deployment.release.reference
    slots = []
    for slot, worker in sorted(deployment.workers.items()):
        stats = worker.stats()
        totals = [
            total
            for labels, total in collector.totals.items()
            if (labels.release, labels.slot) == (release, slot)
        ]
        slots.append(
            SlotHealth(
                slot=slot,
                ready=stats.live,
                worker_restarts=stats.restarts,
                requests=sum(total.requests for total in totals),
                errors=sum(total.errors for total in totals),
            )
        )
    return ReleaseHealth(release, tuple(slots))
