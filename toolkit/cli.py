"""The verbs that a user types. Each imports its tower when it is called, so that `toolkit --help` answers at once."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import toolkit
from toolkit.errors import GraphError, PlacementError, ServiceError, ToolkitError
from toolkit.spec import ReplicaSpec
