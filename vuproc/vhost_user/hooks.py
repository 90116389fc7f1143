"""Which of the protocol's features a device has by what its class overrides."""

from __future__ import annotations

from vuproc.device import Device
from vuproc.mapping import regions_of
from vuproc.sharing import SharingDevice
from vuproc.spec.net import NetFeature
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.spec.virtio import DeviceId


def protocol_features_of(device: Device) -> ProtocolFeature:
    """Those of which a front-end may only know if the device has the hook for them."""
    found = ProtocolFeature(0)
    if device.device_id == DeviceId.NET:
        if _overrides(device, "mtu_changed") and device.offered_features() & NetFeature.MTU:
            found |= ProtocolFeature.MTU
        if _overrides(device, "announce"):
            found |= ProtocolFeature.RARP
    if _overrides(device, "save_state") and _overrides(device, "load_state"):
        found |= ProtocolFeature.DEVICE_STATE
    if device.leaves_in_flight:
        found |= ProtocolFeature.GET_VRING_BASE_INFLIGHT | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    if isinstance(device, SharingDevice):
        found |= ProtocolFeature.SHARED_OBJECT
    if regions_of(device):
        found |= ProtocolFeature.SHMEM | ProtocolFeature.BACKEND_SEND_FD
    return found


def _overrides(device: Device, method: str) -> bool:
    return getattr(type(device), method) is not getattr(Device, method)
