# SPDX-License-Identifier: GPL-2.0
"""Marks on the guest's console; scripts/profile on the host measures the processor time between them."""

import json
import os
import time

OUT = "/out"
_last = 0


def ready():
    """Copies the names of the kernel's functions to the host, and waits until it samples."""
    with open("/proc/kallsyms") as names, open(f"{OUT}/kallsyms", "w") as copy:
        copy.write(names.read())
    print("@@ ready", flush=True)
    while not os.path.exists(f"{OUT}/sampling"):
        time.sleep(0.05)


class Span:
    """`with Span() as span:` marks what is to be measured; afterwards `span.seconds` is the guest's time for it."""

    def __enter__(self):
        global _last
        _last += 1
        self.number = _last
        print(f"@@ {self.number} begin", flush=True)
        self._since = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self._since
        print(f"@@ {self.number} end", flush=True)


def note(**what):
    with open(f"{OUT}/results", "a") as file:
        file.write(json.dumps(what) + "\n")
