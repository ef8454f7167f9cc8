"""Keep a run going until it is done: look, do the one thing that is due, wait, look again.

Little is remembered: a babysitter that is started anew takes up where things are. What goes wrong
is an attempt; attempts are counted until a newer checkpoint is found. A run that runs, and makes
none for too long, has gone wrong too.
"""

import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gemma_train.errors import FaultyHardware, Stalled, Unrecoverable, UserError
from gemma_train.run_files import CHECKPOINTS, SUMMARY
from launch.commands import Answer, Command, Shell
from launch.fleet import Fleet, Machines, Process, Sighting
from launch.job import Launch

# Exit codes of gemma-train after which another start would end the same way.
FINAL = {
    UserError.exit_code: "the config is at fault",
    Unrecoverable.exit_code: "the run has tried what it may",
}


@dataclass(kw_only=True)
class Babysitter:
    """Sits with one run. `sleep` takes seconds, `clock` tells them, `chance` is in [0, 1)."""

    launch: Launch
    fleet: Fleet
    shell: Shell
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    _attempts: int = field(default=0, init=False)
    _newest: int = field(default=-1, init=False)  # step of the newest checkpoint seen
    _moved: float = field(default=0, init=False)  # when it was seen first, or the run was started
    _silent: int = field(default=0, init=False)  # polls in a row without an answer
    _said: str = field(default="", init=False)

    def sit(self) -> int:
        """Until the run is finished or stopped by hand (0), or another start is in vain (2, 3).

        Raises `UserError` after too many attempts without progress.
        """
        self._moved = self.clock()
        while True:
            seen = self.fleet.look()
            self._say(str(seen))
            match seen:
                case Sighting(machines=Machines.ABSENT):
                    self._try("create", self.fleet.create)
                case Sighting(machines=Machines.LOST):
                    self._replace(f"lost ({seen.told})")
                case Sighting(machines=Machines.WAITING | Machines.UNKNOWN):
                    pass
                case Sighting(process=Process.ABSENT):
                    self._set_up_and_run()
                case Sighting(process=Process.READY):
                    self._run()
                case Sighting(process=Process.RUNNING):
                    self._mind_progress()
                case Sighting(process=Process.STOPPED):
                    self._say("stopped by hand; the machines are billed until delete")
                    return 0
                case Sighting(process=Process.ENDED, exit_code=int(code)):
                    if self._over(code):
                        return code
                    self._go_on(code)
            self._mind_silence(seen)
            self.sleep(self.launch.patience.poll_seconds)

    def _over(self, code: int) -> bool:
        """Whether a process that ended with `code` is not to be started again."""
        if code in FINAL:
            self._say(f"exit code {code}, {FINAL[code]}: not started again; see logs")
        elif code == 0 and self._finished():
            self._say(f"finished: {self.launch.folder}/{SUMMARY} is there; delete the machines")
        else:
            return False
        return True

    def _go_on(self, code: int) -> None:
        """What the exit code of a process that is to be started again asks for."""
        match code:
            case 0:
                self._restart("saved and ended")
            case FaultyHardware.exit_code:
                self._replace(f"that gave two results for one program (exit code {code})")
            case Stalled.exit_code:
                self._restart(f"ended with exit code {code}, for something gave no answer in time")
            case _:
                self._restart(f"ended with exit code {code}")

    def _restart(self, why: str) -> None:
        """The process anew; a host that was repaired meanwhile comes back empty: set up again."""
        self._count(why)
        self._set_up_and_run()

    def _set_up_and_run(self) -> None:
        if self._try("setup", self.fleet.setup):
            self._run()

    def _run(self) -> None:
        if self._try("run", self.fleet.run):
            self._moved = self.clock()

    def _replace(self, why: str) -> None:
        self._count(f"machines {why}")
        self._try("delete", self.fleet.delete)

    def _mind_progress(self) -> None:
        """A run that runs but makes no checkpoint may hang, on chips that are billed: start anew.

        It is told to stop first: one that was only slow saves, and has made progress.
        """
        patience = self.launch.patience
        if patience.stalled_minutes == 0:
            return
        self._note_progress()
        if self.clock() - self._moved < 60 * patience.stalled_minutes:
            return
        self._say("no newer checkpoint for too long: save and end")
        with suppress(UserError):  # a host that hangs may not obey; the start ends it
            self.fleet.save()
        until = self.clock() + patience.saving_seconds
        while self.clock() < until and self.fleet.look().process is Process.RUNNING:
            self.sleep(patience.poll_seconds)
        self._restart(f"no newer checkpoint for {patience.stalled_minutes:g} minutes")

    def _mind_silence(self, seen: Sighting) -> None:
        unreachable = seen.machines is Machines.READY and seen.process is Process.UNREACHABLE
        self._silent = self._silent + 1 if unreachable else 0
        if self._silent == 1:
            self._note_progress()  # what is newer than this was made during the silence
        elif self._silent > self.launch.patience.unreachable_polls:
            self._silent = 0
            if self._note_progress():
                self._say("unreachable, yet for all that is known the run goes on: wait")
            else:
                self._replace("unreachable")

    def _try(self, verb: str, act: Callable[[], None]) -> bool:
        """Do it; a failure of the cloud is one more attempt, and the next look says what is due."""
        self._say(verb)
        try:
            act()
        except UserError as error:
            self._count(str(error))
            return False
        return True

    def _count(self, why: str) -> None:
        """One attempt more, with the wait that it earns. Raises `UserError` at the limit."""
        patience = self.launch.patience
        self._note_progress()
        self._attempts += 1
        if self._attempts > patience.attempts_without_progress:
            raise UserError(
                f"{self.launch.name}: {why}; given up after {self._attempts - 1} attempts without "
                "a new checkpoint (patience.attempts_without_progress): see logs, then babysit "
                "again or delete the machines"
            )
        longest = min(
            patience.backoff_seconds * 2 ** (self._attempts - 1), patience.longest_backoff_seconds
        )
        seconds = longest * (0.5 + self.chance() / 2)  # not all runs of a zone at once
        limit = patience.attempts_without_progress
        self._say(f"{why}: attempt {self._attempts} of {limit} in {seconds:.0f} s")
        self.sleep(seconds)

    def _note_progress(self) -> bool:
        """Whether there is a newer checkpoint, which forgives attempts, or no answer on it.

        One half written counts: steps were done.
        """
        answer = self._list(f"{CHECKPOINTS}/")
        newest = max((int(step) for step in re.findall(r"/(\d+)/\s", answer.out)), default=-1)
        unanswered = answer.code != 0 and not answer.gone  # which is no reason to stop a run
        if newest > self._newest:
            self._newest, self._attempts = newest, 0
        elif not unanswered:
            return False
        self._moved = self.clock()
        return True

    def _finished(self) -> bool:
        """Exit code 0 alone may be a run that was told to save and end: this tells them apart."""
        answer = self._list(SUMMARY)
        return answer.code == 0 and SUMMARY in answer.out

    def _list(self, name: str) -> Answer:
        words = ("gcloud", "storage", "ls", f"{self.launch.folder}/{name}")
        return self.shell.read(Command(words=words))

    def _say(self, text: str) -> None:
        if text != self._said:  # a transition, not every look
            self.shell.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.launch.name}: {text}")
        self._said = text
