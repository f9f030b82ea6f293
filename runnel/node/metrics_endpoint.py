"""The figures of `metrics` for Prometheus, over HTTP, from one thread that is owned and ends.

The only module that imports prometheus_client, and only when metrics are asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runnel.errors import ConfigError, NetworkError
from runnel.node.config import MetricsAddress
from runnel.node.metrics import Figures

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

_log = logging.getLogger(__name__)

_REQUEST_S = 5.0
"""How long whoever asks may be silent."""

_POLL_S = 0.1


class MetricsEndpoint:
    """Serves `figures` until it is closed. Requests are answered one after the other."""

    def __init__(self, address: MetricsAddress) -> None:
        """Listens, and begins to answer.

        Raises:
            ConfigError: prometheus_client is not installed.
            NetworkError: the port is in use, or the address is none of this machine.
        """
        self.figures = Figures()
        handler = _handler(self.figures)
        try:
            self._server = _Server(address, handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NetworkError(
                f"metrics cannot be served at {address} ({reason}), expected a free port of this"
                " machine: choose another one with --metrics"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="runnel-metrics", daemon=True
        )
        self._thread.start()
        _log.info("metrics at %s", self.url)

    @property
    def url(self) -> str:
        """Where they are."""
        host, port = self._server.server_address[:2]
        text = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{text}:{port}/metrics"

    def close(self) -> None:
        """Ends the thread, even if somebody is in the middle of a question. Idempotent."""
        self._server.hang_up()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.TCPServer):
    """One connection at a time, which can be cut from another thread."""

    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: MetricsAddress, handler: type[BaseHTTPRequestHandler]) -> None:
        version = ipaddress.ip_address(address.host).version
        self.address_family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self._lock, self._ending = threading.Lock(), False
        self._current: socket.socket | None = None
        super().__init__((address.host, address.port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._current = None if self._ending else request
        try:
            if not self._ending:
                self.finish_request(request, client_address)
        finally:
            with self._lock:
                self._current = None
            self.shutdown_request(request)

    def hang_up(self) -> None:
        """Cuts the connection that is being served, and serves no other one."""
        with self._lock:
            self._ending = True
            if self._current is not None:
                with contextlib.suppress(OSError):  # it is gone by itself
                    self._current.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its base has them
        """Whoever asked went away, or sent no HTTP: that is not for a person to see."""
        _log.debug("metrics: %s", sys.exc_info()[1])


def _handler(figures: Figures) -> type[BaseHTTPRequestHandler]:
    try:
        prometheus = importlib.import_module("prometheus_client")
    except ImportError:
        raise ConfigError(
            "metrics need the library prometheus_client, which is not installed:"
            " pip install prometheus_client"
        ) from None
    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures, prometheus))
    made: type[BaseHTTPRequestHandler] = type(
        "MetricsHandler", (prometheus.MetricsHandler.factory(registry),), {"timeout": _REQUEST_S}
    )
    return made


class _Collector:
    """Gives the figures of the moment, for each question anew."""

    def __init__(self, figures: Figures, prometheus: Any) -> None:
        self._figures = figures
        kinds = importlib.import_module(f"{prometheus.__name__}.core")
        self._kinds = {"counter": kinds.CounterMetricFamily, "gauge": kinds.GaugeMetricFamily}

    def collect(self) -> Iterator[Any]:
        """All metrics that have a value."""
        families: dict[str, Any] = {}
        for metric, labels, value in self._figures.read():
            if metric.name not in families:
                make = self._kinds[metric.kind]
                families[metric.name] = make(metric.name, metric.text, labels=metric.labels)
            families[metric.name].add_metric(labels, value)
        yield from families.values()
