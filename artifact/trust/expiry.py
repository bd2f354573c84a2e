"""Expiry of the metadata that offline keys sign, which no server can renew."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from tuf.api.metadata import Root, Targets

from artifact.trust.metadata import Roles, parse


def expiries(roles: Roles) -> dict[str, datetime]:
    """Return when root, targets and each publisher's metadata expire."""
    targets = parse(Targets, roles["targets"], "targets").signed
    publishers = (targets.delegations.roles if targets.delegations else None) or {}
    return {
        "root": parse(Root, roles["root"], "root").signed.expires,
        "targets": targets.expires,
        **{name: parse(Targets, roles[name], name).signed.expires for name in publishers},
    }


def blocking(
    expires: Mapping[str, datetime], publisher: str, until: datetime
) -> dict[str, datetime]:
    """Return the roles whose expiry before ``until`` stops installations from a publisher."""
    needed = ("root", "targets", publisher)
    return {role: expires[role] for role in needed if role in expires and expires[role] <= until}


def days_left(expires: datetime, now: datetime) -> int:
    """Return the whole days until an expiry; negative once it has passed."""
    return (expires - now) // timedelta(days=1)
