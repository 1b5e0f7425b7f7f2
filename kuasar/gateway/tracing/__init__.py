"""Traces by OpenTelemetry's protocol: off unless ``[tracing] endpoint`` names a collector. Guide: docs/tracing.md.

``requests`` follows a request through the gateway and collects what worker and agent have recorded; it loads no
library. ``export`` sends what is finished, from a thread of its own, and is the only module that knows OpenTelemetry's
messages.
"""
