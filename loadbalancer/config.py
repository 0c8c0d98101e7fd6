"""Every setting of the load balancer: its default, unit, limits and meaning, in one place.

A setting has one name, written three ways: `bandwidth_mbps: 20` in the settings file,
TWOFOLD_BALANCE_BANDWIDTH_MBPS in the environment, `--bandwidth-mbps 20` on the command line.  The
later of these wins; the defaults come before all.  The command line and its help are made from the
groups below.  Reads the settings file, and looks at whether files that settings name can be read.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twofold.errors import ConfigError, TwofoldError
from twofold.net import address
from twofold.settings import Catalogue, Checked, apart, fault, setting

LEAST_MBPS = 0.001
MAX_PROXIES = 15  # per generation; the shared memory has blocks for two, and one for the log writer
FILES = (
    "upstream_file",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "bearer_token_file",
    "signature_keys",
)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PATH = re.compile(r"/[!-~]*")


def _listening(text: str) -> str:
    return "" if address.listening(text) else "HOST:PORT or unix:/PATH"


def _tcp(text: str) -> str:
    return "" if address.tcp(text) else "HOST:PORT"


def _upstream(text: str) -> str:
    return "" if address.upstream(text) else "http://HOST:PORT, unix:/PATH or dns+http://NAME:PORT"


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return "an address or a network such as 10.0.0.0/8"
    return ""


def _header(text: str) -> str:
    return "" if _TOKEN.fullmatch(text) else "the name of a header"


def _path(text: str) -> str:
    return "" if _PATH.fullmatch(text) else "a path such as /health"


@dataclass(frozen=True, slots=True)
class ListenSettings(Checked):
    """Listening addresses."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",), "where to listen: HOST:PORT or unix:/PATH; may be repeated", form=_listening
    )
    proxies: int = setting(1, "proxy processes, which share one bandwidth", low=1, high=MAX_PROXIES)
    backlog: int = setting(4096, "connections the kernel keeps waiting to be accepted", low=1, high=65535)
    tls_certificate: str = setting("", "PEM file with the certificate chain; empty speaks plain HTTP")
    tls_key: str = setting("", "PEM file with its key; empty looks in the certificate's file")
    tls_client_ca: str = setting("", "PEM file with the authorities whose client certificates are required")
    proxy_protocol: str = setting(
        "off", "PROXY protocol that trusted proxies begin with", among=("off", "v1v2")
    )


@dataclass(frozen=True, slots=True)
class PoolSettings(Checked):
    """The instances and their selection."""

    upstream: tuple[str, ...] = setting(
        (), "where an instance is: http://HOST:PORT, unix:/PATH or dns+http://NAME:PORT; may be repeated",
        form=_upstream,
    )  # fmt: skip
    upstream_file: str = setting("", "file with one instance a line, or a YAML list; it is watched")
    unix: bool = setting(True, "ask instances of ours at loopback addresses over their Unix sockets")
    resolve_interval: float = setting(5.0, "seconds between looks at the names of dns+http", low=0.1)
    credits: int = setting(0, "requests an instance is given at once; 0 finds that out", high=256)
    retry: str = setting("once", "ask another instance when one cannot have begun", among=("once", "never"))
    panic_percent: int = setting(50, "below this share of healthy instances, all are asked", high=100)
    slow_start: float = setting(5.0, "seconds in which an instance that came back gets its full share")
    probe_interval: float = setting(1.0, "seconds between two health probes of an instance", low=0.05)
    probe_timeout: float = setting(0.5, "seconds that a health probe may take", low=0.01)
    probe_path: str = setting("/health", "path of the health probe", form=_path)
    proxy_protocol_out: str = setting(
        "off", "PROXY protocol that instances are told the client by", among=("off", "v1", "v2")
    )


@dataclass(frozen=True, slots=True)
class BandwidthSettings(Checked):
    """Limits of bandwidth and request rates."""

    bandwidth_mbps: float = setting(10.0, "10^6 bit/s, both directions together; 0 is unlimited", high=1e6)
    maximum_bandwidth_mbps: float = setting(
        0.0, "raise up to this under load, at most twice bandwidth_mbps; 0 never raises", high=2e6
    )
    delay_budget: float = setting(1.0, "seconds that a request may be held back before it gets 429")
    accounting: str = setting(
        "http", "what is counted: HTTP bytes, or with TCP/IP headers", among=("http", "wire")
    )
    requests_per_second: float = setting(0.0, "requests/s of all callers; 0 is unlimited", high=1e9)
    caller_bandwidth_mbps: float = setting(0.0, "10^6 bit/s of one caller; 0 is unlimited", high=1e6)
    caller_requests_per_second: float = setting(0.0, "requests/s of one caller; 0 is unlimited", high=1e9)
    caller_header: str = setting(
        "", "header that tells callers apart; empty is the client's address", form=_header
    )


@dataclass(frozen=True, slots=True)
class QueueSettings(Checked):
    """Requests that wait for an instance."""

    queue_size: int = setting(1024, "requests that may wait for an instance", high=65536)
    queue_mb: float = setting(64.0, "MB of bodies that may wait", high=65536)
    queue_wait: float = setting(1.0, "seconds that a request may wait; beyond that, 503")


@dataclass(frozen=True, slots=True)
class TimeoutSettings(Checked):
    """Timeouts, in seconds."""

    connect_timeout: float = setting(1.0, "seconds in which an instance must accept", low=0.001)
    head_timeout: float = setting(10.0, "seconds in which a request's head must arrive", low=0.001)
    body_timeout: float = setting(10.0, "seconds of silence allowed within a body or an answer", low=0.001)
    predict_timeout: float = setting(60.0, "seconds from a request's head to its answer", low=0.001)
    idle_timeout: float = setting(75.0, "seconds that an idle client's connection stays open", low=0.001)
    upstream_idle: float = setting(60.0, "seconds that an idle connection to an instance is kept", low=0.001)
    drain_timeout: float = setting(30.0, "seconds that requests in flight may take when stopping")


@dataclass(frozen=True, slots=True)
class LimitSettings(Checked):
    """Limits of a client's resources."""

    max_body_mb: float = setting(10.0, "largest request body, in MB", low=0.001, high=1024)
    max_connections: int = setting(20000, "clients' connections to one proxy", low=1, high=1_000_000)


@dataclass(frozen=True, slots=True)
class AccessSettings(Checked):
    """Access control, and trusted peers."""

    allow: tuple[str, ...] = setting((), "addresses or networks let in; none is everybody", form=_network)
    trusted_proxies: tuple[str, ...] = setting(
        (), "whose X-Forwarded fields and PROXY lines are believed", form=_network
    )
    bearer_token_file: str = setting("", "file with a token that requests must bear; empty asks for none")
    signature_keys: str = setting("", "file with public keys that requests must be signed for (OCI style)")


@dataclass(frozen=True, slots=True)
class ControlSettings(Checked):
    """The admin API and the status page."""

    admin_socket: str = setting("", "Unix socket of the admin API; empty is a folder of your own")
    status: str = setting("", "HOST:PORT of the status page and the metrics; empty is none", form=_tcp)


@dataclass(frozen=True, slots=True)
class LogSettings(Checked):
    """The access log."""

    log_dir: str = setting("", "folder for access.log; empty is standard output")
    access_log: bool = setting(True, "one record for each request")
    log_max_mb: float = setting(100.0, "size in MB at which a log file is rotated", low=0.001)
    log_keep: int = setting(5, "rotated files kept of each log", high=1000)
    deployment_id: str = setting("", "`source` of the log records; empty is twofold")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `sources`: the origin of each value, by setting."""

    listen: ListenSettings = field(default_factory=ListenSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    bandwidth: BandwidthSettings = field(default_factory=BandwidthSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    log: LogSettings = field(default_factory=LogSettings)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def admin_path(self) -> Path:
        """The path of the admin socket; its folder may not exist yet."""
        chosen = self.control.admin_socket
        return Path(chosen).expanduser().absolute() if chosen else default_admin_path(os.environ)


def default_admin_path(environ: Mapping[str, str]) -> Path:
    """The socket's path in a private folder: of this user's session, or in /tmp with the user's id."""
    session = Path(environ.get("XDG_RUNTIME_DIR", ""))
    # The XDG Base Directory Specification requires that a relative path is ignored.
    if session.is_absolute():
        return session / "twofold-balance" / "admin.sock"
    return Path(f"/tmp/twofold-balance-{os.getuid()}/admin.sock")


CATALOGUE = Catalogue(
    Config,
    prefix="TWOFOLD_BALANCE_",
    listing="twofold balance --help",
    example="bandwidth_mbps: 20",
    apart=apart("TWOFOLD_BALANCE_", "HANDOVER=.*"),
)


def load(file: Path | None, environ: Mapping[str, str], options: Mapping[str, object]) -> Config:
    """Load and check the settings. Raises TwofoldError, also for contradictions and unreadable files."""
    made = CATALOGUE.load(file, environ, options)
    for name, complaint, remedy in _contradictions(made):
        raise _fault(made, name, complaint, remedy)
    for name, value, _, _ in CATALOGUE.listed(made):
        if name in FILES and value and (why := _unreadable(Path(str(value)))):
            place = made.sources.get(name, name)
            raise ConfigError(f"{name}: {value} {why}", "it must be a file that this user may read", place)
    return made


def _fault(config: Config, name: str, complaint: str, remedy: str) -> TwofoldError:
    return fault(config.sources.get(name, name), complaint, remedy)


def _contradictions(config: Config) -> Iterable[tuple[str, str, str]]:
    """(setting, complaint, remedy) of settings that contradict each other."""
    band, listen = config.bandwidth, config.listen
    low, high = band.bandwidth_mbps, band.maximum_bandwidth_mbps
    if high and not low < high <= 2 * low:
        yield (
            "maximum_bandwidth_mbps", f"maximum_bandwidth_mbps must be above {low:g} and at most {2 * low:g}",
            "it is at most twice bandwidth_mbps",
        )  # fmt: skip
    for name, mbps in (("bandwidth_mbps", low), ("caller_bandwidth_mbps", band.caller_bandwidth_mbps)):
        if 0 < mbps < LEAST_MBPS:
            yield name, f"{name} is too little to pass anything", f"{LEAST_MBPS:g} at least, or 0: unlimited"
    for name in ("tls_key", "tls_client_ca"):
        if getattr(listen, name) and not listen.tls_certificate:
            yield name, f"{name} needs tls_certificate", "set both"
    if not listen.listen:
        yield "listen", "listen must name an address", "write HOST:PORT or unix:/PATH"
    for text in listen.listen:
        if listen.listen.count(text) > 1:
            yield "listen", f"listen has {text} twice", "leave one out"
    if config.control.status in listen.listen:
        yield "status", "status is an address of listen, too", "give it another port"
    if not config.pool.upstream and not config.pool.upstream_file:
        yield "upstream", "no instance is named", "name one with --upstream http://HOST:PORT"


def _unreadable(path: Path) -> str:
    """The reason why the file cannot be read, or ""."""
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is no file"
    return "" if os.access(path, os.R_OK) else "may not be read by this user"
