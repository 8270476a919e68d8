"""Secrets: encrypted values under names, with label, provider and expiry; and other places that secrets come from."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from ..cipher import Cipher, derive
from ..engines.base import Engine, Op
from ..errors import Corrupt, InvalidInput, Locked, WrongPassphrase
from ..values import KEEP, check_text, decode_json, encode_json, seconds, utc
from .common import Duration, check_key
from .kv import AsyncKV

ROUNDS: Final = 600_000
CHECK: Final = "howdah secrets"
HEAD: Final = "\x01head"


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """What is known of a secret but its value."""

    key: str
    label: str | None
    provider: str | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


class SecretSource(Protocol):
    """Where secrets come from."""

    async def get(self, key: str) -> str | None: ...
    async def put(self, key: str, value: str, **about: Any) -> None: ...
    async def delete(self, key: str) -> bool: ...
    async def has(self, key: str) -> bool: ...
    async def keys(self) -> list[str]: ...
    async def clear(self) -> int: ...


class AsyncSecrets:
    """Secrets in a store: AES-256-GCM, a new nonce for each write, name and metadata authenticated; the key comes from the
    passphrase by PBKDF2-SHA256 with 600,000 rounds, once per unlocking. Opened by ``store.secrets(name)``.

    Locked, it looks empty, so that a chain falls through to the next; ``put`` raises ``Locked``.
    """

    def __init__(self, engine: Engine, name: str, *, passphrase: str | None = None, prefix: str = "") -> None:
        self._engine = engine
        self._kv = AsyncKV(engine, f"secrets/{name}", prefix=prefix)
        self._name = name
        self._cipher: Cipher | None = None
        self._salt: str | None = None
        self._passphrase = None if passphrase is None else _check_passphrase(passphrase)

    def __repr__(self) -> str:
        return f"<secrets {self._name!r}, {'unlocked' if self.unlocked else 'locked'}>"

    @property
    def unlocked(self) -> bool:
        """Whether a passphrase has been given and not taken back."""
        return self._cipher is not None or self._passphrase is not None

    async def unlock(self, passphrase: str) -> None:
        """Make the key from a passphrase; ``WrongPassphrase`` when it is not the one the store was made with."""
        self._cipher = await self._checked(_check_passphrase(passphrase))
        self._passphrase = None

    def lock(self) -> None:
        """Forget the key."""
        self._cipher = self._passphrase = None

    async def _checked(self, passphrase: str) -> Cipher:
        """The cipher of a passphrase; the first one ever given becomes the store's."""
        head = await self._kv.get(HEAD)
        if head is None:
            salt = os.urandom(16)
            cipher = Cipher(derive(passphrase, salt, ROUNDS))
            made: dict[str, Any] = {
                "salt": base64.b64encode(salt).decode(),
                "rounds": ROUNDS,
                "check": cipher.seal(CHECK, "head"),
            }
            if await self._kv.create(HEAD, made):
                self._salt = made["salt"]
                return cipher
            head = await self._kv.get(HEAD)
        return self._opened(head, passphrase)

    def _opened(self, head: Any, passphrase: str) -> Cipher:
        try:
            salt, rounds, check = base64.b64decode(head["salt"]), head["rounds"], head["check"]
        except (TypeError, KeyError, ValueError) as error:
            raise Corrupt(f"secrets {self._name!r}: its head cannot be read") from error
        cipher = Cipher(derive(passphrase, salt, rounds))
        if cipher.open(check, "head") != CHECK:
            raise WrongPassphrase(f"secrets {self._name!r}: this is not its passphrase")
        self._salt = head["salt"]
        return cipher

    async def _ready(self) -> Cipher | None:
        if self._cipher is None and self._passphrase is not None:
            await self.unlock(self._passphrase)
        return self._cipher

    def _key(self, key: Any) -> str:
        check_key(key, empty=False)
        if key == HEAD:
            raise InvalidInput("this key is the store's own")
        return str(key)

    async def _read(self, key: str, cipher: Cipher) -> dict[str, Any] | None:
        sealed = await self._kv.get(key)
        return None if sealed is None else decode_json(cipher.open(sealed, f"secret {key}"))

    async def get(self, key: str) -> str | None:
        """The secret's value, or ``None``."""
        name, cipher = self._key(key), await self._ready()
        found = None if cipher is None else await self._read(name, cipher)
        return None if found is None else found["value"]

    async def put(
        self, key: str, value: str, *, label: Any = KEEP, provider: Any = KEEP, expires_at: Any = KEEP
    ) -> None:
        """Store a secret. Label, provider and expiry (an aware moment) stay unless given anew; ``None`` clears them.

        Raises ``Locked`` without passphrase.
        """
        name = self._key(key)
        if not isinstance(value, str):
            raise InvalidInput(f"secret {key!r}: expected text, got {type(value).__name__}")
        check_text(value, "secret")
        for what, given in (("label", label), ("provider", provider)):
            if given is not KEEP and given is not None and not isinstance(given, str):
                raise InvalidInput(f"{what}: expected text or None")
        if expires_at is not KEEP and expires_at is not None:
            expires_at = utc(expires_at, "expires_at")
        cipher = await self._ready()
        if cipher is None:
            raise Locked(f"secrets {self._name!r}: unlock(passphrase) first")
        given = {"label": label, "provider": provider, "expires_at": expires_at}
        await self._kv._table._write(lambda: self._putting(name, value, given, cipher))

    def _putting(self, name: str, value: str, given: Mapping[str, Any], cipher: Cipher) -> Op[None]:
        """Replace a secret, keeping what is not given anew; nobody changes the passphrase meanwhile."""
        ops = self._kv._ops
        yield from self._same_passphrase()
        sealed = yield from self._sealed(name)
        old = {} if sealed is None else decode_json(cipher.open(sealed, f"secret {name}"))
        now = datetime.fromtimestamp(self._engine.now(), UTC)
        kept = {n: old.get(n) for n in ("label", "provider", "expires_at")}
        for what, new in given.items():
            if new is not KEEP:
                kept[what] = new.isoformat() if isinstance(new, datetime) else new
        due = None if kept["expires_at"] is None else datetime.fromisoformat(kept["expires_at"])
        if due is not None and due <= now:
            yield from ops.delete([(self._kv._key(name),)])
            return
        row = {
            "value": value,
            **kept,
            "created_at": old.get("created_at", now.isoformat()),
            "updated_at": now.isoformat(),
        }
        ttl = None if due is None else due - now
        yield from ops.put([ops.encode(self._kv._row(name, cipher.seal(encode_json(row), f"secret {name}"), ttl))])

    def _sealed(self, name: str) -> Op[Any]:
        """What is stored under a name, in this write."""
        rows = yield from self._kv._ops.get_many([(self._kv._key(name),)], ("value",))
        return self._kv._value(rows[0][0]) if rows else None

    def _same_passphrase(self) -> Op[None]:
        """Until this write has ended nobody rotates; ``WrongPassphrase`` when somebody has."""
        yield from self._kv._ops.alone("secrets")
        head = yield from self._sealed(HEAD)
        if head is None or head["salt"] != self._salt:
            self.lock()
            raise WrongPassphrase(f"secrets {self._name!r}: its passphrase was changed; unlock it with the new one")

    async def has(self, key: str) -> bool:
        """Whether there is such a secret; ``False`` while locked."""
        name = self._key(key)
        return await self._ready() is not None and await self._kv.has(name)

    async def keys(self) -> list[str]:
        """The names, in order; never values. Empty while locked."""
        if await self._ready() is None:
            return []
        return [key for key in await self._kv.keys().all() if key != HEAD]

    async def info(self, key: str) -> SecretInfo | None:
        """What is known of a secret but its value."""
        name, cipher = self._key(key), await self._ready()
        found = None if cipher is None else await self._read(name, cipher)
        if found is None:
            return None
        moments = {n: datetime.fromisoformat(found[n]) for n in ("created_at", "updated_at")}
        due = None if found["expires_at"] is None else datetime.fromisoformat(found["expires_at"])
        return SecretInfo(name, found["label"], found["provider"], due, **moments)

    async def delete(self, key: str) -> bool:
        """Delete a secret; whether it was there. ``False`` while locked."""
        name = self._key(key)
        return await self._ready() is not None and await self._kv.delete(name)

    async def clear(self) -> int:
        """Delete every secret; how many there were. Nothing while locked."""
        found = await self.keys()
        return await self._kv.delete_many(found) if found else 0

    async def rotate(self, passphrase: str) -> int:
        """Encrypt everything anew under another passphrase, all or nothing; how many secrets there are."""
        old = await self._ready()
        if old is None:
            raise Locked(f"secrets {self._name!r}: unlock(passphrase) first")
        salt = os.urandom(16)
        new = Cipher(derive(_check_passphrase(passphrase), salt, ROUNDS))
        head: dict[str, Any] = {
            "salt": base64.b64encode(salt).decode(), "rounds": ROUNDS, "check": new.seal(CHECK, "head"),
        }  # fmt: skip
        ops, table = self._kv._ops, self._kv._table
        hidden = self._kv._prefix

        def work() -> Op[int]:
            yield from self._same_passphrase()
            rows = yield from ops.select(None, (), names=ops.schema.names, limit=None)
            changed, total = [], 0
            for driver in map(list, rows):
                name = driver[0]
                if not name.startswith(hidden):
                    continue
                key = name[len(hidden) :]
                if key == HEAD:
                    driver[1] = ops.encode_value("value", encode_json(head))
                else:
                    text = old.open(self._kv._value(driver[1]), f"secret {key}")
                    driver[1] = ops.encode_value("value", encode_json(new.seal(text, f"secret {key}")))
                    total += 1
                changed.append(driver)
            yield from ops.put(changed)
            return total

        total = await table._write(work)
        self._cipher, self._salt = new, head["salt"]
        return int(total)


def _check_passphrase(passphrase: object) -> str:
    if not isinstance(passphrase, str) or not passphrase:
        raise InvalidInput("the passphrase must be text that is not empty")
    return check_text(passphrase, "passphrase")


class PassphraseCache:
    """A passphrase in memory, masked, for ``ttl`` seconds (6 hours) and, if set, ``idle`` seconds without use."""

    def __init__(
        self,
        ttl: Duration = 21600,
        idle: Duration | None = None,
        on_expiry: Callable[[], Any] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = seconds(ttl, "ttl")
        self._idle = None if idle is None else seconds(idle, "idle")
        self._on_expiry = on_expiry
        self._clock = clock
        self._mask = os.urandom(1)
        self._hidden: bytes | None = None
        self._since = self._used = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "<passphrase cache>"

    def put(self, passphrase: str) -> None:
        """Remember a passphrase from now on."""
        text = _check_passphrase(passphrase).encode()
        with self._lock:
            self._mask = os.urandom(len(text))
            self._hidden = bytes(a ^ b for a, b in zip(text, self._mask, strict=True))
            self._since = self._used = self._clock()

    def get(self) -> str | None:
        """The passphrase, or ``None`` once its time is over; ``on_expiry`` is called then, once."""
        with self._lock:
            if self._hidden is None:
                return None
            now = self._clock()
            over = now - self._since >= self._ttl or (self._idle is not None and now - self._used >= self._idle)
            if not over:
                self._used = now
                return bytes(a ^ b for a, b in zip(self._hidden, self._mask, strict=True)).decode()
            self._hidden = None
        if self._on_expiry is not None:
            self._on_expiry()
        return None

    def clear(self) -> None:
        """Forget it now."""
        with self._lock:
            self._hidden = None
