"""An authority, and two certificates of it for 127.0.0.1: a good one, and one that has expired."""

import ssl
import subprocess
from pathlib import Path

from tests.weather.rows import Certificates

_EXTENSIONS = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
_CONFIGURATION = """
[ca]
default_ca = own
[own]
database = {directory}/index
new_certs_dir = {directory}
serial = {directory}/serial
certificate = {directory}/authority.pem
private_key = {directory}/authority.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


def made_in(directory: Path) -> Certificates:
    """Make them with openssl, whose ``ca`` alone can make what has expired."""
    directory.mkdir()
    (directory / "index").touch()
    (directory / "serial").write_text("01\n")
    (directory / "extensions").write_text(_EXTENSIONS)
    configuration = directory / "ca.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    authority = directory / "authority.pem"
    _openssl(
        *("req", "-x509", *key, "-days", "2", "-subj", "/CN=jfs test authority"),
        *("-keyout", str(directory / "authority.key"), "-out", str(authority)),
    )
    contexts = []
    for name, start, end in (
        ("good", "20200101000000Z", "20990101000000Z"),
        ("expired", "20200101000000Z", "20200102000000Z"),
    ):
        private, request = directory / f"{name}.key", directory / f"{name}.csr"
        _openssl(
            *("req", "-new", *key, "-subj", f"/CN={name}"),
            *("-keyout", str(private), "-out", str(request)),
        )
        certificate = directory / f"{name}.pem"
        _openssl(
            *("ca", "-batch", "-notext", "-config", str(configuration), "-in", str(request)),
            *("-out", str(certificate), "-extfile", str(directory / "extensions")),
            *("-startdate", start, "-enddate", end),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, private)
        contexts.append(context)
    return Certificates(authority, *contexts)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
