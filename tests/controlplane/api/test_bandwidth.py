"""Downloads keep to their rates per device and per site; without a rate they are not paced."""

import asyncio

from controlplane.api.bandwidth import LEAST_BURST_BYTES, MAX_BUCKETS, Bandwidth

MIB = 1 << 20


class Line:
    """A clock that sleepers move, one at a time, as an event loop would."""

    def __init__(self, device: int | None, site: int | None) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self.bandwidth = Bandwidth(device, site, lambda: self.now, self.sleep)
        self.running = 0

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self.now + seconds, woken))
        self._advance()
        await woken.wait()

    def _advance(self) -> None:
        if len(self._sleepers) == self.running:
            self._sleepers.sort(key=lambda sleeper: sleeper[0])
            at, woken = self._sleepers.pop(0)
            self.now = at
            woken.set()

    async def download(self, *downloads: tuple[str, str, int]) -> list[float]:
        """Download these (device, site, bytes) at once; return when each was done, in seconds."""
        self.running = len(downloads)
        return await asyncio.gather(*(self._download(*each) for each in downloads))

    async def _download(self, device: str, site: str, size: int) -> float:
        labels = {"site": site} if site else {}
        pieces = [piece async for piece in self.bandwidth.paced(device, labels, bytes(size))]
        assert sum(map(len, pieces)) == size
        end = self.now
        self.running -= 1
        if self._sleepers:
            self._advance()
        return end


async def test_without_limits_nothing_waits() -> None:
    line = Line(None, None)
    data = bytes(MIB)
    assert [piece async for piece in line.bandwidth.paced("a", {}, data)] == [data]
    assert line.now == 0


async def test_a_device_gets_its_rate() -> None:
    line = Line(MIB, None)
    (end,) = await line.download(("a", "", 10 * MIB))
    assert 9.5 <= end <= 10


async def test_devices_of_one_site_share_its_rate() -> None:
    line = Line(None, MIB)
    ends = await line.download(*((name, "plant", 2 * MIB) for name in "abcde"))
    assert 9.5 <= max(ends) <= 10


async def test_sites_do_not_slow_each_other_and_devices_without_one_are_free() -> None:
    line = Line(None, MIB)
    one, two, free = await line.download(
        ("a", "one", 4 * MIB), ("b", "two", 4 * MIB), ("c", "", 4 * MIB)
    )
    assert free == 0
    assert 3.5 <= one <= 4
    assert 3.5 <= two <= 4


async def test_the_narrower_of_both_counts() -> None:
    line = Line(MIB, 100 * MIB)
    (end,) = await line.download(("a", "plant", 4 * MIB))
    assert 3.5 <= end <= 4


async def test_a_slow_line_is_never_silent_for_long() -> None:
    """Agents cancel a download without progress for half a minute."""
    line = Line(4096, None)
    pauses = []
    before = 0.0
    async for piece in line.bandwidth.paced("a", {}, bytes(8 * LEAST_BURST_BYTES)):
        assert len(piece) == LEAST_BURST_BYTES
        line.running = 1
        pauses.append(line.now - before)
        before = line.now
    assert max(pauses) <= 4


async def test_opening_a_download_anew_gains_nothing() -> None:
    line = Line(MIB, None)
    for _ in range(40):
        await line.download(("a", "", MIB // 4))
    assert line.now >= 9.5


async def test_devices_that_left_are_forgotten() -> None:
    line = Line(MIB, None)
    for number in range(MAX_BUCKETS):
        await line.download((str(number), "", 1))
    line.now += 10
    await line.download(("a", "", 1))
    assert len(line.bandwidth._buckets) == 1
