"""Signatures: those of the program minisign hold here, and nothing that was changed does."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from ownstack.bundle.minisign import PublicKey, SecretKey, SignatureError, sign, verify

MADE = Path(__file__).parents[1] / "fixtures" / "minisign"  # by minisign 0.11: -G -W, -S, and -Sl for the old kind
MESSAGE = (MADE / "message").read_bytes()
SIGNED = (MADE / "message.minisig").read_text()
KEY = PublicKey.parse((MADE / "key.pub").read_text().splitlines()[1])


def test_what_the_program_signed_holds() -> None:
    assert verify(MESSAGE, SIGNED, [KEY]) == (KEY, "a comment of its own")
    assert KEY.name in (MADE / "key.pub").read_text()
    assert KEY.text == (MADE / "key.pub").read_text().split()[-1]


def line(number: int, text: str) -> str:
    lines = SIGNED.split("\n")
    lines[number] = text
    return "\n".join(lines)


def flipped(number: int, byte: int) -> str:
    """The signature with one bit of a base64 line changed."""
    raw = bytearray(base64.b64decode(SIGNED.split("\n")[number]))
    raw[byte] ^= 1
    return line(number, base64.b64encode(raw).decode())


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (flipped(1, 20), "does not hold"),
        (flipped(3, 20), "does not hold"),
        (flipped(1, 4), "signed with the key"),
        (line(2, "trusted comment: a comment of another"), "does not hold"),
        (line(2, "a comment of its own"), "comments are missing"),
        (line(0, "no comment"), "comments are missing"),
        (line(1, "!!!!"), "not a minisign signature"),
        (line(1, SIGNED.split("\n")[1][:40]), "not a minisign signature"),
        (line(3, base64.b64encode(b"short").decode()), "5 bytes, not 64"),
        ("\n".join(SIGNED.split("\n")[:2]), "four lines"),
        (SIGNED + "more\n", "four lines"),
        ("", "four lines"),
        ((MADE / "legacy.minisig").read_text(), "not a minisign signature of a hash"),
    ],
)
def test_a_changed_signature_does_not(signature: str, why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        verify(MESSAGE, signature, [KEY])


def test_a_changed_message_or_another_key_does_not() -> None:
    with pytest.raises(SignatureError, match="does not hold"):
        verify(MESSAGE + b" ", SIGNED, [KEY])
    with pytest.raises(SignatureError, match=f"signed with the key {KEY.name}, trusted is none"):
        verify(MESSAGE, SIGNED, [])
    other = SecretKey.make().public
    with pytest.raises(SignatureError, match=f"trusted is {other.name}"):
        verify(MESSAGE, SIGNED, [other])
    with pytest.raises(SignatureError, match="does not hold"):  # another key under the same number
        verify(MESSAGE, SIGNED, [PublicKey(KEY.number, other.key)])


def test_a_key_of_ours_is_kept_as_the_program_keeps_one() -> None:
    key = SecretKey.make()
    again = SecretKey.parse(key.text())
    assert again.public == key.public
    assert verify(b"text", sign(b"text", again, "note"), [key.public]) == (key.public, "note")
    with pytest.raises(SignatureError, match="one line"):
        sign(b"text", key, "two\nlines")
    locked = bytearray(base64.b64decode(key.text().splitlines()[1]))
    locked[2:4] = b"Sc"
    with pytest.raises(SignatureError, match="has a password"):
        SecretKey.parse(f"comment\n{base64.b64encode(locked).decode()}\n")
    for text in ("", "one line", "comment\nAAAA\n", f"comment\n{key.public.text}\n"):
        with pytest.raises(SignatureError):
            SecretKey.parse(text)


def test_the_program_takes_ours(tmp_path: Path) -> None:
    program = shutil.which("minisign")
    if program is None:
        pytest.skip("the program minisign is not installed; its own signatures are tested above")
    key = SecretKey.make()
    (tmp_path / "key").write_text(key.text())
    file = tmp_path / "file"
    file.write_bytes(b"content")
    (tmp_path / "file.minisig").write_text(sign(b"content", key, "note"))
    said = subprocess.check_output([program, "-V", "-m", file, "-P", key.public.text], text=True)
    assert "Trusted comment: note" in said
    subprocess.run([program, "-S", "-s", tmp_path / "key", "-m", file, "-t", "theirs"], check=True, input=b"\n")
    assert verify(b"content", (tmp_path / "file.minisig").read_text(), [key.public])[1] == "theirs"
