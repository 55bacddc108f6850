"""The `vlp` command: one table of verbs, and what happens when one of them fails.

A verb is a plain function annotated for Typer. The table names it as text, so that `vlp classify`
never imports training or export code.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vlp_deploy import __version__
from vlp_deploy.errors import VlpError
from vlp_deploy.extras import load_function

USER_ERROR, USAGE_ERROR, INTERRUPTED = 1, 2, 130
MANIFEST = "manifest.json"  # by this file a folder is a bundle; its module is slow to import


@dataclass(frozen=True)
class Verb:
    """Where a verb lives, and what it does in one line."""

    target: str
    summary: str
    of_bundle: str | None = None  # what it is where the first argument is a bundle


VERBS = {
    "demo": Verb("vlp_deploy.commands.demo:demo", "The whole road on embedded model and data"),
    "train": Verb("vlp_train.command:train", "Tune a prompt on labelled images"),
    "import": Verb(
        "vlp_train.importing.command:import_checkpoint", "Turn an official checkpoint into our own"
    ),
    "export": Verb(
        "vlp_export.command:export",
        "Turn a tuned prompt into a bundle, and a bundle into others or engines",
        of_bundle="vlp_deploy.commands.export:export_bundle",
    ),
    "classify": Verb("vlp_deploy.commands.classify:classify", "Classify images, torch-free"),
    "bench": Verb("vlp_deploy.commands.bench:bench", "Measure latency and accuracy of a bundle"),
    "calibrate": Verb("vlp_deploy.commands.calibrate:calibrate", "Fit what probabilities mean"),
    "inspect": Verb("vlp_deploy.commands.inspect:inspect", "Show a bundle or a prompt checkpoint"),
    "verify": Verb("vlp_deploy.commands.verify:verify", "Check a bundle's bytes, file by file"),
    "methods": Verb("vlp_deploy.commands.methods:methods", "List the prompt-learning methods"),
}


def main() -> None:
    """Console entry point."""
    warnings.formatwarning = _warning_text
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return the exit code: 0 good, 1 user's error, 2 usage, 3 missing extra."""
    return guarded(lambda: _dispatch(arguments))


def guarded(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; what a user can cause is told in one line."""
    try:
        code = command()
        sys.stdout.flush()  # a full disk is to be found here, not when Python exits
        return code or 0
    except VlpError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; every file that was finished is whole")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout, `head` say, has gone
        _give_up_stdout()
        return USER_ERROR
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _complain(f"{where}{error.strerror or error}")
        _give_up_stdout()
        return USER_ERROR


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"vlp-deploy {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        close = get_close_matches(name, VERBS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        _complain(f"there is no verb {name!r}. {hint}Available: {', '.join(VERBS)}")
        return USAGE_ERROR
    bundle = len(arguments) > 1 and (Path(arguments[1]) / MANIFEST).is_file()
    return _call(load_verb(name, of_bundle=bundle), name, arguments[1:])


def load_verb(name: str, *, of_bundle: bool = False) -> Callable[..., Any]:
    """Import a verb's function. Raises MissingExtraError if its extra is not installed."""
    verb = VERBS[name]
    target = verb.of_bundle if of_bundle and verb.of_bundle else verb.target
    return load_function(target, what=f"`vlp {name}`")


def usage() -> str:
    """The text of `vlp --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  vlp {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "vlp: from a tuned CLIP prompt to a fast, torch-free image classifier\n\n"
        f"{verbs}\n\n"
        "  vlp VERB --help explains a verb.  vlp --version prints the version."
    )


def _call(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> int:
    import typer  # not needed for the lines above, and the slowest import of the command line

    from vlp_deploy.help_sections import SectionedCommand

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    epilog = getattr(sys.modules[function.__module__], "EPILOG", None)
    app.command(name, cls=SectionedCommand, epilog=epilog)(function)
    command = typer.main.get_command(app)
    try:
        result = command.main(list(arguments), prog_name=f"vlp {name}", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # click's own errors know how to print themselves; typer vendors or imports click by version
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        return int(code)
    if result == INTERRUPTED:  # Typer's translation of Ctrl-C
        raise KeyboardInterrupt
    return int(result or 0)


def _give_up_stdout() -> None:
    """Write what stdout still holds, or drop it, so that Python does not try again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # not a real file, in a test say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warning_text(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What a user is warned of in one line; a developer's warnings keep their place in the code."""
    if category is UserWarning:
        return f"vlp: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _complain(message: str) -> None:
    print(f"vlp: {message}", file=sys.stderr)
