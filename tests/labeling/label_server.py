"""The page as the command `rlhf-label` serves it, and the browser that looks at it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rlhf_lightning.labeling.store import LabelStore

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)
COMMAND = [sys.executable, "-c", "from rlhf_lightning.labeling.web.command import main; main()"]


class Server:
    def __init__(self, folder):
        self.folder, self.store = folder, LabelStore(folder / "labels.sqlite")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.base = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.process = None

    def start(self):
        port = self.base.rpartition(":")[2]
        command = [*COMMAND, str(self.folder), "--no-browser", "--port", port]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.1)
        raise TimeoutError

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
