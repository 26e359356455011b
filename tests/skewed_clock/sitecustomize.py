"""Shifts the wall clock of a Python process by `CLOCK_SKEW_S` seconds: Python imports this before anything else."""

import os
import time

_real_time, _real_time_ns = time.time, time.time_ns
_skew_s = float(os.environ["CLOCK_SKEW_S"])

time.time = lambda: _real_time() + _skew_s
time.time_ns = lambda: _real_time_ns() + int(_skew_s * 1e9)
