"""Threads of torch that wait for one another should sleep: spinning ones starve each other on a busy machine."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
