"""TLS contexts of the client: one for each trust, made again when a file is renewed."""

import os
from pathlib import Path

import trustme

from tidemill.processors.http.client import HttpUpstream, Trust


def write(folder: Path) -> Trust:
    """Write an authority and a client's certificate of it."""
    authority = trustme.CA()
    ours = authority.issue_cert("client.example")
    trust = Trust(authorities=(folder / "ca.pem",), client=(folder / "client.pem", folder / "client.key"))
    authority.cert_pem.write_to_path(trust.authorities[0])
    ours.cert_chain_pems[0].write_to_path(trust.client[0])
    ours.private_key_pem.write_to_path(trust.client[1])
    return trust


def test_renewed_files_count_for_the_next_connection(tmp_path):
    """Without a restart; files that stay are read once."""
    client, trust = HttpUpstream(), write(tmp_path)
    first = client._context(trust)
    assert client._context(trust) is first
    known = {cert["serialNumber"] for cert in first.get_ca_certs()}
    assert write(tmp_path) == trust
    for file in tmp_path.iterdir():
        os.utime(file, (2_000_000_000, 2_000_000_000))
    renewed = client._context(trust)
    assert {cert["serialNumber"] for cert in renewed.get_ca_certs()} != known
    assert client._context(trust) is renewed
