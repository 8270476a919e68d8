"""Secrets: encrypted at rest, silent when locked, never shown."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import howdah
from howdah import (
    AsyncChainedSecrets,
    AsyncEnvSecrets,
    ChainedSecrets,
    EnvSecrets,
    InvalidInput,
    Locked,
    PassphraseCache,
    Store,
    WrongPassphrase,
)
from tests.conftest import Clock


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howdah.stores.secrets.ROUNDS", 1000)


def test_put_get_and_what_is_known(store: Store, clock: Clock) -> None:
    secrets = store.secrets(passphrase="open sesame")
    now = datetime.fromtimestamp(clock.now, UTC)
    secrets.put("api", "sk-123 é", label="the key", provider="acme", expires_at=now + timedelta(hours=1))
    assert secrets.get("api") == "sk-123 é"
    info = secrets.info("api")
    assert info is not None
    assert (info.label, info.provider, info.expires_at, info.created_at) == (
        "the key",
        "acme",
        now + timedelta(hours=1),
        now,
    )
    assert "sk-123" not in repr(info) + repr(secrets._async)
    clock.now += 10
    secrets.put("api", "sk-456")
    info = secrets.info("api")
    assert info is not None
    assert (info.label, info.expires_at, info.created_at) == ("the key", now + timedelta(hours=1), now)
    assert info.updated_at == now + timedelta(seconds=10)
    secrets.put("api", "sk-789", label=None, expires_at=None)
    info = secrets.info("api")
    assert info is not None
    assert (info.label, info.provider, info.expires_at) == (None, "acme", None)
    secrets.put("short", "x", expires_at=now + timedelta(seconds=20))
    assert secrets.keys() == ["api", "short"]
    clock.now += 10
    assert secrets.keys() == ["api"]
    assert not secrets.has("short")
    assert secrets.get("short") is None
    assert secrets.delete("api")
    assert not secrets.delete("api")
    secrets.put("a", "1")
    secrets.put("b", "2", expires_at=now)  # past already
    assert secrets.clear() == 1
    assert secrets.unlocked


def test_nothing_readable_is_stored(store: Store) -> None:
    secrets = store.secrets(passphrase="open sesame")
    secrets.put("name", "the secret value", label="the label")
    stored = str(store.kv("secrets/secrets").scan().all())
    for word in ("secret value", "the label", "sesame"):
        assert word not in stored
    first = store.kv("secrets/secrets").get("name")
    secrets.put("name", "the secret value", label="the label")
    assert store.kv("secrets/secrets").get("name") != first  # a new nonce each time
    raw = store.kv("secrets/secrets")
    raw.put("other", raw.get("name"))  # moved under another name
    with pytest.raises(WrongPassphrase):
        secrets.get("other")
    raw.put("broken", "not base64!")
    with pytest.raises(howdah.Corrupt):
        secrets.get("broken")


def test_locked_looks_empty(store: Store) -> None:
    secrets = store.secrets()
    store.secrets(passphrase="right").put("a", "1")
    assert not secrets.unlocked
    assert secrets.get("a") is None
    assert not secrets.has("a")
    assert not secrets.delete("a")
    assert secrets.keys() == []
    assert secrets.clear() == 0
    assert secrets.info("a") is None
    with pytest.raises(Locked):
        secrets.put("a", "2")
    with pytest.raises(Locked):
        secrets.rotate("x")
    with pytest.raises(WrongPassphrase):
        secrets.unlock("wrong")
    assert secrets.get("a") is None
    secrets.unlock("right")
    assert secrets.get("a") == "1"
    secrets.lock()
    assert secrets.get("a") is None
    with pytest.raises(WrongPassphrase):
        store.secrets(passphrase="wrong").get("a")
    wrong: Any
    for wrong in ("", None, 5):
        with pytest.raises(InvalidInput):
            secrets.unlock(wrong)


def test_rotating_the_passphrase(store: Store) -> None:
    secrets = store.secrets(passphrase="old")
    for n in range(5):
        secrets.put(f"k{n}", f"v{n}", label=str(n))
    assert secrets.rotate("new") == 5
    assert secrets.get("k3") == "v3"
    again = store.secrets(passphrase="new")
    assert [again.get(k) for k in again.keys()] == [f"v{n}" for n in range(5)]
    with pytest.raises(WrongPassphrase):
        store.secrets(passphrase="old").get("k1")


def test_bad_arguments(store: Store) -> None:
    secrets = store.secrets(passphrase="p")
    wrong: Any
    for wrong in ("", None, 5, "\x01head"):
        with pytest.raises(InvalidInput):
            secrets.get(wrong)
    for wrong in (None, 5, b"x"):
        with pytest.raises(InvalidInput):
            secrets.put("k", wrong)
    for wrong in ({"label": 5}, {"provider": 5}, {"expires_at": "soon"}, {"expires_at": datetime(2030, 1, 1)}):
        with pytest.raises(InvalidInput):
            secrets.put("k", "v", **wrong)


def test_environment_and_chain(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOWDAH_TEST_API_KEY", "prefixed")
    monkeypatch.setenv("API_KEY", "plain")
    env = EnvSecrets({"given": "explicit"}, prefix="howdah_test")
    assert env.get("api-key") == "prefixed"
    assert EnvSecrets().get("api-key") == "plain"
    assert env.get("given") == "explicit"
    assert env.get("nothing-there") is None
    assert env.has("given")
    assert env.keys() == ["given"]
    assert not env.delete("given")
    with pytest.raises(howdah.Unsupported):
        env.put("k", "v")
    own = store.secrets()
    chain = ChainedSecrets([own, env])
    assert chain.get("api-key") == "prefixed"  # the locked store looks empty
    with pytest.raises(Locked):
        chain.put("k", "v")
    own.unlock("p")
    chain.put("api-key", "stored", label="mine")
    assert chain.get("api-key") == "stored"
    assert chain.keys() == ["api-key", "given"]
    assert chain.has("given")
    assert chain.delete("api-key")
    assert chain.get("api-key") == "prefixed"
    assert chain.clear() == 0
    for kind in (ChainedSecrets, AsyncChainedSecrets):
        with pytest.raises(InvalidInput):
            kind([])


def test_environment_and_chain_for_async_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEY", "plain")

    async def main() -> None:
        async with await howdah.connect_async(str(tmp_path / "secrets.db")) as store:
            own, env = store.secrets(passphrase="p"), AsyncEnvSecrets({"given": "explicit"})
            chain = AsyncChainedSecrets([own, env])
            assert await chain.get("api-key") == "plain"
            await chain.put("api-key", "stored")
            assert await chain.get("api-key") == "stored"
            assert await chain.keys() == ["api-key", "given"]
            assert await chain.has("given")
            assert await chain.delete("api-key")
            assert await chain.clear() == 0
            with pytest.raises(howdah.Unsupported):
                await env.put("k", "v")

    asyncio.run(main())


def test_passphrase_cache() -> None:
    now = [0.0]
    expired: list[int] = []
    cache = PassphraseCache(ttl=100, idle=10, on_expiry=lambda: expired.append(1), clock=lambda: now[0])
    assert cache.get() is None
    cache.put("pass é")
    assert "pass é" not in repr(cache) + str(vars(cache))
    for step in (5, 14, 23):
        now[0] = step
        assert cache.get() == "pass é"
    now[0] = 33
    assert cache.get() is None
    assert cache.get() is None
    assert expired == [1]
    cache.put("again")
    for step in range(40, 133, 9):
        now[0] = step
        cache.get()
    now[0] = 133
    assert cache.get() is None
    cache.put("third")
    cache.clear()
    assert cache.get() is None
    assert expired == [1, 1]


def test_a_handle_that_missed_a_new_passphrase_writes_nothing(store: Store) -> None:
    one, two = store.secrets(passphrase="old"), store.secrets(passphrase="old")
    one.put("k", "v")
    assert two.get("k") == "v"
    one.rotate("new")
    with pytest.raises(WrongPassphrase):
        two.put("other", "x")
    with pytest.raises(Locked):
        two.rotate("third")
    assert one.keys() == ["k"]
    two.unlock("new")
    two.put("other", "x")
    assert one.get("other") == "x"
    assert one.rotate("third") == 2
