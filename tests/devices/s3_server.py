"""An S3 server for tests, moto's, in a process of its own.

As a program it serves until its input ends, and says its port first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.devices.bucket import NAME, Bucket
from tests.devices.store_gate import BOUND_S, LOOPBACK

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "a secret of the tests"


class S3(Bucket):
    """A bucket of moto's."""

    scheme = "s3"

    def __init__(self, port: int) -> None:
        import boto3

        super().__init__(port)
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{LOOPBACK}:{port}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def _credentials(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def get(self, name: str) -> bytes:
        try:
            data: bytes = self.client.get_object(Bucket=NAME, Key=name)["Body"].read()
        except self.client.exceptions.NoSuchKey as error:
            raise KeyError(name) from error
        return data

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=name, Body=data)

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=NAME).get("Contents", [])
        return sorted(each["Key"] for each in found)

    def delete_all(self) -> None:
        names = [{"Key": name} for name in self.names()]
        if names:
            self.client.delete_objects(Bucket=NAME, Delete={"Objects": names})

    def close(self) -> None:
        self.gate.shut()
        self.client.close()


@contextmanager
def gated(port: int) -> Iterator[S3]:
    """What a test has of a server that is there."""
    with closing(S3(port)) as s3:
        yield s3


@contextmanager
def running(*, checks_keys: bool = False) -> Iterator[int]:
    """The port of a server. `checks_keys`: signatures are checked, of a user who may do nothing."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    if checks_keys:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.devices.s3_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            if not checks_keys:
                with gated(port) as s3:
                    s3.client.create_bucket(Bucket=NAME)
            yield port
        finally:
            process.stdin.close()
            process.wait(BOUND_S)


def main() -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
