"""A program's device object, checked before anything is started for it: as `vuproc check` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vuproc import loader, place
from vuproc.device import Device
from vuproc.device_file.check import check_socket_path, kept_options_problems
from vuproc.device_file.description import description_problems, grouping_problems, units_of
from vuproc.device_file.device_class import class_problems
from vuproc.device_file.model import Socket
from vuproc.device_file.owner import owner_problems
from vuproc.errors import DeviceRefused, SocketRefused
from vuproc.program.absolute import absolute


def check_device(device: Device) -> None:
    """Raises DeviceRefused with all that is wrong, a line each."""
    for problems in (_of_class, _of_options, description_problems):
        found = list(problems(device))
        if found:
            raise DeviceRefused("\n".join(found))


def grouped(
    device: Device, wanted: Sequence[Sequence[int]] | None, *, postcopy: bool
) -> tuple[tuple[int, ...], ...]:
    """The queues of each worker: as wanted, or as the device says. Raises DeviceRefused."""
    units = units_of(device, postcopy=postcopy)
    if wanted is None:
        return tuple(units)
    found = [f"workers: {text}" for _, text in grouping_problems(wanted, units)]
    if not wanted or not all(wanted):
        found.append("workers: a worker needs a queue")
    if found:
        raise DeviceRefused("\n".join(found))
    return tuple(tuple(group) for group in wanted)


def check_socket(socket: Socket) -> None:
    """Raises SocketRefused."""
    found = check_socket_path(socket.path, socket.mode)
    found += [f"{key}: {text}" for key, text in owner_problems(socket)]
    if found:
        raise SocketRefused("\n".join(found))


def _of_class(device: Device) -> Iterator[str]:
    cls = type(device)
    wrong = loader.class_problem(cls)
    if wrong is not None:
        yield place.at(place.of_attribute(cls, wrong[0]), f"{cls.__name__}{wrong[1]}")
    yield from class_problems(cls, made=True)


def _of_options(device: Device) -> Iterator[str]:
    yield from kept_options_problems(device)
    options = device.options
    try:
        for name, message in absolute(options).problems():
            yield f"{name}: {message}" if name else message
    except (Exception, SystemExit) as error:
        yield place.raised(type(options), "problems", error)
