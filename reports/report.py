"""A report: what one step cost. Simulator and executor return the same type."""

from typing import Literal

from msgspec import Struct


class StallReport(Struct, frozen=True, kw_only=True):
    """The compute lane idle at an operation, waiting for a copy or a fetch of a storage."""

    op: str
    storage: str
    reason: Literal["copy", "fetch"]
    ns: int


class Report(Struct, frozen=True, kw_only=True):
    """What one training step cost, in integer bytes and nanoseconds.

    *Scheduled* bytes are activations and their gradients; *device* bytes are everything on the
    device, with workspaces; *allocated* bytes are the blocks that its allocator gives for them, and
    *reserved* ones what it takes of the device. The *step peak*
    is the highest of `step_bytes`, the scheduled bytes right after each operation's outputs are
    added (the paper's Fig. 10); the *strict peak* also looks inside recomputations and restores.

    `step_time_ns` lasts until all lanes are drained; `stall_ns` is the compute lane idle for a
    fence or a fetch; `compute_ns` its busy time, recomputation (`recomputed_ns`) included;
    `copy_out_ns` and `copy_in_ns` are the busy times of the busiest copy lane each way;
    `allocator_ns` is what the host spends in the driver's allocator, its waits for the device not
    counted. A step that does not fit is `short_bytes` short at worst, at operation `short_op`;
    `full_tiers` had no room for what they were to take, so that it stayed on the device; `why` says
    so in words.
    """

    trace: str
    policy: str
    machine: str
    budget_bytes: int | None
    limit_bytes: int
    fits: bool
    why: str
    short_bytes: int
    short_op: str | None
    full_tiers: tuple[str, ...] = ()
    step_peak_bytes: int
    step_peak_op: str | None
    step_peak_live_tensors: int
    strict_peak_bytes: int
    device_peak_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    tier_peak_bytes: dict[str, int]
    step_time_ns: int
    compute_ns: int
    stall_ns: int
    copy_out_ns: int
    copy_in_ns: int
    copied_out_bytes: int
    copied_in_bytes: int
    recomputed_ops: int
    recomputed_ns: int
    allocator_ns: int
    ops: int
    instructions: int
    allocator: str
    times: str
    op_names: list[str]
    step_bytes: list[int]
    step_live_tensors: list[int]
    stalls: list[StallReport]
