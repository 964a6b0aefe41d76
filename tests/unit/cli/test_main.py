from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from proxy import __version__
from proxy.cli import main


def run(*arguments, **environment):
    return CliRunner().invoke(main, arguments, prog_name="tollgate", env=environment)


def test_help_names_every_command_and_imports_none():
    program = (
        "import sys; from proxy.cli import main\n"
        "try: main(['--help'], prog_name='tollgate')\n"
        "except SystemExit: pass\n"
        "print(sorted({'aiohttp', 'sqlalchemy', 'msgspec', 'redis', 'alembic'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    for name in main.list_commands(None):
        assert f"  {name} " in shown


def commands(group, *path):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.parametrize(
    ("path", "command"), list(commands(main)), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_explains_itself_with_an_example(path, command):
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    if not isinstance(command, click.Group):
        assert f"tollgate {' '.join(path)}" in shown.stdout.split("Examples:")[1]


def examples():
    for path, command in commands(main):
        for line in (command.help or "").splitlines():
            words = line.split("#")[0].split("|")[0].split(">")[0].strip()
            if line.strip().startswith("tollgate ") and not isinstance(command, click.Group):
                yield pytest.param(command, words.split()[1 + len(path) :], id=line.strip())


@pytest.mark.parametrize(("command", "arguments"), list(examples()))
def test_examples_are_accepted_by_the_parser(command, arguments):
    assert command.make_context(command.name, arguments).params


def test_python_dash_m_is_the_command():
    shown = subprocess.run([sys.executable, "-m", "proxy", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"tollgate, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serv"],
        ["serve", "--port", "eighty"],
        ["keys", "issue"],
        ["keys", "issue", "--team", "t", "--expires", "soon"],
        ["teams", "add", "t", "--requests-per-minute", "0"],
        ["teams", "set", "t"],
        ["teams", "limit", "t", "--rpm", "1"],
        ["teams", "limit", "t", "--model", "m"],
        ["teams", "limit", "t", "--model", "m", "--none", "--rpm", "1"],
        ["keys", "set", "0a1B2c3D4e5F"],
        ["keys", "issue", "--team", "t", "--rpm", "none"],
        ["usage", "--by", "colour"],
        ["usage", "--by", "team,team"],
        ["usage", "--since", "yesterday"],
        ["usage", "--json", "--csv"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2_and_says_so_on_stderr(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_a_server_that_cannot_serve_is_refused_before_it_is_built():
    result = run("serve", "--port", "0", OPENAI_API_KEY="")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "OPENAI_API_KEY" in result.stderr


def test_a_limit_that_would_be_multiplied_is_refused():
    result = run("serve", "--workers", "2", "--demo")
    assert result.exit_code == 1
    assert "server.workers: 2 workers would each count limits for themselves" in result.stderr


def test_wrong_options_are_named():
    result = run("serve", "--port", "70000", "--demo", TOLLGATE_HOSST="x")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "environment: TOLLGATE_HOSST: unknown variable (did you mean TOLLGATE_HOST?)",
        "command line: --port: expected int <= 65535",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_command(shell):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_TOLLGATE_COMPLETE" in result.stdout


def test_completion_offers_commands():
    result = run(_TOLLGATE_COMPLETE="bash_complete", COMP_WORDS="tollgate te", COMP_CWORD="1")
    assert result.stdout.split() == ["plain,teams"]
