"""The gateway's metrics for Prometheus: off unless ``[metrics] listen`` names a place. Reference: docs/metrics.md.

``tallies`` is what the gateway counts while it works, plain numbers on its loop. Everything else is looked up when
somebody scrapes, and only ``exposition`` and ``server`` load libraries: a gateway without metrics pays one test for
None per call.
"""
