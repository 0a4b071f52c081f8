"""Time that passes only when told to: a host's clock, and a device that works through a queue."""


class FakeClock:
    """Seconds of the host."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class FakeDevice:
    """Does what it is asked for one after the other, while the host goes on."""

    def __init__(self, host):
        self.host = host
        self.free_at = host.now
        self.waits = 0

    def launch(self, seconds):
        """Ask for work; takes the host no time."""
        self.free_at = max(self.free_at, self.host.now) + seconds

    def event(self):
        return FakeEvent(self)


class FakeEvent:
    """As torch.cuda.Event: stands in the queue, and can be read once the device has come to it."""

    def __init__(self, device):
        self.device = device
        self.at = None

    def record(self):
        self.at = max(self.device.free_at, self.device.host.now)

    def query(self):
        return self.device.host.now >= self.at

    def synchronize(self):
        self.device.waits += 1
        self.device.host.now = max(self.device.host.now, self.at)

    def elapsed_time(self, later):
        assert self.query(), "read before the device came to it"
        assert later.query(), "read before the device came to it"
        return (later.at - self.at) * 1000.0
