"""Places for batches in front of the devices: how many are on their way at a time, and to which device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.runtime.batch import Batch, Priority, PriorityQueues
from services.runtime.memory import MemoryLedger
from services.runtime.stages import DeviceThread

PIPELINE_DEPTH = 2  # batches of a priority per device: one runs, one is ready or being prepared


class PipelineSlots:
    """Slots of every priority at every device. A batch is formed when there is one for it.

    Without a slot it is formed where a batch of the same key waits for the device and has room: the two run
    as one. Otherwise the calls that the last batch answered would find the next batch closed, and callers
    with one call at a time would fall into three groups, of which one runs: batches of a third of them.

    Args:
        devices: Each has `PIPELINE_DEPTH` slots of a priority, and one more for callers with nothing in
            progress, so that batches of others do not block them.

    Attributes:
        free: Devices by priority, once for every free slot.
        express: Likewise, of the additional slots.
        in_progress: By priority, the requests in batches of each caller.
    """

    def __init__(self, devices: Sequence[DeviceThread]) -> None:
        self._all = PIPELINE_DEPTH * len(devices)
        self.free = {priority: list(devices) * PIPELINE_DEPTH for priority in Priority}
        self.express = {priority: list(devices) for priority in Priority}
        self.in_progress: dict[Priority, Counter[str]] = {priority: Counter() for priority in Priority}
        self._cut: dict[Priority, list[tuple[Batch, DeviceThread]]] = {priority: [] for priority in Priority}

    @property
    def are_idle(self) -> bool:
        """Whether nothing is on its way to any device."""
        return all(len(devices) == self._all for devices in self.free.values())

    def next_batch(
        self, priority: Priority, queues: PriorityQueues, most: int, memory: MemoryLedger
    ) -> tuple[Batch, DeviceThread] | None:
        """Forms the next batch of a priority that has requests, and takes a slot for it.

        Returns:
            The batch and the least busy device; None without a slot, or where all requests wait for memory.
        """
        if self.free[priority]:
            formed = self._formed(queues.next_batch(priority, most, memory), self.free[priority])
        else:
            formed = self._joining(priority, queues, most, memory) or self._of_others(
                priority, queues, most, memory
            )
        if formed is not None:
            self._cut[priority].append(formed)
            self.in_progress[priority].update(request.caller for request in formed[0].requests)
        return formed

    def _joining(
        self, priority: Priority, queues: PriorityQueues, most: int, memory: MemoryLedger
    ) -> tuple[Batch, DeviceThread] | None:
        """A batch without a slot, to run with one that waits."""
        key = next(iter(queues[priority])).key
        room: Counter[DeviceThread] = Counter()
        for batch, device in self._cut[priority]:
            if batch.key == key and not batch.begun:
                room[device] = room.get(device, most) - batch.size
        if not room or max(room.values()) <= 0:
            return None
        device, free = room.most_common(1)[0]
        joining = queues.next_batch(priority, free, memory)
        if joining is None:
            return None
        joining.slotted = False
        return joining, device

    def _of_others(
        self, priority: Priority, queues: PriorityQueues, most: int, memory: MemoryLedger
    ) -> tuple[Batch, DeviceThread] | None:
        """A batch of callers with nothing in progress."""
        busy = self.in_progress[priority]
        if not self.express[priority] or busy[next(iter(queues[priority])).caller]:
            return None
        batch = queues.next_batch(priority, most, memory, lambda request: not busy[request.caller])
        if batch is not None:
            batch.express = True
        return self._formed(batch, self.express[priority])

    def _formed(self, batch: Batch | None, slots: list[DeviceThread]) -> tuple[Batch, DeviceThread] | None:
        if batch is None:
            return None
        device = max(slots, key=self._free_at)
        slots.remove(device)
        return batch, device

    def give_back(self, batch: Batch, device: DeviceThread) -> None:
        """Frees the slot of a batch, which may still be in progress."""
        self._slots_of(batch).append(device)

    def finished(self, batch: Batch) -> None:
        """The requests of a batch are no longer in progress in it."""
        self._cut[batch.priority] = [one for one in self._cut[batch.priority] if not one[0].begun]
        busy = self.in_progress[batch.priority]
        for request in batch.requests:
            busy[request.caller] -= 1
            if not busy[request.caller]:
                del busy[request.caller]

    def _slots_of(self, batch: Batch) -> list[DeviceThread]:
        return (self.express if batch.express else self.free)[batch.priority]

    def _free_at(self, device: DeviceThread) -> int:
        """Free slots of a device over all priorities: the more, the less busy it is."""
        return sum(devices.count(device) for devices in self.free.values())
