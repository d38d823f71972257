"""Timing that other programs on the machine bend little: one core, processor time, alternating runs, medians of ratios.

The clock is the processor time of this process, all its threads together: with one thread on one core it equals the
time on the wall of an idle machine, and does not count the moments when something else had the core.

`interleaved` runs every candidate once a round, in an order that turns from round to round; a ratio is formed inside each
round, so that a slow moment hits all alike, and the median over the rounds is reported.
"""

import os
import platform
import statistics
import time


def pin_to_one_core():
    """This process and the threads it starts stay on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def interleaved(candidates, seconds, least_rounds=7):
    """Seconds of every call, by name, round by round. `candidates`: name to a function without arguments."""
    names = list(candidates)
    for name in names:
        candidates[name]()  # Warm-up.
    rounds = {name: [] for name in names}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < least_rounds or time.perf_counter() < end and turn < 1000:
        for position in range(len(names)):
            name = names[(position + turn) % len(names)]
            begin = time.process_time()
            candidates[name]()
            rounds[name].append(time.process_time() - begin)
        turn += 1
    return rounds


def median_ms(rounds):
    return 1e3 * statistics.median(rounds)


def median_ratio(before, after):
    """How many times faster `after` is: above 1 is a gain."""
    return statistics.median(a / b for a, b in zip(before, after))


def machine():
    """The class of the machine, without its name."""
    model, flags = platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model = fields.get("model name", model)
        known = ["avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp"]
        present = set(fields.get("flags", fields.get("Features", "")).split())
        flags = " ".join(flag for flag in known if flag in present)
    return f"{model}, {os.cpu_count()} cores, {flags or 'no vector extensions of note'}"
