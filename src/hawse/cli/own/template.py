"""`hawse template list|build|remove`: manage the templates, saved VMs that sandboxes are restored from."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hawse.errors import HostError, UsageError
from hawse.vm import templates as template

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "list, build or remove templates: saved VMs that sandboxes are restored from"
_MIB = 1024 * 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("action", choices=("list", "build", "remove"))
    parser.add_argument(
        "digest", nargs="*", help="for remove: digests of templates, or the first characters of a digest"
    )
    parser.add_argument("-b", "--bundle", metavar="DIR", help="for build: the bundle whose VM the template is for")
    parser.add_argument("-a", "--all", action="store_true", help="for remove: all templates")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table", help="for list")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """List, build or remove templates."""
    if args.action != "remove" and (args.digest or args.all):
        raise UsageError(f"template {args.action} takes no digest", hint="see `hawse template --help`")
    if args.action != "build" and args.bundle is not None:
        raise UsageError(f"template {args.action} takes no bundle", hint="see `hawse template --help`")
    if args.action == "build":
        return _build(args.bundle or "", settings)
    cache = settings.config.image.cache
    templates = template.list_all(cache)
    if args.action == "list":
        print(_as_json(templates) if args.format == "json" else _as_table(templates), end="")
        return 0
    if bool(args.digest) == args.all:
        raise UsageError("template remove takes digests or --all", hint="`hawse template list` shows the digests")
    names = [name for name, _ in templates]
    chosen = names if args.all else [_complete(prefix, names) for prefix in args.digest]
    for name in chosen:
        template.remove(cache, name)
        print(f"removed the template {name[:12]}")
    return 0


def _build(bundle: str, settings: Settings) -> int:
    from hawse.commands.build_template import build, plan_vm

    machine, notes = plan_vm(settings.config, bundle)
    settings.log.tell(notes)
    print(described(*build(machine)))
    return 0


def described(built: template.Template, fresh: bool, seconds: float) -> str:
    """The line about a template that was built in ``seconds``, or that exists already."""
    how = f"built in {seconds:.1f} s" if fresh else "exists already"
    return f"template {built.digest[:12]}: {built.used / _MIB:.0f} MiB, {how}"


def _complete(prefix: str, names: list[str]) -> str:
    matches = [name for name in names if name.startswith(prefix)]
    if len(matches) != 1:
        raise UsageError(f"{'no template' if not matches else 'more than one template'} begins with {prefix[:64]!r}")
    return matches[0]


def _as_json(templates: list[tuple[str, template.Template | HostError]]) -> str:
    entries = [
        {"digest": name, "problem": state.sentence()}
        if isinstance(state, HostError)
        else {"digest": name, "used_bytes": state.used, "created": state.created, "shape": state.shape}
        for name, state in templates
    ]
    return json.dumps(entries, indent=2) + "\n"


def _as_table(templates: list[tuple[str, template.Template | HostError]]) -> str:
    import time

    lines = [f"{'DIGEST':14}{'MIB':>6}  {'CREATED':21}{'MACHINE'}"]
    for name, state in templates:
        if isinstance(state, HostError):
            lines.append(f"{name[:12]:14}{'':>6}  {'':21}unusable: {state.message}")
            continue
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(state.created))
        shape = state.shape
        machine = f"{shape['accel']}, {shape['cpus']} CPUs, {shape['memory_mib']} MiB, {shape['share']}"
        lines.append(f"{name[:12]:14}{state.used / _MIB:6.0f}  {created:21}{machine}, {shape['qemu']}")
    return "\n".join(lines) + "\n"
