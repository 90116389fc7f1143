"""The protocol feature CONFIG: for devices that have a configuration space, and no others."""

from __future__ import annotations

import pytest

from vuproc import Device, Request
from vuproc.spec.vhost_user import ProtocolFeature
from vuproc.testing.errors import Refused
from vuproc.testing.serve import serve


class Bare(Device):
    """No configuration space, as an entropy device."""

    device_id = 4

    def handle(self, request: Request) -> None:
        request.write(b"x")


class Configured(Bare):
    def config_space(self) -> bytes:
        return b"config"


def test_c4_a_device_without_configuration_space_does_not_offer_config() -> None:
    with serve(Bare) as served, served.guest() as guest:
        assert ProtocolFeature.CONFIG not in guest.front_end.protocol_features
        assert guest.do(0, in_=[1]).content == b"x"
        with pytest.raises(Refused):
            guest.front_end.set_config(0, b"x")
        assert guest.do(0, in_=[1]).content == b"x"


def test_c4_a_device_with_one_does() -> None:
    with serve(Configured) as served, served.guest() as guest:
        assert ProtocolFeature.CONFIG in guest.front_end.protocol_features
        assert guest.front_end.get_config(0, 6) == b"config"
