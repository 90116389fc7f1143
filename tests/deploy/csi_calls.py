"""Calls a CSI plugin, as kubelet does: a line of JSON a call comes in, and its answer goes out. As
a program, since the library keeps threads and files.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc


def answer(channel: Any, method: str, message: str, fields: dict[str, Any], reply: str) -> Any:
    from csi_messages import PACKAGE, TYPES

    call = channel.unary_unary(
        f"/{PACKAGE}.{method}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=TYPES[reply].FromString,
    )
    from google.protobuf.json_format import MessageToDict, ParseDict

    try:
        made = call(ParseDict(fields, TYPES[message]()), timeout=90, wait_for_ready=True)
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", MessageToDict(made)]


def main() -> None:
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        for line in sys.stdin:
            print(json.dumps(answer(channel, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
