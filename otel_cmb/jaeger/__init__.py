"""Jaeger looks into the database: its remote storage API over gRPC, its query API over HTTP, one query layer below."""
