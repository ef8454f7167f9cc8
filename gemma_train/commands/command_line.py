"""`gemma-train VERB ...`: finds the verb, builds its arguments with tyro, and ends with one line.

Each verb's module is imported only when it is called for. Exit codes: 0 done, 1 a run of a sweep
or a gate of a plan failed, 2 the user's mistake (one line on standard error, no traceback), 3 a run
that cannot go on, 4 faulty hardware, 5 no answer in time, 130 stopped at once.
"""

import contextlib
import dataclasses
import io
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_origin

from gemma_train.errors import UserError
from gemma_train.storage import refusal

USAGE = """usage: gemma-train VERB ...

  tokenizer RECIPE     train the tokenizer that a recipe of data_recipes/ describes
  embed RECIPE         encode a recipe's images, once and ahead of training
  prepare RECIPE       turn a recipe's texts, and places of images, into token datasets
  train CONFIG         pretrain: run a config of configs/, or go on where it stopped
  teacher CONFIG       run a config's teacher over its rows, and store what it says
  plan CONFIG          compile a config's step for a TPU pod: memory, traffic, days, cost
  sweep FILE           run the named runs of a sweep: tables and a plot with intervals over seeds
  evaluate RUN         the held-out loss of a run, beside the unigram entropy
  context RUN [RUN..]  losses and recall of runs over growing context: tables and a plot
  sample MODEL         continue prompts with a run's newest checkpoint, or imported weights
  report RUN           write a run's curves and config as one HTML page
  checkpoint list RUN  its checkpoints; verify reads them whole, prune removes old ones
  convert FROM TO      weights as a Hugging Face, gemma or run folder, or a GGUF file
  inspect PATH         what a folder of weights, or a GGUF file, holds

gemma-train VERB --help shows what a verb takes; gemma-train train --help shows every field of a
config, each of which train, teacher and plan take as a flag: --optimizer.peak-lr 3e-4
"""
STOPPED = 130  # as a shell says of what Ctrl-C ended


def main() -> None:
    """The console script."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises what it logs with a traceback
    sys.exit(run_to_its_end(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    try:
        return _verb(arguments[0])(arguments[1:]) or 0
    except UserError as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not error.filename:
            sys.stdout = None  # whoever read us has left, as `head` does
            return 0
        if (refused := refusal(error)) is None:
            raise
        return _failed(refused)


def run_to_its_end(arguments: list[str]) -> int:
    """The same, for a process that ends with it: one of many that fails leaves the others."""
    try:
        code = run(arguments)
    except Exception as error:
        _leave(1, error)
        raise
    if code or sys.stdout is None:
        _leave(code)
    return code


def _leave(code: int, error: Exception | None = None) -> None:
    """End at once where that cannot wait: one of many, or for threads that are at a slow disk."""
    if mesh := sys.modules.get("gemma_train.mesh"):  # without it no runtime has started
        mesh.leave_runtime(code, error)
    if code == STOPPED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # gone, or closed
                stream.flush()
        os._exit(code)


def _verb(name: str) -> Callable[[list[str]], int | None]:
    """The function of a verb, from the command line's words after it; it may give an exit code."""
    match name:
        case "tokenizer":
            from gemma_train.commands import tokenizer

            return lambda words: tokenizer.run(_parse(tokenizer.TokenizerArguments, words, name))
        case "embed":
            from gemma_train.commands import embed

            return lambda words: embed.run(_parse(embed.EmbedArguments, words, name))
        case "prepare":
            from gemma_train.commands import prepare

            return lambda words: prepare.run(_parse(prepare.PrepareArguments, words, name))
        case "train":
            return _train
        case "teacher":
            return _teacher
        case "plan":
            return _plan
        case "sweep":
            from gemma_train.commands import sweep

            return lambda words: sweep.run(_parse(sweep.SweepArguments, words, name))
        case "evaluate":
            from gemma_train.commands import evaluate

            return lambda words: evaluate.run(_parse(evaluate.EvaluateArguments, words, name))
        case "context":
            from gemma_train.commands import context

            return lambda words: context.run(_parse(context.ContextArguments, words, name))
        case "sample":
            from gemma_train.commands import sample

            return lambda words: sample.run(_parse(sample.SampleArguments, words, name))
        case "report":
            from gemma_train.commands import report

            return lambda words: report.run(_parse(report.ReportArguments, words, name))
        case "checkpoint":
            from gemma_train.commands import checkpoint

            return lambda words: checkpoint.run(_parse(checkpoint.CheckpointArguments, words, name))
        case "convert":
            from gemma_train.commands import convert

            return lambda words: convert.run(_parse(convert.ConvertArguments, words, name))
        case "inspect":
            from gemma_train.commands import inspect

            return lambda words: inspect.run(_parse(inspect.InspectArguments, words, name))
    raise UserError(f"unknown verb {name!r}: gemma-train --help lists them")


def _train(words: list[str]) -> None:
    """`train CONFIG [--field value ...]`: the config file, with numbers changed by flags."""
    from gemma_train import config
    from gemma_train.commands import train

    if words and not words[0].startswith("-"):
        default = config.load(words[0])
        train.run(_config_from_flags(default, words[1:], f"train {words[0]}"))
    elif "--help" in words or "-h" in words:
        _config_from_flags(config.EXAMPLE, ["--help"], "train CONFIG")
    else:
        raise UserError("train needs a config: gemma-train train configs/quickstart.py")


def _teacher(words: list[str]) -> None:
    """`teacher CONFIG [--writer K] [--field value ...]`: its own flags beside the config's."""
    from gemma_train import config
    from gemma_train.commands import teacher

    own = teacher.TeacherArguments()
    if words and not words[0].startswith("-"):
        default = config.load(words[0])
        arguments, run = _both_from_flags(own, default, words[1:], f"teacher {words[0]}")
        teacher.run(run, arguments)
    elif "--help" in words or "-h" in words:
        _both_from_flags(own, config.EXAMPLE, ["--help"], "teacher CONFIG")
    else:
        raise UserError("teacher needs a config: gemma-train teacher configs/distilled.py")


def _plan(words: list[str]) -> int | None:
    """`plan CONFIG [--topology NAME] [--field value ...]`: its own flags beside the config's."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax wakes: the TPU is only compiled for
    from gemma_train import config
    from gemma_train.commands import plan

    own = plan.PlanArguments()
    words = [_lengthened(word) for word in words]
    if words and not words[0].startswith("-"):
        default = config.load(words[0])
        arguments, run = _both_from_flags(own, default, words[1:], f"plan {words[0]}")
        return plan.run(run, arguments, words[0])
    elif "--help" in words or "-h" in words:
        _both_from_flags(own, config.EXAMPLE, ["--help"], "plan CONFIG")
    else:
        raise UserError("plan needs a config: gemma-train plan configs/gemma3_1b.py")


def _lengthened(word: str) -> str:
    """Two flags that plan is mostly asked with, as the fields that they are."""
    flag, equals, value = word.partition("=")
    match flag:
        case "--topology" | "--slices":
            return f"--mesh.{flag[2:]}{equals}{value}"
    return word


def _parse(kind: type, words: list[str], verb: str) -> Any:
    """A verb's arguments; the fields it cannot do without may come first, without their flags.

    Several words after the flag of a tuple are its values: --lengths 512 1024.
    """
    fields = dataclasses.fields(kind)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    tuples = {field.name for field in fields if get_origin(field.type) is tuple}
    bare = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    most = len(bare) if tuples & {*needed} else len(needed)
    names = [*needed, *needed[-1:] * (most - len(needed))]
    named = [
        word for name, value in zip(names, bare, strict=False) for word in (f"--{name}", value)
    ]
    rest = _each_with_its_flag(words[len(named) // 2 :], tuples)
    return _from_flags(kind, [*named, *rest], verb)


def _each_with_its_flag(words: list[str], tuples: set[str]) -> Iterator[str]:
    """Words in which the flag of a tuple stands ahead of each of its values."""
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word if word[2:].replace("-", "_") in tuples else ""
            if not flag:
                yield word
        else:
            yield from (flag, word) if flag else (word,)


def _from_flags(kind: Any, words: list[str], verb: str, default: Any = None) -> Any:
    """A config (with its `default`) or a verb's arguments from flags.

    Raises `UserError` with tyro's finding in one line.
    """
    import tyro

    style: list[Any] = [tyro.conf.AvoidSubcommands]
    more = {"default": default}
    if default is None:
        style, more = [*style, tyro.conf.UseAppendAction], {}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=words, prog=f"gemma-train {verb}", config=style, **more)
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in told.getvalue().splitlines()[1:]]
        said = (line for line in lines if line.strip("-"))  # rules are of these without UTF-8
        raise UserError(" ".join(said).split(" For full")[0]) from None


def _config_from_flags(config: Any, words: list[str], verb: str) -> Any:
    """A config from its values and flags, each of which has a value: --tensorboard False."""
    import tyro

    kind = Annotated[type(config), tyro.conf.FlagConversionOff]
    return _from_flags(kind, words, verb, config)


def _both_from_flags(own: Any, config: Any, words: list[str], verb: str) -> tuple[Any, Any]:
    """A verb's own arguments and a config, both with defaults, from flags that stand together.

    A switch of the verb's own has no value: --dry-run, --no-compile.
    """
    import tyro

    flat = tyro.conf.arg(name="")
    fields = [
        ("own", Annotated[type(own), flat]),
        ("config", Annotated[type(config), flat, tyro.conf.FlagConversionOff]),
    ]
    kind = dataclasses.make_dataclass("Both", fields, namespace={"__doc__": type(own).__doc__})
    both = _from_flags(kind, words, verb, kind(own, config))
    return both.own, both.config


def _failed(error: UserError) -> int:
    print(f"gemma-train: {error}", file=sys.stderr)
    return error.exit_code
