"""A worker that trains hpsearch's own networks: claims points into lanes, trains cohorts, records epochs."""

from __future__ import annotations
