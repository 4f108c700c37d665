"""`hawse template list|build|remove`: the saved machines that sandboxes are restored from."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hawse.errors import HostError, UsageError
from hawse.vm import templates

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "list, build or remove the saved machines that sandboxes are restored from"
_MIB = 1024 * 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("action", choices=("list", "build", "remove"))
    parser.add_argument("digest", nargs="*", help="of remove: the templates' digests or their beginnings")
    parser.add_argument("-b", "--bundle", metavar="DIR", help="of build: for the machine of this bundle's sandbox")
    parser.add_argument("-a", "--all", action="store_true", help="of remove: all of them")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="of list")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Do it."""
    if args.action != "remove" and (args.digest or args.all):
        raise UsageError(f"template {args.action} takes no digest", hint="see `hawse template --help`")
    if args.action != "build" and args.bundle is not None:
        raise UsageError(f"template {args.action} takes no bundle", hint="see `hawse template --help`")
    if args.action == "build":
        return _build(args.bundle or "", settings)
    cache = settings.config.image.cache
    found = templates.list_all(cache)
    if args.action == "list":
        print(_as_json(found) if args.format == "json" else _as_table(found), end="")
        return 0
    if bool(args.digest) == args.all:
        raise UsageError("template remove takes digests or --all", hint="`hawse template list` has them")
    names = [name for name, _ in found]
    chosen = names if args.all else [_complete(prefix, names) for prefix in args.digest]
    for name in chosen:
        templates.remove(cache, name)
        print(f"removed the template {name[:12]}")
    return 0


def _build(bundle: str, settings: Settings) -> int:
    from hawse.commands.build_template import build, plan_of

    machine, notes = plan_of(settings.config, bundle)
    settings.log.tell(notes)
    print(described(*build(machine)))
    return 0


def described(made: templates.Template, fresh: bool, seconds: float) -> str:
    """The line about a template that was built, or found, in so many seconds."""
    how = f"built in {seconds:.1f} s" if fresh else "is there already"
    return f"template {made.digest[:12]}: {made.used / _MIB:.0f} MiB, {how}"


def _complete(prefix: str, names: list[str]) -> str:
    matches = [name for name in names if name.startswith(prefix)]
    if len(matches) != 1:
        raise UsageError(f"{'no template' if not matches else 'more than one template'} begins with {prefix[:64]!r}")
    return matches[0]


def _as_json(found: list[tuple[str, templates.Template | HostError]]) -> str:
    entries = [
        {"digest": name, "problem": made.sentence()}
        if isinstance(made, HostError)
        else {"digest": name, "used_bytes": made.used, "created": made.created, "shape": made.shape}
        for name, made in found
    ]
    return json.dumps(entries, indent=2) + "\n"


def _as_table(found: list[tuple[str, templates.Template | HostError]]) -> str:
    import time

    lines = [f"{'DIGEST':14}{'MIB':>6}  {'CREATED':21}{'MACHINE'}"]
    for name, made in found:
        if isinstance(made, HostError):
            lines.append(f"{name[:12]:14}{'':>6}  {'':21}unusable: {made.message}")
            continue
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.created))
        shape = made.shape
        machine = f"{shape['accel']}, {shape['cpus']} CPUs, {shape['memory_mib']} MiB, {shape['share']}"
        lines.append(f"{name[:12]:14}{made.used / _MIB:6.0f}  {created:21}{machine}, {shape['qemu']}")
    return "\n".join(lines) + "\n"
