#!/usr/bin/python3 -IS
"""A program of a sandbox (QEMU or virtiofsd) that a test simulates: see tests/support/fake_machine.py.

It passes the descriptors that its command line names to the test, then exits as the test requests.
"""

import array
import json
import os
import re
import socket
import sys
import time

directory, name = os.path.split(sys.argv[0])
connection = socket.socket(socket.AF_UNIX)
connection.connect(f"/proc/self/fd/{os.open(directory, os.O_DIRECTORY)}/programs.sock")
numbers = [int(number) for word in sys.argv for number in re.findall(r"fd[=/](\d+)", word)]
me = {
    "name": name,
    "argv": sys.argv,
    "pid": os.getpid(),
    "numbers": numbers,
}
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
connection.sendmsg([json.dumps(me).encode() + b"\n"], rights)
orders = connection.makefile()
while True:
    order = json.loads(orders.readline() or '{"exit": 0}')
    os.write(2, order.get("stderr", "").encode())
    if "exit" in order or "signal" in order:
        break
    connection.sendall(b"\n")
for number in set(numbers):
    os.close(number)
time.sleep(order.get("lingers", 0))
if "signal" in order:
    os.kill(os.getpid(), order["signal"])
os._exit(order["exit"])
