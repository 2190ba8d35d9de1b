"""The flags of the commands that run a cluster's work from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, Suppress

from .arguments import Common, Flat, WrapsArgs
from .storage import Environment


@dataclass(frozen=True, kw_only=True)
class Cluster(Environment):
    """For commands about a cluster, which need no other place."""

    address: str = field(default_factory=lambda: os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    """of the cluster's dashboard; default $RAY_API_SERVER_ADDRESS, else that of a head on this machine"""
    storage: Annotated[str, Suppress] = ""
    tracking_uri: Annotated[str, Suppress] = ""


@dataclass(frozen=True, kw_only=True)
class SubmitArgs(WrapsArgs):
    """Send a command, given after `--`, to a cluster as a Ray job; if the same one runs there, attach to it."""

    where: Annotated[Cluster, Flat] = field(default_factory=Cluster)
    follow: bool = False
    """stay to its end, and exit as it does"""
    python: str = ""
    """the cluster's interpreter; default the `python` of its head"""
    credentials: str = ""
    """path of a file on the cluster, of lines NAME=VALUE, which the job puts into its environment"""
    dry_run: bool = False
    """print what would be sent, and send nothing"""


@dataclass(frozen=True, kw_only=True)
class JobsListArgs(Common):
    """List our jobs on a cluster, the newest first."""

    where: Annotated[Cluster, Flat] = field(default_factory=Cluster)


@dataclass(frozen=True, kw_only=True)
class JobArgs(JobsListArgs):
    """A job of a cluster."""

    job: Positional[str]
    """its id, as submit and jobs list print it"""


@dataclass(frozen=True, kw_only=True)
class JobStatusArgs(JobArgs):
    """Say what has become of a job."""


@dataclass(frozen=True, kw_only=True)
class JobLogsArgs(JobArgs):
    """Print a job's log."""

    follow: bool = False
    """draw its progress instead, to its end, and exit as it does"""


@dataclass(frozen=True, kw_only=True)
class JobStopArgs(JobArgs):
    """End a job."""
