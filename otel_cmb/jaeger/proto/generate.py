"""Write the `_pb2` modules from the `.proto` files beside this one: `python -m otel_cmb.jaeger.proto.generate`.

Use grpcio-tools 1.64 (protoc 5.26): what newer ones write refuses protobuf runtimes older than themselves. The test
compares descriptors, which are the same whoever wrote them.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

FILES = ("expression", "trace_storage", "dependency_storage", "capabilities")


def generate(out: pathlib.Path) -> None:
    """Write the modules and their type stubs below `out`, as `otel_cmb/jaeger/proto/*_pb2.py`. Needs grpcio-tools."""
    import grpc_tools
    from grpc_tools import protoc

    root = pathlib.Path(__file__).resolve().parents[3]
    google = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as directory:
        otlp = os.path.join(directory, "otlp.binpb")
        pathlib.Path(otlp).write_bytes(_otlp_descriptors())
        code = protoc.main([
            "protoc", f"-I{root}", f"-I{google}", f"--descriptor_set_in={otlp}", f"--python_out={out}",
            f"--pyi_out={out}", *(f"otel_cmb/jaeger/proto/{name}.proto" for name in FILES),
        ])
    if code:
        raise SystemExit(code)


def _otlp_descriptors() -> bytes:
    """OTLP's messages as the installed opentelemetry-proto has them (its `.proto` files are not in its package)."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from opentelemetry.proto.trace.v1 import trace_pb2

    found = FileDescriptorSet()
    seen: set[str] = set()

    def add(file: object) -> None:
        if file.name in seen:  # type: ignore[attr-defined]
            return
        seen.add(file.name)  # type: ignore[attr-defined]
        for needed in file.dependencies:  # type: ignore[attr-defined]
            add(needed)
        file.CopyToProto(found.file.add())  # type: ignore[attr-defined]

    add(trace_pb2.DESCRIPTOR)
    data: bytes = found.SerializeToString()
    return data


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[3])
