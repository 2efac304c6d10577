"""Files that describe clusters: filled in for a person's machines, and checked without a cloud."""

from __future__ import annotations

from raylab.clusters.check import Checked, check_file
from raylab.clusters.render import ClusterOrder, render

__all__ = ["Checked", "ClusterOrder", "check_file", "render"]
