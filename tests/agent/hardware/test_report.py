"""The text report of `flotilla-agent bench`."""

from dataclasses import replace

from agent.hardware.report import report
from artifact.device_facts import CoreCluster, CpuTopology, MicroBenchmark
from tests.agent.selection.test_ranking import FACTS

BENCHMARK = MicroBenchmark(
    memory_bytes_per_second=20e9,
    int8_operations_per_second=98e9,
    weight_bytes_per_second={"q4_k": 10.737e9},
    spreads={"memory": 0.02, "int8": 0.05, "q4_k": 0.03},
)
BIG_LITTLE = CpuTopology(1, 8, 1, (CoreCluster(4, 2400), CoreCluster(4, 1800)))


def test_the_report_shows_the_box_and_its_rates() -> None:
    text = report(
        replace(FACTS, benchmark=BENCHMARK, topology=BIG_LITTLE, cpu_quota=4.5, threads=3), 7.6
    )
    assert "8 cores (4 at 2400 MHz, 4 at 1800 MHz); 4 usable, limited to 4.5 by its cgroup" in text
    assert "8.0 GiB usable, of which all models together may take 3.8 GiB" in text
    assert "by its cgroup; a model computes with 3" in text
    assert "measured in 8 s" in text
    (memory,) = [line for line in text.splitlines() if line.startswith("  memory")]
    assert memory.split()[1:4] == ["20.00", "GB/s", "2%"]
    (matrices,) = [line for line in text.splitlines() if line.startswith("  matrices")]
    assert "unmeasured" in matrices
    (weights,) = [line for line in text.splitlines() if line.startswith("  q4_k")]
    assert weights.split()[-2:] == ["10.0", "tokens/s"]
    assert text.endswith("All figures repeated within 10%.")


def test_a_disturbed_measurement_is_called_so() -> None:
    shaken = replace(BENCHMARK, spreads={"memory": 0.4, "int8": 0.05})
    text = report(replace(FACTS, benchmark=shaken), 7.6)
    assert "1 of 2 figures did not repeat within 10%: other work was running." in text
