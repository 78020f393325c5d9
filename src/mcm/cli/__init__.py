"""The command `mcm`: one file a verb, found by the table below and imported only when its verb is used.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 stopped by Ctrl-C. An error is one line on stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError, UnusedCliTokensError

from mcm import __version__
from mcm.cli.usage import UsageError
from mcm.errors import SaidElsewhereError, UserError

VERBS = {
    "prepare": "Look at a source of videos or pictures, say what is in it, and encode it for many runs.",
    "distill": "Distil a teacher into a student of few steps.",
    "generate": "Make videos from prompts.",
    "evaluate": "Measure a student or a teacher against real videos.",
    "bench": "Distil, make and score every system of a suite alike.",
    "verify-resume": "Check that a run that was killed and goes on ends as one that was not.",
    "plan": "Tell what a run costs in memory and time, and which settings fit.",
    "export": "Write a student for diffusers, peft or ComfyUI.",
    "demo": "Show students and teachers side by side on a web page.",
    "list": "Name the teachers, students, recipes, methods, samplers and motion representations.",
}

app = App(
    name="mcm",
    help="Turn a text-to-video diffusion model into a 1-8 step student that moves like its teacher and looks "
    "like your pictures.",
    help_epilogue="Start here: mcm distill pocket-animatediff",
    help_format="plaintext",
    version=__version__,
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _verb, _help in VERBS.items():
    app.command(f"mcm.cli.{_verb.replace('-', '_')}:app", name=_verb, help=_help)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line (sys.argv without the program by default) and leaves with its exit code."""
    # The libraries' notices are for their developers; what matters to a user, a verb says itself.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # (Not `list(...)`: once the verb of that name is imported, it stands in this package's namespace.)
    code, message = _run([*(sys.argv[1:] if tokens is None else tokens)])
    if message:
        print(f"mcm: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _run(tokens: list[str]) -> tuple[int, str]:
    """The exit code, and what to say about it."""
    debug = os.environ.get("MCM_DEBUG", "") not in ("", "0")
    try:
        app(_dotted(tokens) if tokens[:1] == ["distill"] else tokens)
        sys.stdout.flush()
    except UsageError as error:
        return 2, str(error)
    except SaidElsewhereError as error:
        return error.code, ""
    except UserError as error:
        if debug:
            raise
        return 1, str(error)
    except CycloptsError as error:
        return 2, _wrong_usage(error)
    except KeyboardInterrupt:
        return 130, "stopped; run the same command again to go on"
    except BrokenPipeError:
        # The reader of our output left (`mcm list | head`); Python must not complain again at its own exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            return 1, f"the disk is full{where}: free some space and run the same command again"
        said = f"{type(error).__name__}: {error}"
        return 1, f"internal error: {said}; set MCM_DEBUG=1 to see where"
    return 0, ""


def _dotted(tokens: list[str]) -> list[str]:
    """`--optim.lr 1e-4` and `--optim.lr=1e-4` as `--set optim.lr=1e-4`."""
    plain: list[str] = []
    rest = iter(tokens)
    for token in rest:
        name, equals, value = token.partition("=")
        if not name.startswith("--") or "." not in name:
            plain.append(token)
            continue
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                # As a setting without "=", so that an unknown name is reported before its missing value.
                plain += ["--set", name[2:], *([value] if value != "--" else [])]
                continue
        plain += ["--set", f"{name[2:]}={value}"]
    return plain


def _wrong_usage(error: CycloptsError) -> str:
    verb = " ".join(["mcm", *(error.command_chain or ())])
    if isinstance(error, UnusedCliTokensError):
        text = f"unexpected {' '.join(error.unused_tokens or ())!r}"
    else:
        text = str(error).rstrip(".")
    return f"{text}; see `{verb} --help`"
