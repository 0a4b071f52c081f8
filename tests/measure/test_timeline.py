import pytest
import torch

from efftrain.measure.timeline import EventTimeline, HostTimeline, Unread, timeline_of
from tests.measure.device_queue import FakeClock, FakeDevice


@pytest.fixture
def now():
    return FakeClock()


@pytest.fixture
def device(now):
    return FakeDevice(now)


def test_a_cpu_is_timed_by_the_hosts_clock():
    timeline = timeline_of(torch.device("cpu"))
    assert isinstance(timeline, HostTimeline)
    earlier, later = timeline.mark(), timeline.mark()
    assert timeline.has_passed(later)
    assert 0 <= timeline.seconds(earlier, later) < 1


@pytest.mark.parametrize(
    ("name", "place", "attribute", "expected"),
    [
        ("cuda:1", torch.cuda, "Event", {"enable_timing": True}),
        ("xpu", torch, "Event", {"device": torch.device("xpu"), "enable_timing": True}),
    ],
)
def test_a_device_with_a_queue_is_timed_by_events(
    monkeypatch, device, name, place, attribute, expected
):
    def make(**options):
        assert options == expected
        return device.event()

    monkeypatch.setattr(place, attribute, make)
    timeline = timeline_of(torch.device(name))
    earlier = timeline.mark()
    device.launch(0.005)
    later = timeline.mark()
    assert timeline.has_passed(earlier)
    assert not timeline.has_passed(later)
    timeline.wait_for(later)
    assert timeline.seconds(earlier, later) == pytest.approx(0.005)


def test_what_the_device_has_not_done_is_not_read(now, device):
    timeline, read = EventTimeline(device.event), []
    unread = Unread(timeline, read.append)
    for place in range(100):
        device.launch(1.0)
        unread.add(timeline.mark(), place)
    assert read == []
    now.sleep(30.5)
    unread.read_passed()
    assert read == list(range(30))
    assert device.waits == 0
    unread.finish()
    assert read == list(range(100))
    assert device.waits == 1


def test_what_is_done_does_not_pile_up(now):
    read = []
    unread = Unread(HostTimeline(now), read.append)
    for place in range(1000):
        unread.add(now(), place)
        assert place - len(read) < 16
    unread.finish()
    assert read == list(range(1000))
