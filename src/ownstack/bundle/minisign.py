"""Signatures as the program `minisign` makes and checks them: Ed25519 over the BLAKE2b-512 of a file.

Only the prehashed kind (`ED`) is known. A key is 8 bytes of number and 32 of Ed25519; the trusted comment is signed
together with the signature. Format: minisign's own description, "Signature format" and "Public key format".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ALGORITHM, PREHASHED, CHECKSUM = b"Ed", b"ED", b"B2"
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "


class SignatureError(ValueError):
    """A key or signature that is none, or one that does not hold."""


@dataclass(frozen=True)
class PublicKey:
    """A key that checks signatures; `text` is what minisign prints and takes with `-P`."""

    number: bytes
    key: bytes

    @property
    def text(self) -> str:
        return base64.b64encode(ALGORITHM + self.number + self.key).decode()

    @property
    def name(self) -> str:
        """The key's number as minisign writes it."""
        return self.number[::-1].hex().upper()

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Raises SignatureError where the text is no public key."""
        raw = _decode(text.strip(), 42, "a minisign public key")
        if raw[:2] != ALGORITHM:
            raise SignatureError("not a minisign public key")
        return cls(raw[2:10], raw[10:])


@dataclass(frozen=True)
class Signature:
    """The content of a `.minisig` file."""

    number: bytes
    signature: bytes
    comment: str
    whole: bytes  # the signature over signature and trusted comment

    @property
    def name(self) -> str:
        return self.number[::-1].hex().upper()

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Raises SignatureError where the text is no signature of the prehashed kind."""
        lines = text.split("\n")
        if lines[4:] not in ([], [""]) or len(lines) < 4:
            raise SignatureError("not a minisign signature: it has four lines")
        if not lines[0].startswith(UNTRUSTED) or not lines[2].startswith(TRUSTED):
            raise SignatureError("not a minisign signature: its comments are missing")
        raw = _decode(lines[1], 74, "a minisign signature")
        if raw[:2] != PREHASHED:
            raise SignatureError("not a minisign signature of a hash (made without `-H` by an old minisign?)")
        return cls(raw[2:10], raw[10:], lines[2].removeprefix(TRUSTED), _decode(lines[3], 64, "a minisign signature"))


@dataclass(frozen=True)
class SecretKey:
    """A key that signs."""

    number: bytes
    key: Ed25519PrivateKey

    @classmethod
    def make(cls) -> SecretKey:
        return cls(os.urandom(8), Ed25519PrivateKey.generate())

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.number, self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def text(self) -> str:
        """The content of a secret key file without a password, as `minisign -G -W` writes it."""
        seed = self.key.private_bytes_raw()
        pair = seed + self.public.key
        # the checksum is of use with a password only
        raw = ALGORITHM + bytes(2) + CHECKSUM + bytes(48) + self.number + pair + bytes(32)
        return f"{UNTRUSTED}minisign secret key\n{base64.b64encode(raw).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """Read a secret key file without a password. Raises SignatureError for others."""
        lines = text.splitlines()
        if len(lines) < 2:
            raise SignatureError("not a minisign secret key")
        raw = _decode(lines[1], 158, "a minisign secret key")
        if raw[:2] != ALGORITHM or raw[4:6] != CHECKSUM:
            raise SignatureError("not a minisign secret key")
        if raw[2:4] != bytes(2):
            raise SignatureError("the secret key has a password; `minisign -C -W` takes it off a copy")
        return cls(raw[54:62], Ed25519PrivateKey.from_private_bytes(raw[62:94]))


def sign(content: bytes, key: SecretKey, comment: str) -> str:
    """The content of the `.minisig` file for `content`."""
    if "\n" in comment or "\r" in comment:
        raise SignatureError("a trusted comment is one line")
    signature = key.key.sign(hashlib.blake2b(content).digest())
    whole = key.key.sign(signature + comment.encode())
    first = base64.b64encode(PREHASHED + key.number + signature).decode()
    untrusted = f"{UNTRUSTED}signature of ownstack's data"
    return f"{untrusted}\n{first}\n{TRUSTED}{comment}\n{base64.b64encode(whole).decode()}\n"


def verify(content: bytes, text: str, keys: list[PublicKey]) -> tuple[PublicKey, str]:
    """Check a signature; the key that made it and its trusted comment. Raises SignatureError."""
    signature = Signature.parse(text)
    mine = [key for key in keys if key.number == signature.number]
    if not mine:
        known = ", ".join(key.name for key in keys)
        raise SignatureError(f"signed with the key {signature.name}, trusted is {known or 'none'}")
    key = mine[0]
    check = Ed25519PublicKey.from_public_bytes(key.key)
    try:
        check.verify(signature.signature, hashlib.blake2b(content).digest())
        check.verify(signature.whole, signature.signature + signature.comment.encode())
    except InvalidSignature:
        raise SignatureError(f"the signature with the key {key.name} does not hold") from None
    return key, signature.comment


def _decode(text: str, size: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"not {what}: {error}") from None
    if len(raw) != size:
        raise SignatureError(f"not {what}: {len(raw)} bytes, not {size}")
    return raw
