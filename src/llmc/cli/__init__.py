"""The command line: this file only wires the verbs, one file each, to `llmc`.

A verb is a function `verb(output, ...)`. Its annotated parameters are its arguments and options; one that takes
`**job` gets the options of `Job`, and all get those of `Telling`.
"""

from __future__ import annotations

import gc
import inspect as introspection
import sys
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Annotated, Any, NoReturn

import typer

from llmc.cli import (
    cache,
    card,
    compare,
    completion,
    decompress,
    eval,
    export,
    inspect,
    lossless,
    methods,
    plan,
    push,
    quantize,
    recipes,
    run,
    verify,
)
from llmc.cli.failures import InternalError, exit_code, stoppable, understood
from llmc.cli.measuring import Measuring
from llmc.cli.options import Job, Telling
from llmc.cli.output import Output

VERBS: dict[str, Callable[..., None]] = {
    "plan": plan.plan,
    "quantize": quantize.quantize,
    "run": run.run,
    "lossless": lossless.lossless,
    "decompress": decompress.decompress,
    "eval": eval.evaluate,
    "compare": compare.compare,
    "cache": cache.cache,
    "inspect": inspect.inspect,
    "verify": verify.verify,
    "export": export.export,
    "card": card.card,
    "push": push.push,
    "recipes": recipes.recipes,
    "methods": methods.methods,
}


SHARED = {"job": Job, "measuring": Measuring}
"""Name of a verb's `**options` -> where they are defined."""


def main() -> NoReturn:
    """The `llmc` command."""
    gc.set_threshold(100_000, 20, 100)  # importing torch and transformers makes a million objects that all stay
    if completion.asked():
        completion.answer(application(Output()))
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    output = Output("--json" in arguments)
    try:
        with stoppable():
            command = typer.main.get_command(application(output))
            with command.make_context("llmc", list(arguments) or ["--help"]) as context:
                command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except (Exception, KeyboardInterrupt) as cause:
        error = understood(cause)
        output.error(error, cause if isinstance(error, InternalError) else None)
        return exit_code(error)
    finally:
        output.end()
    return 0


def application(output: Output) -> typer.Typer:
    """All verbs, printing to `output`."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(group)
    for name, verb in VERBS.items():
        app.command(name)(bound(verb, output))
    return app


def show_version(asked: bool) -> None:
    """Print the version and stop, when asked to."""
    if asked:
        from llmc import __version__

        Output().write(f"llmc {__version__}\n")
        raise typer.Exit


def group(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion", callback=completion.install, is_eager=True, help="Let your shell complete by Tab."
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion", callback=completion.show, is_eager=True, help="Print what that would install."
        ),
    ] = False,
) -> None:
    """Make language models smaller, and prove what that cost.

    \b
    Example:
      llmc run quickstart -o demo-out
    """


def bound(verb: Callable[..., None], output: Output) -> Callable[..., None]:
    """`verb` without its `output`, with the options of `Telling`, and with shared ones where it takes some."""
    own = list(introspection.signature(verb, eval_str=True).parameters.values())[1:]
    parameters = [each for each in own if each.kind is not Parameter.VAR_KEYWORD]
    for each in own:
        if each.kind is Parameter.VAR_KEYWORD:
            parameters += introspection.signature(SHARED[each.name], eval_str=True).parameters.values()
    parameters += introspection.signature(Telling, eval_str=True).parameters.values()

    def call(json: bool, quiet: bool, verbose: bool, log: str | None, **values: Any) -> None:
        output.configure(quiet=quiet, verbose=verbose, log=log)
        verb(output, **values)

    call.__doc__ = verb.__doc__
    call.__signature__ = introspection.Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
