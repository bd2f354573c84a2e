"""The peer of the artifact stream: Debian's nginx over TLS, curl, sha256sum."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_fleet.processes import Process, free_port, wait_until

CONFIGURATION = """\
daemon off;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {directory}/leaf.pem;
        ssl_certificate_key {directory}/leaf.key;
        root {directory}/files;
    }}
}}
"""


def missing() -> str:
    """Return the name of a tool that this machine lacks, else an empty string."""
    tools = ("nginx", "curl", "sha256sum", "openssl")
    return ", ".join(tool for tool in tools if shutil.which(tool) is None)


@contextmanager
def serving(directory: Path, file: Path) -> Iterator[str]:
    """Serve ``file`` by nginx over TLS with a P-256 certificate; yield its URL."""
    (directory / "files").mkdir(parents=True)
    (directory / "files" / file.name).hardlink_to(file)
    port = free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-keyout", str(directory / "leaf.key"), "-out", str(directory / "leaf.pem")),
        ],
        check=True,
        capture_output=True,
    )
    # As root, nginx would run its worker as user `nobody`, which cannot read our directory.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = directory / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=directory, port=port, user=user))
    server = Process(["nginx", "-c", str(configuration)], directory / "nginx.log")
    server.start()
    try:
        url = f"https://127.0.0.1:{port}/{file.name}"
        probe = ["curl", "--silent", "--insecure", "--head", "--fail", url]
        wait_until("nginx", lambda: subprocess.call(probe, stdout=subprocess.DEVNULL) == 0)
        yield url
    finally:
        server.stop()


def seconds_to_fetch(url: str) -> float:
    """Return the wall seconds of one `curl | sha256sum`."""
    began = time.perf_counter()
    curl = subprocess.Popen(["curl", "--silent", "--insecure", url], stdout=subprocess.PIPE)
    subprocess.run(["sha256sum"], stdin=curl.stdout, check=True, capture_output=True)
    if curl.wait() != 0:
        raise subprocess.CalledProcessError(curl.returncode, "curl")
    return time.perf_counter() - began
