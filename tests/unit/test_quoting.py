"""Values in environment files and units come out as they went in, whatever they hold."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ownstack.engine import units
from ownstack.engine.render import env_value, environment, render
from ownstack.errors import ConfigError
from ownstack.plan import Service
from ownstack.runner.box import read_environment

# any text that may stand in a line, rich in what means something to a shell, a template or systemd
TEXT = st.text(
    st.one_of(
        st.sampled_from("%$\"'\\;`{}()#= !&|<>*?~^-\u202e\u00a0\u2028"),
        st.characters(exclude_categories=["Cs", "Cc"]),
    ),
    max_size=30,
)
CONTROL = st.sampled_from([chr(code) for code in range(32)])
HOSTILE = ['%h"; rm -rf / #', "$(id)", "`id`", "${HOME}", "{{ 7 * 7 }}", "a\\", '\\"', "'", '"', "$$", "%%", "x y", "-"]


def hostile(test: Any) -> Any:
    for text in HOSTILE:
        test = example(text)(test)
    return test


def read_back(lines: str) -> dict[str, str]:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        return read_environment(file.name)


@settings(max_examples=300, deadline=None)
@hostile
@given(TEXT)
def test_environment_files_are_read_as_they_were_written(value: str) -> None:
    lines = f"# a comment\nBEFORE=plain\n\nKEY={env_value(value)}\nAFTER=b=c\n"
    assert read_back(lines) == {"BEFORE": "plain", "KEY": value, "AFTER": "b=c"}


@settings(max_examples=300, deadline=None)
@hostile
@given(TEXT)
def test_environment_files_mean_the_same_to_systemd(value: str) -> None:
    assert systemd_env_line(f"KEY={env_value(value)}") == ("KEY", value)


@pytest.mark.parametrize("quote", [env_value, units.unit_text, units.unit_word, units.exec_word])
@settings(max_examples=60, deadline=None)
@given(TEXT, CONTROL, TEXT)
def test_control_characters_are_refused_everywhere(quote: Any, before: str, control: str, after: str) -> None:
    with pytest.raises(ConfigError):
        quote(before + control + after)


def systemd_env_line(line: str) -> tuple[str, str]:
    """A line of an EnvironmentFile with a double-quoted value, by the rules of systemd.exec(5)."""
    key, _, rest = line.partition("=")
    assert rest[0] == rest[-1] == '"'
    inner, out, index = rest[1:-1], "", 0
    while index < len(inner):
        char = inner[index]
        assert char != '"', "the value ends too early"
        if char == "\\" and inner[index + 1 : index + 2] in ('"', "\\", "$", "`"):
            index += 1
            char = inner[index]
        out += char
        index += 1
    return key, out


def specifiers(text: str) -> str:
    """`%%` is a per cent sign; any other `%` would be replaced by something of the host."""
    out, index = "", 0
    while index < len(text):
        if text[index] == "%":
            assert text[index + 1 : index + 2] == "%", f"a specifier: {text!r}"
            index += 1
        out += text[index]
        index += 1
    return out


def words(text: str) -> list[str]:
    """The words of a setting by the rules of systemd.syntax(7): quotes group, a backslash escapes."""
    found, index = [], 0
    while index < len(text):
        if text[index] == " ":
            index += 1
            continue
        word, quoted = "", ""
        while index < len(text) and (quoted or text[index] != " "):
            char = text[index]
            if char == "\\":
                index += 1
                assert index < len(text), "a line that goes on in the next one"
                word += text[index]
            elif not quoted and char in "\"'":
                quoted = char
            elif char == quoted:
                quoted = ""
            else:
                word += char
            index += 1
        assert not quoted, f"a quote without its end: {text!r}"
        found.append(word)
    return [specifiers(word) for word in found]


def unit(**changes: Any) -> dict[str, list[str]]:
    """A rendered unit as setting -> values, one for each line."""
    values: dict[str, Any] = {
        "name": "thing", "description": "A thing", "command": ("/bin/thing",), "working_directory": "/var/thing",
        "ports": (1234,), "state_directory": "/var/thing", "ready_path": "/",
    }  # fmt: skip
    service = Service.model_validate({**values, **changes})
    units.unit_filters()
    assert "unit" in environment().filters
    text = render(
        "service/systemd.service.j2", service=service, account="box-thing", user_mode=False,
        bound=[path for path in (*service.writable, *service.readable) if path.startswith("/home/")],
        secrets="/etc/box/secrets",
    )  # fmt: skip
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@settings(max_examples=150, deadline=None)
@hostile
@given(TEXT)
def test_values_in_a_unit_are_words_of_their_own(value: str) -> None:
    plain = unit(environment=(("KEY", "x"),), command=("/bin/thing", "x"))
    found = unit(environment=(("KEY", value),), command=("/bin/thing", value))
    assert found.keys() == plain.keys()
    assert words(found["Environment"][0]) == [f"KEY={value}"]
    (command,) = found["ExecStart"]
    assert [word.replace("$$", "$") for word in words(command)] == ["/bin/thing", value]
    assert "$" not in command.replace("$$", "")


@settings(max_examples=100, deadline=None)
@hostile
@given(TEXT)
def test_folders_in_a_unit_are_one_path_each(value: str) -> None:
    """`ReadWritePaths=/a b` would open two folders, `BindPaths=/a:/b` would put one over the other."""
    outside, home = f"/srv/{value}", f"/home/{value}"
    found = unit(writable=(outside, home), readable=(outside, home))
    assert words(found["ReadWritePaths"][-1]) == [outside]
    assert words(found["ReadOnlyPaths"][-1]) == [outside]
    for key in ("BindPaths", "BindReadOnlyPaths"):
        (line,) = found[key]
        assert words(line) == [home]
        assert line[0] == line[-1] == '"', "an unquoted colon parts source and place"


@settings(max_examples=100, deadline=None)
@hostile
@given(TEXT)
def test_text_settings_stay_on_their_line(value: str) -> None:
    try:
        found = unit(description=value, working_directory=f"/x{value}", requires=(f"/y{value}",))
    except ConfigError:
        assert value.endswith("\\"), "only a backslash at the end cannot be written down"
        return
    assert specifiers(found["Description"][0]) == value
    assert specifiers(found["WorkingDirectory"][0]) == f"/x{value}"
    assert specifiers(found["AssertPathExists"][0]) == f"/y{value}"
    assert found["User"] == ["box-thing"]


def test_systemd_itself_takes_the_unit(tmp_path: Path) -> None:
    """The real parser, over a unit with every hostile value at once."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    units.unit_filters()
    service = Service(
        name="thing", description="A thing", command=("/bin/true", *HOSTILE), working_directory="/",
        environment=tuple((f"KEY{i}", text) for i, text in enumerate(HOSTILE)), ports=(1234,),
        state_directory="/tmp", writable=tuple(f"/tmp/{text}x" for text in HOSTILE), ready_path="/",
        readable=tuple(f"/home/{text}x" for text in HOSTILE),
    )  # fmt: skip
    text = render(
        "service/systemd.service.j2", service=service, account="root", user_mode=False,
        bound=service.readable, secrets="/tmp/none",
    )  # fmt: skip
    (tmp_path / "thing.service").write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "thing.service")], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "thing.service" in line]
    assert said == []
    (tmp_path / "thing.service").write_text(text + "Nonsense=1\n[Service]\nReadWritePaths=relative\n")
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "thing.service")], capture_output=True, text=True, check=False
    )
    assert "relative" in done.stderr, "the parser did not look"
