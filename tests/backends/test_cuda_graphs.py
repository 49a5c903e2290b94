"""Recording of CUDA graphs, on a torch.cuda that only notes what is called."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from sedd_fast.backends import cuda_graphs

DEVICE = torch.device("cuda", 1)


class Stream:
    device = DEVICE

    def __init__(self, device: torch.device | None = None, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        SEEN.append(f"{self.name} waits for {other.name}")


SEEN: list[str] = []
MAIN = Stream(name="main")


@contextlib.contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    SEEN.append(f"on {stream.name}")
    yield


@contextlib.contextmanager
def capture(graph: object, pool: object = None, stream: Stream | None = None) -> Iterator[None]:
    SEEN.append(f"capture in {pool} on {stream.name}")
    yield
    SEEN.append("end")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    SEEN.clear()
    fakes = {
        "Stream": Stream, "current_stream": lambda: MAIN, "stream": on_stream,
        "device": lambda device: contextlib.nullcontext(),
        "set_stream": lambda stream: SEEN.append(f"back to {stream.name}"),
        "CUDAGraph": object, "graph": capture, "synchronize": lambda device: SEEN.append("wait"),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cuda_graphs._side_stream.cache_clear()
    yield
    cuda_graphs._side_stream.cache_clear()


def test_a_call_is_captured_after_a_warm_up_on_the_same_stream():
    _, result = cuda_graphs.record(lambda: SEEN.append("call") or 7, DEVICE, "pool")
    assert result == 7
    assert SEEN == [
        "side waits for main", "on side", "call", "call", "main waits for side",
        "capture in pool on side", "call", "end",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_capture_that_failed_another_one_succeeds(error, monkeypatch):
    def call() -> None:
        if SEEN[-1].startswith("capture"):
            raise error

    monkeypatch.setattr(torch, "zeros", lambda *_, device: SEEN.append(f"zeros on {device}"))
    with pytest.raises(error):
        cuda_graphs.record(call, DEVICE)
    assert SEEN[-6:] == [
        "capture in None on side", "back to main", "wait", "capture in None on side",
        "zeros on cuda:1", "end",
    ]  # fmt: skip
