"""The flags of `ddpm schedule …`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional  # noqa: TC002 - tyro reads the annotations

from .arguments import Common, WrapsArgs


@dataclass(frozen=True, kw_only=True)
class ScheduleArgs(Common):
    """Flags of every command about schedules."""

    schedules_uri: str = ""
    """of the schedules' database, postgresql://USER@HOST/NAME; empty: $DDPM_SCHEDULES_URI, else STORAGE/schedules.db"""


@dataclass(frozen=True, kw_only=True)
class ScheduleAddArgs(WrapsArgs, ScheduleArgs):
    """Run a command (after --) at the times of a cron line, for as long as `schedule run` is at work."""

    name: Positional[str]
    """of the schedule: letters, digits and -"""
    cron: str
    """minute, hour, day, month and weekday, such as "0 3 * * *"; Sunday is 0 or 7"""
    timezone: str = "UTC"
    """whose clock the cron line is about, such as Europe/Berlin"""
    deadline_s: float = 86_400.0
    """seconds after which a tick that came while no daemon was at work is not run any more"""
    replace: bool = False
    """if there is a schedule of this name, this one takes its place"""


@dataclass(frozen=True, kw_only=True)
class ScheduleNameArgs(ScheduleArgs):
    """Flags of a command about one schedule."""

    name: Positional[str]
    """of the schedule"""


@dataclass(frozen=True, kw_only=True)
class ScheduleRemoveArgs(ScheduleNameArgs):
    """Forget a schedule; its history stays, and what runs goes on."""


@dataclass(frozen=True, kw_only=True)
class SchedulePauseArgs(ScheduleNameArgs):
    """Let a schedule's ticks pass until it is resumed; what runs goes on."""


@dataclass(frozen=True, kw_only=True)
class ScheduleResumeArgs(ScheduleNameArgs):
    """Go on with a paused schedule, from its next tick."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRunNowArgs(ScheduleNameArgs):
    """Have the daemon run a schedule's command now, paused or not."""


@dataclass(frozen=True, kw_only=True)
class ScheduleListArgs(ScheduleArgs):
    """List the schedules, with the next tick and the last outcome of each."""


@dataclass(frozen=True, kw_only=True)
class ScheduleHistoryArgs(ScheduleArgs):
    """List what became of past ticks, the newest last."""

    name: Positional[str] = ""
    """of the schedule; empty: of all"""
    limit: int = 20
    """how many at most"""


@dataclass(frozen=True, kw_only=True)
class ScheduleRunArgs(ScheduleArgs):
    """Be the daemon that runs commands at their ticks, until interrupted; they run in its working directory."""

    logs: str = ""
    """local folder of what the commands say; default STORAGE/schedules"""


@dataclass(frozen=True, kw_only=True)
class ScheduleEmitArgs(WrapsArgs):
    """Print the Kubernetes manifests that run a command on a schedule, each time as a RayJob of its own."""

    name: Positional[str]
    """of the schedule; a RayJob is called NAME and the time"""
    cron: str
    """when: minute, hour, day of the month, month, day of the week, such as '0 3 * * *'"""
    timezone: str = "UTC"
    """that cron's hours are of"""
    deadline_s: int = 3600
    """for how long a time that could not be kept may be made up for"""
    namespace: str = "ddpm"
    """where it runs"""
    image: str = ""
    """that runs it, with a tag or a digest; default registry.example.com/ray-ddpm with the tag of this version"""
    gpu: bool = False
    """have workers with a GPU, too, from none"""
