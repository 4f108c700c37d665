#!/usr/bin/python3 -IS
"""crun's command line as the agent uses it, without containers: what it starts runs on the machine itself.

The annotation "takes" is the seconds that a creation takes.
"""

import json
import os
import select
import sys
import time


def main() -> None:
    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
    verb, *_, name = [word for word in sys.argv[1:] if not word.startswith("--")]
    gate = f"{options['root']}/{name}/exec.fifo"
    if verb == "start":
        with open(gate, "w") as file:
            file.write("go")
        return
    if verb == "create":
        os.makedirs(os.path.dirname(gate))
        os.mkfifo(gate)
        waiting = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
        with open(options.get("config", f"{options['bundle']}/config.json")) as file:
            spec = json.load(file)
        process = spec["process"]
        time.sleep(float(spec.get("annotations", {}).get("takes", "0")))
    else:
        with open(options["process"]) as file:
            process = json.load(file)
    program = process["args"][0]
    if not os.path.exists(program):
        with open(options["log"].removeprefix("file:"), "w") as file:
            json.dump({"msg": f"executable file `{program}` not found in $PATH: No such file or directory"}, file)
        sys.exit(1)
    child = os.fork()
    if child:
        with open(options["pid-file"], "w") as file:
            file.write(str(child))
        return
    if verb == "create":
        # By this descriptor: whoever starts it takes the name away before it writes.
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        poll.poll()
    os.execv(program, process["args"])


main()
