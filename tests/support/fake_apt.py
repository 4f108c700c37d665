#!/usr/bin/python3 -IS
"""The part of apt-get's command line that hawse uses, with a directory of .deb files instead of a mirror.

$FAKE_APT is a directory with a JSON file `packages`: {name: [the .deb files that it needs]}. A file `outdated` there
makes every installation fail until `update` is called; `broken` makes every call fail. A file `tampered` contains the
name of a .deb whose content is changed, and how often; with `lost` no package arrives. Calls are appended to `calls`;
`seen` contains the options of the last call, and the parent directories of its archives that others cannot search.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys

MIRROR = os.environ["FAKE_APT"]


def main(words: list[str]) -> int:
    values = [word for before, word in itertools.pairwise(words) if before == "-o"]
    options = dict(value.split("=", 1) for value in values)
    call = [word for word in words if word not in ("-o", "-qq", *values)]
    plain = [word for word in call if not word.startswith("-")]
    with open(f"{MIRROR}/calls", "a") as calls:
        calls.write(" ".join(call) + "\n")
    if os.stat(options["Dir::State::status"]).st_size:
        return 100
    if plain == ["update"]:
        if os.path.exists(f"{MIRROR}/outdated"):
            os.unlink(f"{MIRROR}/outdated")
        return 0
    if any(os.path.exists(f"{MIRROR}/{reason}") for reason in ("outdated", "broken")):
        print("E: 404  Not Found", file=sys.stderr)
        return 100
    archives = options["Dir::Cache::archives"]
    way = [archives]
    while way[-1] != "/":
        way.append(os.path.dirname(way[-1]))
    closed = [path for path in way if not os.stat(path).st_mode & 0o001]
    with open(f"{MIRROR}/seen", "w") as file:
        json.dump({"options": options, "closed": closed}, file)
    with open(f"{MIRROR}/packages") as file:
        known = json.load(file)
    needed = dict.fromkeys(deb for name in plain[1:] for deb in known[name])
    for deb in needed:
        if os.path.exists(f"{archives}/{deb}"):
            continue  # apt neither lists nor downloads packages that it has already
        if "--print-uris" in call:
            with open(f"{MIRROR}/{deb}", "rb") as file:
                content = file.read()
            digest = hashlib.sha256(content).hexdigest()
            force = options.get("Acquire::ForceHash", "MD5Sum")
            print(f"'http://mirror/{deb}' {deb} {len(content)} {force}:{digest}")
        else:
            if os.path.exists(f"{MIRROR}/lost"):
                continue
            shutil.copyfile(f"{MIRROR}/{deb}", f"{archives}/{deb}")
            tamper(deb, f"{archives}/{deb}")
    return 0


def tamper(deb: str, path: str) -> None:
    """Change one byte of the package, as often as `tampered` requests."""
    try:
        with open(f"{MIRROR}/tampered") as file:
            name, times = file.read().split()
    except OSError:
        return
    if name == deb and int(times) > 0:
        with open(f"{MIRROR}/tampered", "w") as file:
            file.write(f"{name} {int(times) - 1}")
        with open(path, "r+b") as archive:
            archive.write(b"X")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
