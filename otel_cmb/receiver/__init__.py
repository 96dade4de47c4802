"""The OTLP receiver: gRPC and HTTP in front of the pipeline (`otel-cmb serve`).

    settings   one table: flags > environment > TOML file > default
    tokens     who may send, and for which session
    answers    what is said in which situation, in gRPC and in HTTP
    intake     a request's bytes to spans to the pipeline to an answer; knows no transport
    gate       how much may be in the house at once
    grpc_door  http_door   the two transports
    metrics    Prometheus text
    server     ports, readiness, drain

A request is answered with OK only after its spans are committed, or fsynced into the journal because the database is
down or their run unknown.
"""
