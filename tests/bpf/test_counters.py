from __future__ import annotations

from bpf import schema, syscall
from bpf.counters import PacketCounter, read_counters
from bpf.syscall import Map


def test_cpus_are_summed(privileged: None) -> None:
    spec, cpus = schema.MAPS["counters"], syscall.possible_cpus()
    table = Map(
        syscall.create_map(spec.type, spec.key.size, spec.value.size, 8, spec.flags, "counters")
    )
    values = [schema.COUNTER_VALUE.pack(cpu + 1, 100 * cpu) for cpu in range(cpus)]
    table.set(schema.COUNTER_KEY.pack(7, schema.Direction.INGRESS, 133, 0), b"".join(values))
    packets, length = cpus * (cpus + 1) // 2, 100 * (cpus * (cpus - 1) // 2)
    assert list(read_counters(table)) == [PacketCounter(7, True, 133, packets, length)]
    table.close()
