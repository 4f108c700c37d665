"""The form of a PCI function's address in sysfs: domain, bus, device and function in hexadecimal digits.

A domain has four digits or, on hosts with many of them (Intel VMD), up to eight (Linux drivers/pci/probe.c,
pci_setup_device()).
"""

from __future__ import annotations

import re

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
