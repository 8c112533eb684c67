"""What encrypts a backup, in the format of age: by a passphrase, for recipients, or for a key of the backup's own.

The library lies in a release of the base role (`age`), because the runner's own Python has no cipher.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .core import Spec, StepError

HEAD = b"age-encryption.org/v1\n"
WHERE = "`ownstack up` installs it: it comes from the Python package index, through the machine that you work from"


def library(spec: Spec) -> Any:
    """The module of age. spec: age (the folder that holds it). Raises StepError where it is not installed."""
    folder = spec["age"]
    if not os.path.isdir(os.path.join(folder, "pyrage")):
        raise StepError("what encrypts a backup is not installed", hint=WHERE, code="no-age")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("pyrage")


def passphrase(spec: Spec) -> str:
    """The passphrase: `word` where it was read before, else what passphrase_file holds."""
    if spec.get("word"):
        return str(spec["word"])
    with open(spec["passphrase_file"], encoding="utf-8") as stream:
        return stream.read().rstrip("\n")


def sealable(spec: Spec) -> None:
    """Raises StepError where there is nothing to encrypt with: a backup never holds a secret in the clear."""
    if not (spec.get("recipients") or spec.get("passphrase_file")):
        raise StepError(
            "a backup holds keys and passwords, and is never written in the clear",
            hint="name a passphrase (`--passphrase-file FILE`) or an age recipient (`--recipient age1...`)",
            code="no-passphrase",
        )


def ready(spec: Spec) -> None:
    """Raises StepError where `seal` would, before any work is done."""
    sealable(spec)
    age = library(spec)
    if spec.get("recipients"):
        _recipients(age, spec)
    elif not passphrase(spec):
        raise StepError("the passphrase is empty", hint="write one into the file", code="no-passphrase")


def _recipients(age: Any, spec: Spec) -> list[Any]:
    try:
        return [age.x25519.Recipient.from_str(text) for text in spec["recipients"]]
    except age.RecipientError as error:
        raise StepError(
            f"not an age recipient: {error}", hint="it looks like age1..., `age-keygen` makes one", code="recipient"
        ) from error


def seal(spec: Spec, data: bytes) -> bytes:
    """Encrypt. spec: age, and recipients (public keys) or passphrase_file."""
    ready(spec)
    age = library(spec)
    if spec.get("recipients"):
        return bytes(age.encrypt(data, _recipients(age, spec)))
    return bytes(age.passphrase.encrypt(data, passphrase(spec)))


def can_open(spec: Spec) -> bool:
    return bool(spec.get("identity_file") or spec.get("passphrase_file"))


def unseal(spec: Spec, data: bytes) -> bytes:
    """Decrypt. spec: age, and identity_file (age's secret key) or passphrase_file. Raises StepError for a wrong one."""
    age = library(spec)
    try:
        if spec.get("identity_file"):
            with open(spec["identity_file"], encoding="utf-8") as stream:
                lines = [line.strip() for line in stream if line.strip() and not line.startswith("#")]
            return bytes(age.decrypt(data, [age.x25519.Identity.from_str(line) for line in lines]))
        return bytes(age.passphrase.decrypt(data, passphrase(spec)))
    except (age.DecryptError, age.IdentityError) as error:
        raise StepError(
            "the backup cannot be opened with this key",
            hint="give the passphrase or identity that the backup was made with; nothing was changed",
            code="wrong-passphrase",
        ) from error


class Cipher:
    """A key that was made for one backup: with it parts are encrypted as streams, whatever opens the backup itself."""

    def __init__(self, spec: Spec, text: str) -> None:
        self.age, self.text = library(spec), text
        try:
            self.identity = self.age.x25519.Identity.from_str(text)
        except self.age.IdentityError as error:
            raise ValueError("no identity") from error

    @classmethod
    def new(cls, spec: Spec) -> Cipher:
        return cls(spec, str(library(spec).x25519.Identity.generate()))

    def encrypt(self, source: Any, out: Any) -> None:
        reading, writing = _Kept(source), _Kept(out)
        try:
            self.age.encrypt_io(reading, writing, [self.identity.to_public()])
        except (self.age.EncryptError, OSError) as error:
            raise reading.error or writing.error or error from error

    def decrypt(self, source: Any, out: Any) -> None:
        """Raises ValueError where the bytes are not those that were encrypted."""
        reading, writing = _Kept(source), _Kept(out)
        try:
            self.age.decrypt_io(reading, writing, [self.identity])
        except (self.age.DecryptError, OSError) as error:
            raise reading.error or writing.error or ValueError(str(error)) from error


class _Kept:
    """A stream whose own error is not lost in the library's."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def _kept(self, work: Any, *given: Any) -> Any:
        try:
            return work(*given)
        except Exception as error:
            self.error = error
            raise

    def read(self, size: int = -1) -> bytes:
        return bytes(self._kept(self.stream.read, size))

    def write(self, data: bytes) -> int:
        return int(self._kept(self.stream.write, data))

    def flush(self) -> None:
        self._kept(self.stream.flush)
