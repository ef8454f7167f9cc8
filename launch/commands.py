"""Commands of other programs: argument lists that are run, read, or in a dry run only printed.

Nothing is ever handed to a local shell; what a person reads is quoted by shlex.
"""

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_train.errors import UserError

AT_ONCE = 32  # connections open to machines at a time
LONGEST_SECONDS = 2 * 3600  # of what is run: making node pools, setting up many hosts
TEXT = {"text": True, "errors": "replace"}  # garbled words are words too
# gcloud's and kubectl's words for what is not there.
GONE = ("not_found", "not found", "notfound", "does not exist", "matched no objects")


class Unanswered(UserError):
    """A question without an answer, or with one that cannot be read: to be asked again."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One call of gcloud, kubectl or git."""

    words: tuple[str, ...]
    stdin: str | None = None
    may_be_gone: bool = False  # deleting a thing that is not there counts as done

    def __str__(self) -> str:
        line = shlex.join(self.words)
        return line if self.stdin is None else f"{line} <<'EOF'\n{self.stdin.rstrip()}\nEOF"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    error: str

    @property
    def gone(self) -> bool:
        """Whether it failed because the thing it asked for does not exist."""
        return self.code != 0 and any(word in self.error.lower() for word in GONE)

    @property
    def reason(self) -> str:
        """Its last error in one line, with the line after where it ends in a colon, or last words.

        What gcloud's ssh says after the error is advice.
        """
        lines = [line.strip() for line in self.error.strip().splitlines()] or ["it said nothing"]
        errors = [at for at, line in enumerate(lines) if line.lower().startswith("error")]
        at = errors[-1] if errors else len(lines) - 1
        return " ".join(lines[at : at + 2]) if lines[at].endswith(":") else lines[at]

    def told[T](self, find: Callable[[Any], T]) -> T:
        """What `find` finds in the JSON that it said. Raises `Unanswered` where there is none."""
        if self.code or not self.out.strip():
            raise Unanswered(self.reason)
        try:
            return find(json.loads(self.out))
        except (ValueError, LookupError, TypeError, AttributeError):
            said = self.out.strip().splitlines()[0][:60]
            raise Unanswered(f"not the JSON that was asked for: {said}") from None


class Shell:
    """Runs commands; in a dry run says them instead, and touches nothing."""

    def __init__(self, *, dry_run: bool = False, say: Callable[[str], None] = print):
        self.dry_run = dry_run
        self.say = say

    def read(self, command: Command, *, seconds: float = 300) -> Answer:
        """What a command answers, be it a failure, or that it gave no answer in so many seconds.

        Raises `UserError` without the program.
        """
        if self.dry_run:
            self.say(str(command))
            return Answer(code=0, out="", error="")
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # A session of its own, for all that it starts to end with it: ssh may hang for ever.
        with _started(command, **pipes, **TEXT, start_new_session=True) as process:
            try:
                out, error = process.communicate(command.stdin or "", timeout=seconds)
            except subprocess.TimeoutExpired:
                return Answer(code=124, out="", error=f"no answer within {seconds:g} s")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return Answer(code=process.returncode, out=out, error=error)

    def run(self, *commands: Command) -> None:
        """Run commands one after the other. Raises `UserError` with the first failure's reason."""
        for command in commands:
            answer = self.read(command, seconds=LONGEST_SECONDS)
            if answer.code and not (command.may_be_gone and answer.gone):
                verb = shlex.join([w for w in command.words if not w.startswith("-")][:6])
                raise UserError(f"{verb} ... failed ({answer.code}): {answer.reason}")

    def run_at_once(self, commands: Iterable[Command]) -> None:
        """Run commands for as many machines beside each other. Raises as `run` does."""
        if self.dry_run:
            return self.run(*commands)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.run, commands))

    def follow(self, command: Command) -> int:
        """Run a command that talks to the user until Ctrl-C; returns its exit code."""
        if self.dry_run:
            self.say(str(command))
            return 0
        with _started(command) as process:
            return process.wait()

    @contextmanager
    def private_file(self, file: Path, content: str, told: str) -> Iterator[None]:
        """A file that only its owner may read, for a while; a dry run says `told` in its place."""
        if self.dry_run:
            self.say(f"# {file}, readable by its owner only: {told}")
            yield
            return
        file.unlink(missing_ok=True)  # a mode is given at birth only
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(content)
            yield
        finally:
            file.unlink()


def _started(command: Command, **how: Any) -> subprocess.Popen:
    try:
        return subprocess.Popen(command.words, **how)
    except FileNotFoundError:
        raise UserError(
            f"{command.words[0]} is not on the PATH: install it (docs/launching.md)"
        ) from None
