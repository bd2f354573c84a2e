"""A signal wakes the subscribers of its key and no others."""

from controlplane.services.signals import Signals


def test_subscribers_of_a_key_are_woken() -> None:
    signals = Signals()
    with signals.subscribe("a") as one, signals.subscribe("a") as two, signals.subscribe("b") as b:
        signals.notify("a")
        assert one.is_set()
        assert two.is_set()
        assert not b.is_set()


def test_those_who_left_leave_nothing_behind() -> None:
    signals = Signals()
    with signals.subscribe("a") as gone:
        pass
    signals.notify("a")
    assert not gone.is_set()
    assert signals._subscribers == {}
