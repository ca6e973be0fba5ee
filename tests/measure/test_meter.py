"""The meter of a CPU against what the kernel says, and the one choice by device."""

import os

import numpy as np
import psutil
import torch

from harness.measure.meter import CpuMeter, meter_of

CPU = torch.device("cpu")
_BYTES = 96 * 2**20


def test_a_device_has_one_meter():
    assert isinstance(meter_of(CPU), CpuMeter)
    assert meter_of(torch.device("cpu")) is meter_of(CPU)


def test_the_resident_set_is_the_one_that_psutil_reads():
    held = np.ones(_BYTES, dtype=np.uint8)
    said = meter_of(CPU).now().resident_bytes
    asked = psutil.Process(os.getpid()).memory_info().rss
    assert held.nbytes <= said
    assert abs(said - asked) < 4 * 2**20  # the kernel batches its count by thread


def test_a_peak_outlives_what_caused_it_and_not_the_next_phase():
    meter = meter_of(CPU)
    meter.begin()
    before = meter.read()
    held = np.ones(_BYTES, dtype=np.uint8)
    del held
    assert meter.read() - before > 0.9 * _BYTES
    meter.begin()
    assert meter.read() - before < 0.5 * _BYTES


def test_what_a_process_may_hold_contains_what_it_holds():
    meter = meter_of(CPU)
    assert meter.used_bytes() < meter.usable_bytes() <= meter.total_bytes() * 1.05


def test_a_cpu_tells_nothing_of_an_allocator_or_of_power():
    meter = meter_of(CPU)
    reading = meter.now()
    assert (reading.allocated_bytes, reading.reserved_bytes, reading.peak_bytes) == (None,) * 3
    assert (reading.utilization, reading.power_watts, meter.energy_joules()) == (None,) * 3


def test_the_parts_are_a_cpus_peak_and_a_part_that_is_missing_leaves_none():
    meter = meter_of(CPU)
    assert meter.training_peak(seen_bytes=10**9, parts_bytes=123) == 123
    assert meter.training_peak(seen_bytes=10**9, parts_bytes=None) is None
