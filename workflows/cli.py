"""The `ddpm` command: words to a command and its flags, its result to JSON, its failure to one line.

What takes long to import (torch: seconds) is imported when signals are already heeded.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .interrupt import Interruptible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .commands.arguments import Common
    from .commands.command import Command

DONE, FAILED, WRONG_CALL = 0, 1, 2


HELP = """usage: ddpm COMMAND [PRESET | --config FILE.yaml] [FLAGS]

Denoising diffusion models from images to samples, on Ray, tracked in MLflow.

{commands}

Presets: {presets} (default {default}). `ddpm COMMAND --help` lists a command's flags.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, act, and exit: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    with Interruptible():
        code, error = judged(words)
    if error:
        print(f"ddpm: error: {error}", file=sys.stderr)
    sys.exit(code)


def judged(words: list[str]) -> tuple[int, str]:
    """Do what the words say; the exit code, and a line about what went wrong, if something did."""
    from .cluster.credentials import load_credentials

    try:
        load_credentials()
        return dispatch(words), ""
    except _failures() as err:
        if "--debug" in words:
            raise
        return WRONG_CALL if isinstance(err, ValueError | FileNotFoundError) else FAILED, str(err)


def _failures() -> tuple[type[Exception], ...]:
    """What a line says better than a traceback; MLflow's errors too, if anybody has imported it: it takes seconds."""
    from .storage import JobFailed

    mlflow = sys.modules.get("mlflow.exceptions")
    return (ValueError, JobFailed, OSError, FloatingPointError, *([mlflow.MlflowException] if mlflow else []))


def dispatch(words: list[str]) -> int:
    """Run the command that the words name; the exit code."""
    from .cluster.auth import guard_local_ray

    if not words or words[0] in ("-h", "--help"):
        print(_help(), end="")
        return DONE if words else WRONG_CALL
    command, args = understood(words)
    guard_local_ray(args.where.address)
    result = command.act(args)
    if args.json:
        print(json.dumps(result))
    return DONE


def understood(words: list[str]) -> tuple[Command, Common]:
    """A command line's command and flags. Raises ValueError if it, or a command that it is about, means nothing."""
    from .commands.arguments import WrapsArgs
    from .commands.parsing import parse
    from .commands.stages import COMMANDS

    groups = {name.split()[0] for name in COMMANDS if " " in name}
    name = " ".join(words[: 2 if words[0] in groups else 1])
    if name not in COMMANDS:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {name!r}")
    command = COMMANDS[name]
    args = parse(name, command.args, command.start, words[len(name.split()) :])
    if isinstance(args, WrapsArgs):
        understood(list(args.command))
    return command, args


def _help() -> str:
    from .commands.presets import DEFAULT_PRESET, PRESETS
    from .commands.stages import COMMANDS

    lines = [f"  {name:<14}{(command.args.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines), presets=", ".join(PRESETS), default=DEFAULT_PRESET)


if __name__ == "__main__":
    main()
