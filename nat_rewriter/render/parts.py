"""Which parts of the table a policy asks for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nat_rewriter.model.policy import Coexist, Guard, Policy, Timeouts


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the table, as the template asks for them.

    ``spill``: a port that is taken may move to another range of its slice, because its own range may be full.
    """

    guard: bool
    guard_drops: bool
    confine: bool
    refuse: bool
    spill: bool
    split: bool
    timeouts: Timeouts | None
    local_mark: int

    @classmethod
    def of(cls, policy: Policy) -> Parts:
        """Return the parts that the settings of a policy ask for."""
        controller = policy.controller
        coexist = controller.coexist
        return cls(
            guard=controller.guard is not Guard.OFF,
            guard_drops=controller.guard is Guard.DROP,
            # Behind refuse and split too: where a claim is missing, a port is moved inside its slice and never leaks.
            confine=coexist is not Coexist.OFF,
            refuse=coexist is Coexist.REFUSE,
            spill=coexist in (Coexist.CONFINE, Coexist.REFUSE)
            and any(len(owned.ranges) > 1 for owned in policy.slices),
            split=coexist is Coexist.SPLIT,
            # A claim lives exactly as long as its conntrack entry only where natctl knows how long that is.
            timeouts=controller.timeouts or (Timeouts() if coexist is Coexist.REFUSE else None),
            local_mark=controller.local_mark,
        )

    @property
    def claims(self) -> bool:
        """Whether the tuples of rewritten flows are recorded."""
        return self.refuse or self.spill

    @property
    def settles(self) -> bool:
        """Whether the guard lets established flows pass once none is left that it would drop.

        A guard that only counts lets flows begin outside the slices, so it has to count all their packets.
        """
        return self.guard_drops

    @property
    def soft(self) -> bool:
        """Whether anything asks which addresses are soft-unicast."""
        return self.guard or self.confine or self.claims or self.timeouts is not None or self.local_mark != 0

    @property
    def claim_times(self) -> Timeouts:
        """How long a claim lives after a packet, by state."""
        return self.timeouts or Timeouts()

    @property
    def tcp_lifetimes(self) -> list[int]:
        """The seconds that a TCP entry may have left after a packet, longest first."""
        return self._lifetimes("tcp_")

    @property
    def udp_lifetimes(self) -> list[int]:
        """The seconds that a UDP entry may have left after a packet, longest first."""
        return self._lifetimes("udp_")

    def _lifetimes(self, prefix: str) -> list[int]:
        seconds = {value for name, value in asdict(self.claim_times).items() if name.startswith(prefix)}
        return sorted(seconds, reverse=True)
