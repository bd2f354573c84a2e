from datetime import UTC, datetime, timedelta

from controlplane.fleet import Presence, presence

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_connected_device_is_reachable_however_long_it_was_silent() -> None:
    old = NOW - timedelta(days=1)
    assert presence(connected=True, last_seen_at=old, now=NOW) is Presence.CONNECTED


def test_lost_device_counts_as_reachable_for_a_grace_only() -> None:
    just, past = NOW - timedelta(seconds=30), NOW - timedelta(seconds=31)
    assert presence(connected=False, last_seen_at=just, now=NOW) is Presence.RECONNECTING
    assert presence(connected=False, last_seen_at=past, now=NOW) is Presence.OFFLINE
    assert presence(connected=False, last_seen_at=None, now=NOW) is Presence.OFFLINE
    assert Presence.RECONNECTING.reachable
    assert not Presence.OFFLINE.reachable
