"""The API on Ray Serve: one replica, real HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import fill_library

pytest.importorskip("ray.serve")

ROOT = Path(__file__).resolve().parents[2]
