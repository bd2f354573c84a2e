import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.worker import messages
from runtimes.base import Sampling, Usage

COMMANDS: list[messages.AnyCommand] = [
    messages.Generate(
        id=1, prompt="grüß", messages=None, sampling=Sampling(max_tokens=3, stop=("x",))
    ),
    messages.Infer(id=2, inputs=[messages.WireTensor("input", "FP32", (1, 2), b"\0" * 8)]),
    messages.ScoreText(id=3, text=""),
    messages.Cancel(id=2),
]


@given(cuts=st.lists(st.integers(1, 40), max_size=20))
def test_frames_survive_any_cut(cuts: list[int]) -> None:
    stream = b"".join(messages.encode(command) for command in COMMANDS)
    reader = messages.FrameReader()
    found: list[messages.AnyCommand] = []
    for size in [*cuts, len(stream)]:
        part, stream = stream[:size], stream[size:]
        found += [messages.decode_command(payload) for payload in reader.feed(part)]
    assert found == COMMANDS


def test_events_come_back_whole() -> None:
    event = messages.Generated(id=4, usage=Usage(1, 2, 0.5, 0.25))
    (payload,) = messages.FrameReader().feed(messages.encode(event))
    assert messages.decode_event(payload) == event


def test_a_frame_too_long_is_refused_before_it_is_read() -> None:
    header = (messages.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolError, match="the maximum is"):
        messages.FrameReader().feed(header)
    with pytest.raises(ProtocolError, match="the maximum is"):
        messages.encode(messages.ScoreText(id=1, text="x" * messages.MAX_FRAME_BYTES))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa4Nope"])
def test_nonsense_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_command(payload)
    with pytest.raises(ProtocolError):
        messages.decode_event(payload)
