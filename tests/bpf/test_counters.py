from __future__ import annotations

from bpf import schema, syscall
from bpf.counters import PacketCounter, read_counters
from bpf.syscall import Map


def made(name: str) -> Map:
    spec = schema.MAPS[name]
    return Map(syscall.create_map(spec.type, spec.key.size, spec.value.size, 8, spec.flags, name))


def test_cpus_are_summed(privileged: None) -> None:
    """Also of what passed, which has a map of its own; of endpoints only that there are."""
    opened, cpus = (
        {n: made(n) for n in ("counters", "traffic", "endpoints")},
        range(syscall.possible_cpus()),
    )
    values = [schema.COUNTER_VALUE.pack(cpu + 1, 100 * cpu) for cpu in cpus]
    key = schema.COUNTER_KEY.pack(7, schema.Direction.INGRESS, 133, 0)
    opened["counters"].set(key, b"".join(values))
    passed = [schema.TRAFFIC.pack(cpu + 1, 100 * cpu, 0, 0) for cpu in cpus]
    for number in (5, 6):
        opened["traffic"].set(schema.U32.pack(number), b"".join(passed))
    for number in (5, 4711):
        opened["endpoints"].set(schema.U32.pack(number), schema.ENDPOINT.pack(1, 0, 0, 0))
    packets, length = sum(cpu + 1 for cpu in cpus), 100 * sum(cpus)
    assert list(read_counters(opened)) == [
        PacketCounter(7, True, 133, packets, length),
        PacketCounter(5, False, schema.FORWARDED, packets, length),
    ]
    for one in opened.values():
        one.close()
