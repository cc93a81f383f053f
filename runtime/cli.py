"""What every command line of this project shares: exit codes, one-sentence errors, `--debug`."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from runtime.errors import HandheldError


def command(function: Callable[..., None]) -> click.Command:
    """Makes a click command of a function with click options: a HandheldError is one line and its exit code, unless `--debug`."""

    @functools.wraps(function)
    def run(*args: Any, debug: bool, **options: Any) -> None:
        # a terminated process unwinds like an interrupted one, so that whatever cleans up after itself does
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            function(*args, **options)
        except HandheldError as error:
            if debug:
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)

    debuggable = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)
    return click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})(debuggable)
