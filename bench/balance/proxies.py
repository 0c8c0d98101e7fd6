"""The proxies under test: how each is told the same thing, with access log and metrics on.

nginx and HAProxy come from Debian; where one is missing it is skipped, with its reason.  Each writes
its access log as it does by default: nginx one line per write (and once more with its buffer, as a
careful operator would set it), HAProxy datagrams to a syslog socket, ours through its log writer.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.environments import Unavailable
from bench.running import LOG_TAIL, READY_SECONDS, Running, free_port, post, start
from bench.servers import PROJECT, REPLICAS, TWOFOLD, Contender, Setup

PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "tc": "iproute2", "unshare": "util-linux"}
MODEL = "rows"  # only names a work folder here


@dataclass(frozen=True)
class Proxy:
    """One way to run one proxy. `policy` is how it chooses an instance, in its own words."""

    name: str
    title: str
    make: Callable[[Setup, tuple[str, ...], str], list[str]]
    policy: str = ""

    def before(self, *upstreams: str) -> Contender:
        """Upstreams are `127.0.0.1:9001` or `unix:/path`."""

        def command(setup: Setup) -> list[str]:
            return self.make(setup, upstreams, self.policy)

        return Contender(self.name, self.title, command)


def program(name: str) -> str:
    """Its path; raises Unavailable, which names the Debian package."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{name} is not installed: apt-get install {PACKAGES[name]}")
    return path


# ---------------------------------------------------------------------- ours


def ours(*options: str, program: Path = TWOFOLD) -> Callable[[Setup, tuple[str, ...], str], list[str]]:
    """`program` is the console script of one installation."""

    def make(setup: Setup, upstreams: tuple[str, ...], _policy: str) -> list[str]:
        line = [str(program), "balance", "--listen", f"127.0.0.1:{setup.port}"]
        for one in upstreams:
            line += ["--upstream", one if one.startswith("unix:") else f"http://{one}"]
        line += ["--log-dir", str(setup.work / "logs"), "--admin-socket", str(admin_socket(setup.work))]
        return [*line, "--status", f"127.0.0.1:{free_port()}", *options]

    return make


def admin_socket(work: Path) -> Path:
    return work / "admin" / "admin.sock"


# ---------------------------------------------------------------------- nginx

NGINX = """
daemon off; {user} worker_processes 1; worker_rlimit_nofile 20000; pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 8000; }}
http {{
    access_log {work}/access.log combined{buffer};
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    client_body_buffer_size 128k; client_max_body_size 10m;
    keepalive_timeout 75; keepalive_requests 1000000000;
    upstream pool {{ {policy} {servers} keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /nginx_status {{ stub_status; access_log off; }}
        location / {{
            proxy_pass http://pool; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


def nginx(buffer: str = "") -> Callable[[Setup, tuple[str, ...], str], list[str]]:
    def make(setup: Setup, upstreams: tuple[str, ...], policy: str) -> list[str]:
        path = setup.work / "nginx.conf"
        path.write_text(
            NGINX.format(
                work=setup.work,
                user="user root;" if os.getuid() == 0 else "",
                buffer=buffer,
                policy=policy,
                servers=" ".join(f"server {one};" for one in upstreams),
                port=setup.port,
            )
        )
        return [program("nginx"), "-c", str(path), "-e", str(setup.work / "error.log")]

    return make


# ---------------------------------------------------------------------- HAProxy

HAPROXY = """
global
    nbthread 1
    maxconn 8000
    log {work}/syslog local0
defaults
    mode http
    log global
    option httplog
    option forwardfor
    option http-keep-alive
    {options}
    http-reuse always
    timeout connect 5s
    timeout client 75s
    timeout server 60s
    timeout queue 60s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    http-request use-service prometheus-exporter if {{ path /metrics }}
    default_backend pool
backend pool
    balance leastconn
{servers}
"""


def haproxy(options: str = "") -> Callable[[Setup, tuple[str, ...], str], list[str]]:
    def make(setup: Setup, upstreams: tuple[str, ...], policy: str) -> list[str]:
        servers = "\n".join(
            f"    server s{number} {one.replace('unix:', 'unix@')} {policy}"
            for number, one in enumerate(upstreams)
        )
        path = setup.work / "haproxy.cfg"
        path.write_text(HAPROXY.format(work=setup.work, port=setup.port, servers=servers, options=options))
        return [program("haproxy"), "-db", "-f", str(path)]

    return make


@contextlib.contextmanager
def syslog(work: Path) -> Iterator[None]:
    """A sink for HAProxy's log at `work`/syslog: what reads it is not charged to HAProxy."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink:
        sink.bind(str(work / "syslog"))
        sink.settimeout(0.2)
        over = threading.Event()

        def drain() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    sink.recv(65536)

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()


UNLIMITED = ("--bandwidth-mbps", "0")
METERED = ("--bandwidth-mbps", "100000")  # every message is counted, and none waits
BUFFERED = " buffer=64k flush=1s"

TCP = ("--no-unix",)  # as all others ask the instance

OURS = Proxy("ours", "twofold balance", ours(*METERED, *TCP))
OURS_UNLIMITED = Proxy("ours-unlimited", "twofold balance, no bandwidth set", ours(*UNLIMITED, *TCP))
OURS_LOCAL = Proxy("ours-local", "twofold balance, instance's Unix socket (its default)", ours(*METERED))
NGINX_PLAIN = Proxy("nginx", "nginx, 1 worker", nginx(), "least_conn;")
NGINX_BUFFERED = Proxy("nginx-buffered", "nginx, 1 worker, buffered log", nginx(BUFFERED), "least_conn;")
NGINX_BLIND = Proxy("nginx-rr", "nginx, round robin", nginx(BUFFERED))
HAPROXY_PLAIN = Proxy("haproxy", "HAProxy, 1 thread", haproxy())
HAPROXY_QUEUE = Proxy("haproxy-queue", "HAProxy, maxconn and its queue", haproxy(), f"maxconn {REPLICAS}")
# Without it HAProxy waits for more of an answer before it sends, up to 200 ms.
HAPROXY_PROMPT = Proxy("haproxy", "HAProxy, http-no-delay", haproxy("option http-no-delay"))


def limited(mbps: float, *options: str) -> Proxy:
    """Ours, with that bandwidth."""
    return Proxy("ours", "twofold balance", ours("--bandwidth-mbps", f"{mbps:g}", *options))


# ---------------------------------------------------------------------- starting


def module(name: str, title: str, *arguments: str, unix: bool = False) -> Contender:
    """A backend of this package, as a process of its own."""

    def command(setup: Setup) -> list[str]:
        line = [sys.executable, "-m", f"bench.balance.{name}", "--port", str(setup.port), *arguments]
        return [*line, "--unix", str(setup.work / "socket")] if unix else line

    return Contender(title, title, command, variables={"PYTHONPATH": str(PROJECT)})


def launch(stack: contextlib.ExitStack, contender: Contender, artifact: Path | None = None) -> Running:
    """Started, and ended with `stack`; raises Unavailable. It may not accept yet."""
    running = start(contender, MODEL, artifact)
    stack.callback(running.stop)
    if contender.name.startswith("haproxy"):
        stack.enter_context(syslog(running.work))
    return running


def ready(running: Running) -> Running:
    """Once it answers a POST with 200; raises Unavailable if it never does."""
    deadline, why = time.monotonic() + READY_SECONDS, "it has ended"
    while running.process.poll() is None and time.monotonic() < deadline:
        try:
            status, _ = post(running.port, "/predict", b"1")
            if status == 200:
                return running
            why = f"status {status}"
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        time.sleep(0.1)
    said = (running.work / "output").read_text(errors="replace")[-LOG_TAIL:].strip()
    raise Unavailable(f"{running.contender.name} did not start ({why}): {said}")
