"""A CSI node plugin for disks of vuproc: `python node_plugin.py --help`.

kubelet calls it, on the socket that node-driver-registrar tells it of. A published volume is a
folder with a vhost-user socket in it, as KubeVirt's proposal for vhost-user disks (VEP 215) wants
it. There is no controller: volumes are made by whoever makes their PersistentVolumes.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from csi_messages import PACKAGE, TYPES
from volumes import Node, VolumeElsewhere, VolumeRefused, VolumeTaken, VolumeUnavailable

NAME = "vuproc.csi.example.org"
"""The driver's; the one in csi-driver.yaml."""
THREADS = 4
STATUS = {
    VolumeRefused: grpc.StatusCode.INVALID_ARGUMENT,
    VolumeTaken: grpc.StatusCode.ALREADY_EXISTS,
    VolumeElsewhere: grpc.StatusCode.FAILED_PRECONDITION,
    VolumeUnavailable: grpc.StatusCode.UNAVAILABLE,
    OSError: grpc.StatusCode.INTERNAL,
}
Handler = Callable[[Any], Any]


class Plugin:
    """What it answers; one call at a time for a node's volumes."""

    def __init__(self, node: Node, node_id: str, version: str) -> None:
        self._node = node
        self._node_id = node_id
        self._version = version
        self._lock = threading.Lock()

    def services(self) -> dict[str, dict[str, tuple[str, Handler]]]:
        """By service and method: what comes, and who answers."""
        return {
            "Identity": {
                "GetPluginInfo": ("Empty", self._info),
                # No capabilities: no controller, no topology.
                "GetPluginCapabilities": ("Empty", self._nothing),
                "Probe": ("Empty", self._probe),
            },
            "Node": {
                "NodeGetInfo": ("Empty", self._node_info),
                "NodeGetCapabilities": ("Empty", self._nothing),
                "NodePublishVolume": ("NodePublishVolumeRequest", self._publish),
                "NodeUnpublishVolume": ("NodeUnpublishVolumeRequest", self._unpublish),
            },
        }

    def _info(self, request: Any) -> Any:
        return TYPES["GetPluginInfoResponse"](name=NAME, vendor_version=self._version)

    def _nothing(self, request: Any) -> Any:
        return TYPES["Empty"]()

    def _probe(self, request: Any) -> Any:
        return TYPES["ProbeResponse"](ready=TYPES["BoolValue"](value=self._node.devices.is_dir()))

    def _node_info(self, request: Any) -> Any:
        return TYPES["NodeGetInfoResponse"](node_id=self._node_id)

    def _publish(self, request: Any) -> Any:
        if request.volume_capability.HasField("block"):
            raise VolumeRefused("a volume is a folder with a socket: volumeMode: Filesystem")
        target = _target(request.target_path)
        attributes = {entry.key: entry.value for entry in request.volume_context}
        with self._lock:
            self._node.publish(request.volume_id, target, attributes, readonly=request.readonly)
        return TYPES["Empty"]()

    def _unpublish(self, request: Any) -> Any:
        target = _target(request.target_path)
        with self._lock:
            self._node.unpublish(request.volume_id, target)
        return TYPES["Empty"]()


def _target(path: str) -> Path:
    if not path.startswith("/"):
        raise VolumeRefused(f"{path!r} is no absolute path")
    return Path(path)


def _answering(handler: Handler) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handler(request)
        except tuple(STATUS) as error:
            code = next(code for kind, code in STATUS.items() if isinstance(error, kind))
            context.abort(code, str(error))

    return answer


def serve(plugin: Plugin, endpoint: Path) -> grpc.Server:
    """A server that listens; the caller stops it."""
    endpoint.unlink(missing_ok=True)
    server = grpc.server(ThreadPoolExecutor(THREADS))
    for service, methods in plugin.services().items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(handler),
                request_deserializer=TYPES[wanted].FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (wanted, handler) in methods.items()
        }
        generic = grpc.method_handlers_generic_handler(f"{PACKAGE}.{service}", handlers)
        server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(f"unix:{endpoint}")
    server.start()
    return server


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", type=Path, default=Path("/csi/csi.sock"))
    parser.add_argument("--devices", type=Path, default=Path("/run/vuproc/devices"))
    parser.add_argument("--volumes", type=Path, default=Path("/run/vuproc/volumes"))
    parser.add_argument("--images", type=Path, default=Path("/var/lib/vuproc/images"))
    parser.add_argument("--group", type=int, default=107, help="that of the VMM (107)")
    parser.add_argument("--rbd-conf", default="", help="the ceph.conf for volumes with rbd")
    parser.add_argument("--node-id", default=os.environ.get("NODE_NAME") or os.uname().nodename)
    options = parser.parse_args()
    from vuproc import __version__

    node = Node(options.devices, options.volumes, options.images, options.group, options.rbd_conf)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    server = serve(Plugin(node, options.node_id, __version__), options.endpoint)
    ending.wait()
    server.stop(grace=10).wait()


if __name__ == "__main__":
    main()
