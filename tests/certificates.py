"""Certificates made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["make"]


def make(place: Path) -> Path:
    """Two authorities, ca1 and ca2, and of each a server's certificate for localhost and a client's: `server1.crt`,
    `server1.key`, ... and `encrypted.key`, a form of `server1.key`."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=place, check=True, capture_output=True)

    (place / "server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    (place / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
    for n in (1, 2):
        usage = "-addext keyUsage=keyCertSign,cRLSign"  # Python 3.13 asks for it
        openssl(f"req -x509 {key} -days 2 -subj /CN=ca{n} {usage} -keyout ca{n}.key -out ca{n}.crt")
        for name in ("server", "client"):
            openssl(f"req {key} -subj /CN={name}{n} -keyout {name}{n}.key -out {name}{n}.csr")
            openssl(f"x509 -req -in {name}{n}.csr -CA ca{n}.crt -CAkey ca{n}.key -CAcreateserial -days 2 "
                    f"-extfile {name}.ext -out {name}{n}.crt")
    openssl("ec -in server1.key -aes128 -passout pass:secret -out encrypted.key")
    return place
