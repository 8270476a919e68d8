"""A real S3 server on loopback (SeaweedFS, from its wheel) for tests and benchmarks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from urllib.request import urlopen

KEY, SECRET, BUCKET = "howdah-key", "howdah-secret", "howdah-test"
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port",
         "s3.port.grpc")  # fmt: skip


class S3Server:
    """One server with one bucket, which is made by the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True)
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": KEY, "secretKey": SECRET}]
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": rights}]}))
        probes = [socket.socket() for _ in PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = dict(zip(PORTS, (probe.getsockname()[1] for probe in probes), strict=True))
        for probe in probes:
            probe.close()
        self.port = ports["s3.port"]
        fixed = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "s3.config": config,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 30,
        }
        program = Path(sysconfig.get_path("scripts")) / "weed"
        options = [f"-{name}={value}" for name, value in (fixed | ports).items()]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen([program, "server", "-s3", *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        import obstore
        from obstore.store import S3Store

        try:
            urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5).close()
            store = S3Store(
                BUCKET,
                endpoint=f"http://127.0.0.1:{self.port}",
                access_key_id=KEY,
                secret_access_key=SECRET,
                region="us-east-1",
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            obstore.put(store, "ready", b"yes")
        except Exception:  # not yet
            return False
        return True

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def close(self) -> None:
        """Stop it and remove its files."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
