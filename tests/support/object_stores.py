"""A server that speaks S3, and buckets on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

SECRET = "the-secret-of-this-test"
_NUMBERS = count()


class Server:
    """A server on a free port of this machine, which all clients of this process use; what it holds outlives it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.start()

    def start(self) -> None:
        """Start, or start again on another port."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        _, port = self._server.get_host_and_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._patch.setenv("AWS_ENDPOINT_URL", self.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()  # of the server before

    def stop(self) -> None:
        self._server.stop()

    @property
    def client(self) -> Any:
        """Another client, whose doings fsspec does not see."""
        return boto3.client("s3", endpoint_url=self.endpoint)

    def make_bucket(self) -> str:
        """Return the name of a new, empty bucket; all servers of a process share them."""
        name = f"bucket-{next(_NUMBERS)}"
        self.client.create_bucket(Bucket=name)
        return name

    def deny(self, bucket: str, *actions: str) -> None:
        """Let nobody do some things in a bucket, such as ``PutObject``."""
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": [f"s3:{action}" for action in actions],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Every object of a bucket with its bytes."""
        found = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {entry["Key"]: self.client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in found}


@contextmanager
def s3_server() -> Iterator[Server]:
    """Run a server, which all clients of this process use by themselves."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        server = Server(patch)
        yield server
        server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
