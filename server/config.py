"""The settings of an instance: default, unit, limits and meaning of each.

Touches nothing.  A setting has one name in three notations: `port: 8080` in the settings file, TWOFOLD_PORT
in the environment, `--port` on the command line.  A later source has priority over an earlier one.  The
fields of the four groups below are the only declaration of a setting: the command line, its help and the
table of `twofold settings` are made from them.  twofold.settings finds and checks the values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twofold.net.address import MAX_UNIX_PATH
from twofold.settings import Catalogue, Checked, apart, setting

AUTO, NONE = "auto", "none"


def _socket(text: str) -> str:
    fits = text in (AUTO, NONE) or (text.startswith("/") and len(text.encode()) <= MAX_UNIX_PATH)
    return "" if fits else f"auto, none, or a path from / on of at most {MAX_UNIX_PATH} bytes"


@dataclass(frozen=True, slots=True)
class HttpSettings(Checked):
    """The listening address, and the limits of a connection."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for every one")
    port: int = setting(8080, "port to listen on; 0 takes any free one", high=65535)
    socket: str = setting(
        AUTO,
        "where to listen for this machine as well: /PATH, auto (a Unix socket without a path) or none",
        form=_socket,
    )
    fronts: int = setting(0, "front processes; 0 is one for every 8 replicas", high=31)
    backlog: int = setting(4096, "connections the kernel keeps waiting to be accepted", low=1, high=65535)
    max_body_mb: float = setting(10.0, "largest request body, in MB", low=0.001, high=1024)
    max_answer_mb: float = setting(20.0, "largest answer, in MB", low=0.001, high=1024)
    queue_size: int = setting(1024, "requests in the instance at once; beyond that, 503", low=1, high=2048)
    head_timeout: float = setting(10.0, "seconds in which a request's head must arrive", low=0.001)
    body_timeout: float = setting(30.0, "seconds of silence allowed within a body or an answer", low=0.001)
    idle_timeout: float = setting(75.0, "seconds that an idle connection stays open", low=0.001)
    drain_timeout: float = setting(30.0, "seconds that requests in flight may take when stopping")
    drain_grace: float = setting(0.2, "seconds between reporting unready and closing the port when stopping")
    root_ocid: str = setting("", "deployment id in /ID/predict; empty accepts any")


@dataclass(frozen=True, slots=True)
class ReplicaSettings(Checked):
    """The number of replicas, their start, and the handling of failures."""

    replicas: int = setting(0, "copies of the model; 0 is two for each OCPU, or one for each GPU", high=192)
    ocpus: float = setting(0.0, "OCPUs (two hardware threads each) to plan for; 0 measures them", high=2048)
    preload: str = setting(
        "none",
        "what replicas share by forking: nothing, imports, or the loaded model",
        among=("none", "imports", "model"),
    )
    replay: str = setting("once", "offer a request again when its replica died", among=("once", "never"))
    spare: int = setting(0, "loaded replicas standing by for a crash", high=64)
    # A completion has 32 bits for microseconds, which is 4294 seconds.
    predict_timeout: float = setting(
        60.0, "seconds from a request's admission to its answer", low=0.001, high=3600
    )
    load_timeout: float = setting(600.0, "seconds that importing and loading the model may take", low=0.001)
    threads: int = setting(0, "threads of numerical libraries per replica; 0 shares out the cores", high=4096)
    sample: str = setting("", "path of a sample request; empty is the artifact's sample.json, if any")
    quarantine_seconds: float = setting(60.0, "seconds for which a body that killed two replicas is refused")
    quarantine_dir: str = setting("", "folder that keeps such bodies; empty is CACHE_DIR/quarantine")
    quarantine_mb: float = setting(64.0, "most MB of such bodies kept; 0 keeps none")


@dataclass(frozen=True, slots=True)
class EnvironmentSettings(Checked):
    """The interpreter that runs the model."""

    env: str = setting(
        "", "conda-pack archive (path or URL), unpacked folder or interpreter; instead of runtime.yaml's"
    )
    default_python: str = setting("", "interpreter when nothing names one; empty is the server's own")
    cache_dir: str = setting("", "folder for unpacked environments; empty is ~/.cache/twofold")
    oci_root: str = setting("", "local folder that stands for oci://BUCKET@NAMESPACE/, as FOLDER/BUCKET/")


@dataclass(frozen=True, slots=True)
class LogSettings(Checked):
    """The access log, and the log of the model's output."""

    log_dir: str = setting("", "folder for access.log and predict.log; empty is standard output")
    access_log: bool = setting(True, "one record for each request")
    predict_log: bool = setting(True, "one record for each line that the model prints or logs")
    log_max_mb: float = setting(100.0, "size in MB at which a log file is rotated", low=0.001)
    log_keep: int = setting(5, "rotated files kept of each log", high=1000)
    deployment_id: str = setting("", "`source` of the log records; empty is twofold")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of an instance. `sources`: where the value of each setting came from."""

    artifact: str = ""
    http: HttpSettings = field(default_factory=HttpSettings)
    replicas: ReplicaSettings = field(default_factory=ReplicaSettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    log: LogSettings = field(default_factory=LogSettings)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def cache_folder(self) -> Path:
        """The folder of unpacked artifacts and environments; it may not exist yet."""
        return cache_folder(self.environment)

    def quarantine_folder(self) -> Path:
        """The folder of quarantined bodies; it may not exist yet."""
        chosen = self.replicas.quarantine_dir
        return Path(chosen).expanduser() if chosen else self.cache_folder() / "quarantine"


def cache_folder(settings: EnvironmentSettings) -> Path:
    """`cache_dir`, or the folder of the XDG base directory specification."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification says to ignore a relative path.
    return (cache if cache.is_absolute() else Path("~/.cache").expanduser()) / "twofold"


CATALOGUE = Catalogue(
    Config,
    prefix="TWOFOLD_",
    listing="twofold settings",
    example="port: 8080",
    # Variables with other readers: embedded instances, replicas, the load balancer, the compiled form.
    apart=apart("TWOFOLD_", "EMBEDDER_CONFIG=.*", "REPLICA=.*", "BALANCE_.*", "INTERPRETED=.*"),
    free=("artifact",),
    weaker={"WEB_CONCURRENCY": "replicas"},  # variable of the deployment service
)


def load(
    artifact: str, file: Path | None, environ: Mapping[str, str], options: Mapping[str, object]
) -> Config:
    """As Catalogue.load; `artifact` is the argument of the command line, or empty. Raises as it does."""
    return CATALOGUE.load(file, environ, options, [("artifact", artifact, "ARTIFACT")] if artifact else ())
