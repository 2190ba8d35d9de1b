"""The `ddpm` command: words to a command and its flags, its result to JSON, its failure to one line."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from .auth import guard_local_ray
from .commands import COMMANDS
from .parsing import parse
from .presets import DEFAULT_PRESET, PRESETS
from .storage import JobFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130


HELP = """usage: ddpm COMMAND [PRESET | --config FILE.yaml] [FLAGS]

Denoising diffusion models from images to samples, on Ray, tracked in MLflow.

{commands}

Presets: {presets} (default {default}). `ddpm COMMAND --help` lists a command's flags.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, act, and exit: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(words)
    except KeyboardInterrupt:
        code = _error("interrupted; the same command goes on from here", INTERRUPTED)
    except (ValueError, FileNotFoundError) as err:
        code = _raise_or(err, words, WRONG_CALL)
    except (JobFailed, OSError, FloatingPointError) as err:
        code = _raise_or(err, words, FAILED)
    sys.exit(code)


def dispatch(words: list[str]) -> int:
    """Run the command that the words name; the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_help(), end="")
        return DONE if words else WRONG_CALL
    name = " ".join(words[:2]) if words[0] == "pull" else words[0]
    if name not in COMMANDS:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {name!r}")
    command = COMMANDS[name]
    args = parse(name, command.args, command.start, words[len(name.split()) :])
    guard_local_ray(args.where.address)
    result = command.act(args)
    if args.json:
        print(json.dumps(result))
    return DONE


def _help() -> str:
    lines = [f"  {name:<14}{(command.args.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines), presets=", ".join(PRESETS), default=DEFAULT_PRESET)


def _raise_or(err: Exception, words: list[str], code: int) -> int:
    if "--debug" in words:
        raise err
    return _error(str(err), code)


def _error(message: str, code: int) -> int:
    print(f"ddpm: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
