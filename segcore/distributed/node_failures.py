"""Which nodes of a cluster work: failures are counted by node, and a bad node is taken out.

A node whose disk, network, driver or installation is broken fails unit after unit while all others
work. It is taken out of the pool, and its units are done elsewhere. Where nothing works anywhere,
that is an outage, and the run ends. Where the units run out before there is that much evidence, the
little that there is must do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from segcore.text import plural

MAX_CONSECUTIVE_FAILURES = 20  # units that fail on a node without one success between
MAX_CONSECUTIVE_DEATHS = 6  # processes of a node that die without a committed unit between
SETUP_FAILURE_WEIGHT = 5  # a worker that cannot be set up says more than a unit that fails
_MIN_EVIDENCE = 3  # failures in a row by which a node counts as failing when others do, too
_MIN_OUTAGE_NODES = 3  # failing nodes that show an outage, once all at work fail
_MAX_DEATHS_ELSEWHERE = 1  # more: images kill processes, not the node


class Verdict(Enum):
    """What a failure means for the run."""

    GO_ON = auto()
    TAKE_NODE_OUT = auto()
    STOP = auto()


@dataclass(frozen=True)
class ClusterView:
    """The nodes at one moment, by their ids.

    Attributes:
        able: Live nodes with room for an actor.
        at_work: Live nodes that have actors.
    """

    able: frozenset[str]
    at_work: frozenset[str]


class NodeFailures:
    """Counts failures by node, over all passes of a run.

    Args:
        view: Shows the cluster as it is now; asked only when it matters.

    Attributes:
        taken_out: Node id -> the error for which it was taken out.
    """

    def __init__(self, view: Callable[[], ClusterView], taken_out: dict[str, str]) -> None:
        self._view = view
        self.taken_out = taken_out
        self._streaks: Counter[str] = Counter()  # node -> failures since its last success
        self._failing: Counter[str] = Counter()  # the same since the last success anywhere
        self._errors: dict[str, str] = {}  # node -> its last failure

    @property
    def n_consecutive(self) -> int:
        """Failures since the last success on any node."""
        return self._failing.total()

    @property
    def n_failing_nodes(self) -> int:
        """Nodes that have failed since the last success on any node."""
        return len(self._failing)

    def record_success(self, node: str) -> None:
        """A unit was committed on this node."""
        self._streaks.pop(node, None)
        self._failing.clear()

    def record_setup_failure(self, node: str, error: str) -> Verdict:
        """A worker could not be set up on this node."""
        if not self._view().able - self.taken_out.keys() - {node}:
            return Verdict.STOP
        return self.record_failure(node, error, SETUP_FAILURE_WEIGHT)

    def record_failure(self, node: str, error: str, weight: int = 1) -> Verdict:
        """A unit failed on this node, and the unit may not be to blame."""
        if node in self.taken_out:  # it ends what it had begun
            return Verdict.GO_ON
        self._streaks[node] += weight
        self._failing[node] += weight
        self._errors[node] = error
        is_bad = self._streaks[node] >= MAX_CONSECUTIVE_FAILURES
        if not is_bad and self.n_consecutive < MAX_CONSECUTIVE_FAILURES:
            return Verdict.GO_ON
        view = self._view()
        others = view.able - self.taken_out.keys() - {node}
        if (is_bad and not others) or self._is_outage(view, others):
            return Verdict.STOP
        if not is_bad:
            return Verdict.GO_ON
        return self._take_out(node, error)

    def take_out_at_end(self) -> list[str]:
        """Take nodes out that failed in a row while others worked, once there are no units left.

        Failures since the last success anywhere do not count: they may be the begin of an outage.

        Returns:
            Their ids.
        """
        failing = [
            node
            for node, count in self._streaks.items()
            if node not in self.taken_out and count - self._failing[node] >= _MIN_EVIDENCE
        ]
        if not failing or not self._view().able - self.taken_out.keys() - set(failing):
            return []
        for node in failing:
            self._take_out(node, self._errors[node])
        return failing

    def record_deaths(self, deaths: Mapping[str, int]) -> tuple[Verdict, str]:
        """Take a node out whose processes die while those of other nodes live.

        Never ends a run: images that kill processes are dealt with one by one.

        Args:
            deaths: Node -> processes that died on it since it committed a unit.

        Returns:
            The verdict, and the node that it is about.
        """
        known = {node: count for node, count in deaths.items() if node not in self.taken_out}
        for node, count in known.items():
            elsewhere = max((n for other, n in known.items() if other != node), default=0)
            if count < MAX_CONSECUTIVE_DEATHS or elsewhere > _MAX_DEATHS_ELSEWHERE:
                continue
            if self._view().able - self.taken_out.keys() - {node}:
                error = f"{plural(count, 'process', 'processes')} died in a row"
                return self._take_out(node, error), node
        return Verdict.GO_ON, ""

    def _take_out(self, node: str, error: str) -> Verdict:
        self.taken_out[node] = error
        return Verdict.TAKE_NODE_OUT

    def _is_outage(self, view: ClusterView, others: frozenset[str]) -> bool:
        """Whether nothing works anywhere: all nodes at work fail, and they are more than one."""
        failing = {node for node, count in self._failing.items() if count >= _MIN_EVIDENCE}
        if not view.at_work - self.taken_out.keys() <= failing:
            return False
        return len(failing) >= min(_MIN_OUTAGE_NODES, len(others) + 1 + len(self.taken_out))
