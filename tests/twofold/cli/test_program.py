"""One call of a typer program: what becomes of its result, its complaints and a broken pipe."""

from __future__ import annotations

import pytest
import typer

from twofold.cli import program
from twofold.errors import ConfigError, ExitCode, UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def answer(code: int) -> int:
    return code


@app.command()
def fail(how: str) -> None:
    errors: dict[str, BaseException] = {
        "ours": ConfigError("a setting is wrong"),
        "bug": ZeroDivisionError(),
        "pipe": BrokenPipeError(32, "Broken pipe"),
        "interrupt": KeyboardInterrupt(),
    }
    raise errors[how]


def run(*arguments: str) -> int:
    return program.run(app, "tool", list(arguments))


def test_the_result_is_the_exit_code() -> None:
    assert run("answer", "0") == 0
    assert run("answer", "7") == 7


@pytest.mark.parametrize(
    ("how", "error"), [("ours", ConfigError), ("bug", ZeroDivisionError), ("pipe", BrokenPipeError)]
)
def test_what_a_command_raises_comes_out(how: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run("fail", how)


def test_an_interrupt_is_no_success() -> None:
    try:
        code = run("fail", "interrupt")
    except KeyboardInterrupt:  # an older typer
        code = 130
    assert code == 130


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["nonsense"], "`tool --help`"),
        (["answer"], "`tool answer --help`"),
        (["answer", "0", "--more"], "`tool answer --help`"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], remedy: str) -> None:
    with pytest.raises(UsageError) as found:
        run(*arguments)
    assert found.value.remedy == f"{remedy} lists what there is"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == ExitCode.USAGE
    assert "answer" in "".join(capsys.readouterr())
