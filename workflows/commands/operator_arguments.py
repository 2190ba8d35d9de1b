"""The flags of the commands that run a cluster's work from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, Suppress

from ..config import Config  # noqa: TC001 - tyro reads the annotations
from ..storage import Environment
from .arguments import Common, Flat, WrapsArgs


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


@dataclass(frozen=True, kw_only=True)
class RetrainArgs(Common):
    """Add what is new to the data, train on it, and promote the model or say why not."""

    config: Annotated[Config, Flat]
    """without a preset or --config, the settings are those that the data and the champion were made with where no flag
    is given"""
    chosen: Annotated[bool, Suppress] = True
    """whether there was a preset or a file"""
    named: Annotated[tuple[str, ...], Suppress] = ()
    """the settings that flags named, such as train.steps"""


@dataclass(frozen=True, kw_only=True)
class PromoteArgs(Common):
    """Make a version of a model its champion."""

    model: Positional[str]
    """NAME/VERSION or NAME@alias"""
    why: str = "by hand"
    """for the history"""


@dataclass(frozen=True, kw_only=True)
class RollbackArgs(Common):
    """Make the champion before the present one champion again."""

    name: Positional[str]
    """of the model"""
    why: str = "by hand"
    """for the history"""


@dataclass(frozen=True, kw_only=True)
class ChampionsArgs(Common):
    """Say who was champion of a model when, and why."""

    name: Positional[str]
    """of the model"""
