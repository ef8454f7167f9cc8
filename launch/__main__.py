"""`python -m launch VERB FILE`: one verb on the machines of a launch file."""

import argparse
import sys
from typing import NoReturn

from gemma_train.definition import load_definition
from gemma_train.errors import UserError
from launch.babysitter import Babysitter
from launch.commands import Shell
from launch.fleet import Fleet
from launch.gke import GkeFleet
from launch.job import Launch
from launch.managed_instance_group import InstanceGroup
from launch.providers import Gke, ManagedInstanceGroup, TpuVm
from launch.tpu_vm import TpuVms

VERBS = {
    "create": "ask for the machines",
    "setup": "copy the source to them and install it",
    "run": "start the run, or start it again where it stopped",
    "logs": "follow the first host's log",
    "status": "what machines and run are doing",
    "stop": "have the run save and end",
    "delete": "give the machines back; what is in the run's folder stays",
    "babysit": "all of it, again and again, until the run is done",
}
COPYING = ("create", "setup", "babysit")  # verbs that copy the source, or rent machines for it
OPTIONS = ("project", "zone", "folder")


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: python -m launch --help says what it takes")


def main(arguments: list[str]) -> int:
    """Run one command line; returns its exit code: 0 done, 2 a mistake, 3 a run in vain."""
    try:
        return _run(arguments)
    except UserError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"launch: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; machines and run go on", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {verb:10}{does}" for verb, does in VERBS.items()),
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    parser.add_argument("file", help="launch file, as launch/gemma3_27b.py", metavar="FILE")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", help=f"in place of the file's {name}")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    given = parser.parse_args(arguments)
    found = load_definition(given.file, "launch", Launch)
    launch = found.filled(**{name: getattr(given, name) for name in OPTIONS}).checked()
    shell = Shell(dry_run=given.dry_run)
    fleet = fleet_of(launch, shell)
    if given.verb in COPYING:
        fleet.check_source()
    return act(given.verb, launch, fleet, shell)


def fleet_of(launch: Launch, shell: Shell) -> Fleet:
    """The fleet that a launch's provider lends."""
    match launch.provider:
        case TpuVm() as provider:
            return TpuVms(launch=launch, shell=shell, provider=provider)
        case ManagedInstanceGroup() as provider:
            return InstanceGroup(launch=launch, shell=shell, provider=provider)
        case Gke() as provider:
            return GkeFleet(launch=launch, shell=shell, provider=provider)


def act(verb: str, launch: Launch, fleet: Fleet, shell: Shell) -> int:
    """Do what a verb says; returns the exit code."""
    match verb:
        case "status":
            seen = fleet.look()
            if not shell.dry_run:
                print(f"{launch.name}: {seen}")
        case "logs":
            return fleet.logs()
        case "babysit" if shell.dry_run:
            for step in (fleet.create, fleet.look, fleet.setup, fleet.run):
                step()
            shell.say(
                f"# then a look every {launch.patience.poll_seconds:.0f} s: {launch.patience}"
            )
        case "babysit":
            return Babysitter(launch=launch, fleet=fleet, shell=shell).sit()
        case _:
            getattr(fleet, verb)()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
