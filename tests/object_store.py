"""A server of an object store over HTTP, which serves a folder as S3 does, and can be killed and started again."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

VARIABLES = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_MAX_ATTEMPTS": "1"}


class ObjectStore:
    """An S3 server with the bucket `bucket`, which keeps its objects in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "bucket").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = shutil.which("rclone") or str(Path(sys.executable).with_name("rclone"))
        self.process = subprocess.Popen(
            [command, "serve", "s3", str(self.folder), "--addr", f"127.0.0.1:{self.port}", "--config", os.devnull],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("the object store does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()
