"""The parts of the comparison: which processes of an installation are started, and which of them are charged.

Touches loopback ports and work folders under bench/.work/, through bench.running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.balance import proxies
from bench.balance.proxies import launch
from bench.cost.installation import Installation
from bench.cpu import JoinedTree, Tree, answering
from bench.load import Target
from bench.running import READY_SECONDS, Running
from bench.servers import PROJECT, Contender, Setup, twofold_command
from bench.workloads import Body, padded

ECHO = PROJECT / "examples" / "echo"  # the same model for both
CONSTANT = {"rows": 0}  # what bench.balance.constant answers

Both = tuple[Installation, Installation]  # this checkout, the other commit


@dataclass(frozen=True)
class Way:
    """How an installation's commands are run: as they are, or wrapped into another program."""

    wrap: Callable[[list[str]], list[str]] = list
    variables: Mapping[str, str] = field(default_factory=dict)
    instance: tuple[str, ...] = ()  # more options of `twofold serve`; the last of two equal ones holds
    ready_s: float = READY_SECONDS
    look_s: float = 0.1  # between two looks whether it answers


@dataclass(frozen=True)
class Side:
    """One installation in one part: what is asked, and the processes that are charged for the answer."""

    installation: Installation
    asked: Running
    tree: Tree
    instance: Running | None  # the one that is started, if any

    def workers(self) -> list[int]:
        """Pids whose work goes by requests: not the supervisors and the controller, which go by the clock.

        Those are the processes that hold a connection to the client, and an instance's children.
        """
        found = answering(self.asked.tree, self.asked.port)
        if self.instance is not None:
            found |= {member.pid for member in self.instance.tree.members()}
            found.discard(self.instance.process.pid)
        return sorted(found)

    def target(self, body: Path) -> Target:
        return Target(self.asked.port, "/predict", body)


@dataclass(frozen=True)
class Launcher:
    """Starts an installation's processes; they end with `stack`."""

    stack: contextlib.ExitStack
    way: Way
    body: Body

    def wait(self, running: Running) -> None:
        """Raises Unavailable where the right answer does not come."""
        running.wait(self.body, every=self.way.look_s, within=self.way.ready_s)

    def origin(self) -> str:
        """The upstream that both load balancers share; it is charged to neither."""
        running = launch(self.stack, proxies.module("constant", "constant", unix=True))
        running.wait(self.body)
        return f"127.0.0.1:{running.port}"

    def instance(self, of: Installation) -> Running:
        return self._launch("instance", of, twofold_command(*self.way.instance, program=of.twofold), ECHO)

    def balancer(self, of: Installation, upstream: str, *options: str) -> Running:
        make = proxies.ours(*proxies.METERED, *options, program=of.twofold)
        return self._launch("balancer", of, lambda setup: make(setup, (upstream,), ""))

    def _launch(
        self,
        role: str,
        of: Installation,
        command: Callable[[Setup], list[str]],
        artifact: Path | None = None,
    ) -> Running:
        name = f"{role}-{of.name}"
        variables = {**of.variables, **self.way.variables}
        contender = Contender(name, name, lambda setup: self.way.wrap(command(setup)), variables=variables)
        return launch(self.stack, contender, artifact)


@dataclass(frozen=True)
class Part:
    """`start` gets the shared upstream, which is empty where there is none."""

    name: str
    title: str
    start: Callable[[Launcher, Installation, str], Side]
    constant: bool = False  # before a shared origin with a constant answer

    def body(self, size: int) -> Body:
        found = padded(f"{size} bytes", size)
        return Body(found.name, found.content, CONSTANT) if self.constant else found


def predict(launcher: Launcher, of: Installation, _: str) -> Side:
    running = launcher.instance(of)
    return Side(of, running, running.tree, running)


def proxy(launcher: Launcher, of: Installation, upstream: str) -> Side:
    running = launcher.balancer(of, upstream, *proxies.TCP)
    return Side(of, running, running.tree, None)


def proxied_predict(launcher: Launcher, of: Installation, _: str) -> Side:
    behind = launcher.instance(of)
    launcher.wait(behind)  # then its Unix socket is announced, which the load balancer prefers
    running = launcher.balancer(of, f"127.0.0.1:{behind.port}")
    return Side(of, running, JoinedTree(running.process.pid, behind.tree), behind)


PARTS = {
    part.name: part
    for part in (
        Part("predict", "an instance alone, TCP", predict),
        Part("proxy", "the load balancer before a constant answer, TCP", proxy, constant=True),
        Part("proxied-predict", "the load balancer and an instance, over its Unix socket", proxied_predict),
    )
}


@contextlib.contextmanager
def started(part: Part, both: Both, way: Way, body: Body) -> Iterator[list[Side]]:
    """Both sides side by side, once they answer rightly; raises Unavailable where one does not."""
    with contextlib.ExitStack() as stack:
        launcher = Launcher(stack, way, body)
        upstream = launcher.origin() if part.constant else ""
        sides = [part.start(launcher, one, upstream) for one in both]
        for side in sides:
            launcher.wait(side.asked)
        yield sides
